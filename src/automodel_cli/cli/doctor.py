"""``automodel doctor``: one screen for "why does it not run here"."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from automodel_cli.cli import console

_MARKS = {"ok": "ok", "warning": "warning", "problem": "PROBLEM"}


def doctor(
    folder: Annotated[
        Path, typer.Argument(help="Where runs will be written; its disk is looked at.", show_default="here")
    ] = Path(),
    processes: Annotated[
        int | None,
        typer.Option(
            help="Processes of the all-reduce; one for each GPU, or two.", min=1, show_default=False
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that a check may take.", min=1)] = 60.0,
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the hub.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> int:
    """Look at what training needs of this machine; exit code 1 where something keeps it from running."""
    from automodel_cli.recipes import doctor as recipe

    request = recipe.Request(folder=folder, processes=processes, timeout_s=timeout, hub=not offline)
    findings = recipe.run(request)
    if as_json:
        console.say(json.dumps(recipe.as_json(findings), indent=2))
    else:
        for finding in findings:
            console.say(f"{_MARKS[finding.status]:8} {finding.name:18} {finding.found}")
            if finding.advice:
                console.say(f"{'':27} -> {finding.advice}")
        console.say(_summary([finding.status for finding in findings]))
    return 1 if recipe.has_problem(findings) else 0


def _summary(statuses: list[str]) -> str:
    problems, warnings = statuses.count("problem"), statuses.count("warning")
    if problems:
        return f"{problems} thing{'s' * (problems > 1)} will keep training from running here"
    return f"training should run here{f' ({warnings} to look at)' if warnings else ''}"
