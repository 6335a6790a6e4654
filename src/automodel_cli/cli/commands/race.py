"""``automodel race``: is one training run better than another?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import typer

from automodel_cli.assembly.reporter import Reporter
from automodel_cli.cli import console
from automodel_cli.cli.argv import Invocation
from automodel_cli.cli.options import command, show_json
from automodel_cli.config.schema.sweep import RaceConfig

_NO_VERDICT = 4


@command(
    RaceConfig,
    arguments=("a", "b"),
    examples=(
        "automodel race adamw.yaml muon.yaml --minutes 30",
        "automodel race a.yaml b.yaml --metric val_loss --seeds 10 --json",
    ),
    epilog="""Both runs of a pair have the same seed, and so the same order of data. The test may be looked at after
    every pair; the interval is of B's gain as a share of A's result, above 0 where B is better.

    Exit codes: 0 B is better, 1 B is worse, 2 the configuration is wrong, 3 no difference found, 4 a run failed or
    anything else went wrong, 75 interrupted (the same command goes on).""",
)
def race(cfg: RaceConfig, context: typer.Context) -> int:
    """Say whether the run of B.yaml is better than that of A.yaml, by as many pairs of runs as it takes."""
    from automodel_cli.recipes import race as recipe

    launch = Invocation.of(context).launch
    with _errors_are_no_verdict():
        if cfg.as_json:
            raced = recipe.run(cfg, launch, Reporter(say=console.print_error))
            show_json(recipe.as_json(raced))
            return raced.exit_code
        with console.reporter("race") as reporter:
            return recipe.run(cfg, launch, reporter).exit_code


@contextlib.contextmanager
def _errors_are_no_verdict() -> Iterator[None]:
    """Give errors another code than 1, which says that B is worse."""
    try:
        yield
    except Exception as error:
        if console.exit_code(error) == 1:
            console.give_exit_code(error, _NO_VERDICT)
        raise
