"""A race: is one training run better than another? Pairs of runs with the same seed, until a sequential test knows."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from automodel_cli.assembly.reporter import Reporter
from automodel_cli.assembly.sweeps.plan import SEED, PlannedRun, plan_run
from automodel_cli.assembly.sweeps.runner import Runner, rows_so_far, state_of
from automodel_cli.config.schema.sweep import RaceConfig
from automodel_cli.errors import EXIT_PREEMPTED, AutomodelError
from automodel_cli.files import exclusive_lock, make_folder
from automodel_cli.scaling.results import ResultRow
from automodel_cli.scaling.sequential import Finding, judge

MOST_PAIRS = 30
_LOCK = ".lock"
_EXIT_CODES = {"better": 0, "worse": 1, "no difference found": 3}


class RaceFailed(AutomodelError):
    """A run of a race failed, or leaves nothing to compare."""

    exit_code = 4


@dataclass
class Raced:
    """How a race ended: results of A and B by seed, and the verdict on B."""

    metric: str
    margin: float
    alpha: float
    pairs: dict[int, tuple[float, float]] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def finding(self) -> Finding:
        """What the pairs say: gains of B as shares of A's result, above 0 where B is better."""
        sign = 1 if self.metric == "core" else -1  # of losses less is better
        gains = [sign * (b - a) / abs(a) for a, b in self.pairs.values()]  # ``_results`` lets no a of 0 in
        return judge(gains, alpha=self.alpha, margin=self.margin)

    @property
    def exit_code(self) -> int:
        """0: B is better; 1: worse; 3: no difference found; 75: interrupted."""
        return EXIT_PREEMPTED if self.interrupted else _EXIT_CODES[self.finding.verdict]


def run(cfg: RaceConfig, launch: Mapping[str, str], reporter: Reporter | None = None) -> Raced:
    """Run pairs until the test has decided, or time or seeds are used up.

    Raises:
        ConfigError: a run cannot be; nothing was started.
        RaceFailed: a run failed, or has no such metric.
        AutomodelError: another process works on this race.
    """
    reporter = reporter or Reporter()
    a, b = Path(cfg.a), Path(cfg.b)
    folder = Path(cfg.output_dir or Path("runs", f"race_{a.stem}_{b.stem}"))
    raced = Raced(cfg.metric, cfg.margin, cfg.alpha)
    seeds = range(MOST_PAIRS if cfg.seeds == "auto" else cfg.seeds)
    _pair(cfg, folder, 0)  # what is wrong is said before a folder is made
    make_folder(folder)
    with exclusive_lock(folder / _LOCK, busy=f"another process works on the race in {folder}"):
        runner = Runner(folder, cfg, {**cfg.launch, **launch}, reporter)
        clock, made = _Clock(cfg.minutes), rows_so_far(folder)
        for seed in seeds:
            pair = _pair(cfg, folder, seed)
            if not (all(state_of(one, made) == "finished" for one in pair) or clock.has_time()):
                break
            rows = {row.id: row for row in runner.make(pair)}
            clock.count(sum(row.wall_s or 0.0 for row in rows.values()) / min(cfg.jobs, len(pair)))
            if runner.interrupted:
                raced.interrupted = True
                break
            raced.pairs[seed] = _results(cfg, pair, rows)
            reporter.say(words(raced))
            if raced.finding.is_decided:
                break
    return raced


def _pair(cfg: RaceConfig, folder: Path, seed: int) -> list[PlannedRun]:
    files = {"a": Path(cfg.a), "b": Path(cfg.b)}
    return [
        plan_run(file, {SEED: seed}, folder, fixed=cfg.set, trust=cfg.trust, name=name) for name, file in files.items()
    ]


class _Clock:
    """Whether a pair like the longest so far, of an earlier call too, would still end in time."""

    def __init__(self, minutes: float | None) -> None:
        self._ends = math.inf if minutes is None else time.monotonic() + 60 * minutes
        self._longest_s = 0.0

    def has_time(self) -> bool:
        return not self._longest_s or time.monotonic() + self._longest_s <= self._ends

    def count(self, seconds: float) -> None:
        """A pair took so long, now or in an earlier call."""
        self._longest_s = max(self._longest_s, seconds)


def _results(cfg: RaceConfig, pair: list[PlannedRun], rows: Mapping[str, ResultRow]) -> tuple[float, float]:
    for one in pair:
        if rows[one.id].status == "failed":
            raise RaceFailed(f"{one.id} failed: {rows[one.id].error}", f"see {one.folder}; the same command goes on")
        if getattr(rows[one.id], cfg.metric) is None:
            raise RaceFailed(f"{one.id} has no {cfg.metric}", "choose another --metric")
    a, b = (float(getattr(rows[one.id], cfg.metric)) for one in pair)
    if a == 0:
        raise RaceFailed(f"{cfg.metric} of {pair[0].id} is 0, and gains are shares of it", "choose another --metric")
    return a, b


def words(raced: Raced) -> str:
    """``B is better: val_bpb 0.31% lower (95% interval 0.21% to 0.41%), 4 pairs``, or what is known so far."""
    found = raced.finding
    if found.pairs < 2:
        return f"1 pair: {found.mean:+.3%}; at least two are needed"
    verdict = f"B is {found.verdict}" if found.verdict != "no difference found" else found.verdict
    span = f"{1 - raced.alpha:.0%} interval {found.low:+.3%} to {found.high:+.3%}"
    return f"{verdict}: B's gain in {raced.metric} {found.mean:+.3%} ({span}), {found.pairs} pairs"


def as_json(raced: Raced) -> dict[str, object]:
    """The result for programs; shares, not percent."""
    found = raced.finding
    return {
        "verdict": None if raced.interrupted else found.verdict,
        "metric": raced.metric,
        "gain": found.mean,
        "interval": [found.low, found.high] if math.isfinite(found.low) else None,  # nothing is known yet
        "level": 1 - raced.alpha,
        "pairs": found.pairs,
        "results": [{"seed": seed, "a": a, "b": b} for seed, (a, b) in raced.pairs.items()],
    }
