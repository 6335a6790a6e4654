"""``automodel doctor``: checks of this machine, on one screen."""

from __future__ import annotations

from automodel_cli.cli import console
from automodel_cli.cli.options import command, show_json
from automodel_cli.config.schema.options import DoctorOptions
from automodel_cli.text import plural


@command(
    DoctorOptions,
    file=False,
    arguments=("folder",),
    examples=("automodel doctor", "automodel doctor /scratch/runs --processes 8 --offline"),
)
def doctor(cfg: DoctorOptions) -> int:
    """Check whether this machine is ready for training; exit code 1 if something would keep it from running."""
    from automodel_cli.recipes import doctor as recipe

    findings = recipe.run(cfg)
    if cfg.as_json:
        show_json(recipe.as_json(findings))
    else:
        for finding in findings:
            console.say(f"{finding.status.replace('problem', 'PROBLEM'):8} {finding.name:18} {finding.found}")
            if finding.advice:
                console.say(f"{'':27} -> {finding.advice}")
        console.say(_summary([finding.status for finding in findings]))
    return 1 if recipe.has_problem(findings) else 0


def _summary(statuses: list[str]) -> str:
    problems, warnings = statuses.count("problem"), statuses.count("warning")
    if problems:
        return f"{plural(problems, 'problem')} will keep training from running here"
    return "training should run here" + (f" ({plural(warnings, 'warning')})" if warnings else "")
