"""A sweep: the plan, then each run as a process of its own, and a row for each in ``results.jsonl``. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from automodel_cli.assembly.reporter import Reporter
from automodel_cli.assembly.sweeps.plan import PlannedRun, plan_sweep
from automodel_cli.assembly.sweeps.runner import Runner, rows_so_far, state_of
from automodel_cli.config.schema.sweep import SweepRunConfig
from automodel_cli.errors import EXIT_PREEMPTED
from automodel_cli.files import exclusive_lock, make_folder
from automodel_cli.scaling.results import ResultRow
from automodel_cli.text import human, plural

_LOCK = ".lock"
_HEADINGS = ("run", "depth", "budget", "params", "tokens", "D/N", "steps", "FLOPs", "state")


@dataclass
class Swept:
    """How a sweep ended; ``exit_code`` 75: interrupted, the same command goes on; 1: a run failed."""

    rows: list[ResultRow] = field(default_factory=list)
    interrupted: bool = False

    @property
    def failed(self) -> list[ResultRow]:
        """Rows of runs that failed."""
        return [row for row in self.rows if row.status == "failed"]

    @property
    def exit_code(self) -> int:
        """Of the command."""
        return EXIT_PREEMPTED if self.interrupted else 1 if self.failed else 0


def run(cfg: SweepRunConfig, launch: Mapping[str, str], reporter: Reporter | None = None) -> Swept:
    """Plan, show the plan, and make what is not finished.

    Args:
        launch: launch flags of the command line, which win over those of the file.

    Raises:
        ConfigError: the grid or a run of it is wrong; nothing was started.
        AutomodelError: another process works on this sweep.
    """
    reporter, folder = reporter or Reporter(), Path(cfg.output_dir)
    runs, swept = plan_sweep(cfg), Swept()
    _show(runs, folder, reporter)
    if cfg.dry_run:
        return swept
    make_folder(folder)
    with exclusive_lock(folder / _LOCK, busy=f"another process works on the sweep in {folder}"):
        runner = Runner(folder, cfg, {**cfg.launch, **launch}, reporter)
        swept.rows = list(runner.make(runs))
        swept.interrupted = runner.interrupted
    for row in swept.failed:
        reporter.say(f"FAILED: {row.id}: {row.error}")
    ended = Counter(row.status for row in swept.rows)
    left = len(runs) - len(swept.rows)
    words = [f"{ended['finished']} of {plural(len(runs), 'run')} finished", f"{ended['failed']} failed"]
    reporter.say(", ".join([*words, f"{left} to do: run the same command again"] if left else words))
    return swept


def _show(runs: list[PlannedRun], folder: Path, reporter: Reporter) -> None:
    rows = rows_so_far(folder)
    states = {run.id: state_of(run, rows) for run in runs}
    reporter.columns(
        f"sweep of {plural(len(runs), 'run')} in {folder}", _HEADINGS, [_cells(run, states) for run in runs]
    )
    todo = [run for run in runs if states[run.id] != "finished"]
    flops = sum(run.flops or 0.0 for run in todo)
    reporter.say(f"{len(todo)} to do, {flops:.3g} FLOPs")
    _warn_of_others(runs[0].recipe, rows, folder, reporter)


def _warn_of_others(recipe: str, rows: Mapping[str, ResultRow], folder: Path, reporter: Reporter) -> None:
    """Rows that were made with another base file or other keys set in all runs: one law does not hold for both."""
    others = sum(row.recipe not in (recipe, None) for row in rows.values())
    if others:
        reporter.say(
            f"warning: {folder} has the results of {plural(others, 'run')} of another base or other keys in set; "
            f"sweep fit takes them too, unless --where recipe={recipe}"
        )


def _cells(run: PlannedRun, states: Mapping[str, str]) -> tuple[str, ...]:
    params = run.params.get("scaling")
    return (
        run.id,
        str(run.depth or ""),
        f"{run.budget:.3g}" if run.budget else "",
        human(params) if params else "",
        human(run.tokens) if run.tokens else "",
        f"{run.tokens / params:.3g}" if run.tokens and params else "",
        f"{run.steps:,}" if run.steps else "",
        f"{run.flops:.3g}" if run.flops else "",
        states[run.id],
    )
