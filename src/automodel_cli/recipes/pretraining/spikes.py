"""What a run does about finite spikes: it names what they were made of, leaves them out, or goes back before them."""

from __future__ import annotations

import contextlib
import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from automodel_cli.assembly import training
from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.all_ranks import on_rank_zero
from automodel_cli.checkpoint.storage.step_files import StepReader
from automodel_cli.config.schema.training_sections import SpikesConfig
from automodel_cli.data.rows import Piece, places_of
from automodel_cli.data.skipped import MOST_RANGES, Skipped
from automodel_cli.data.token_loader import TokenLoader
from automodel_cli.errors import AutomodelError
from automodel_cli.metrics.log import MetricsLog
from automodel_cli.plain_text import for_shell
from automodel_cli.recipes.pretraining.run import Run
from automodel_cli.train.spikes import Limits, SpikeDetector, SpikeRule
from automodel_cli.train.step import StepMetrics

_MOST_WINDOWS = 32  # of an update, that an event names one by one
_MOST_FILES = 4  # of an update, that the console names


@dataclass(frozen=True)
class Spike:
    """An update that was one: its number, what it was above, and its samples (None: the data have no numbers)."""

    step: int
    numbers: StepMetrics[float]
    limits: Limits
    samples: tuple[int, int] | None

    def record(self, more: Mapping[str, Any]) -> dict[str, Any]:
        """Its event in ``metrics.jsonl``; ``more`` comes behind the numbers."""
        values = {"loss": self.numbers.loss, "grad_norm": self.numbers.grad_norm}
        limits = {f"{name}_limit": value for name, value in self.limits._asdict().items()}
        place = {} if self.samples is None else {"first_sample": self.samples[0], "end_sample": self.samples[1]}
        return {"step": self.step, **values, **limits, **place, **more}


@dataclass
class SpikeWatch:
    """The detector of a run, and the spikes that it has to act on."""

    run: Run
    cfg: SpikesConfig
    detector: SpikeDetector
    metrics: MetricsLog
    _samples: deque[tuple[int, tuple[int, int] | None]] = field(default_factory=deque)  # of updates that are not judged
    _to_undo: list[Spike] = field(default_factory=list)  # nothing was done about them yet
    _gone_back: list[dict[str, Any]] = field(default_factory=list)  # events of this start
    _rewinds: Counter[int] = field(default_factory=Counter)  # by the step that the run went back to

    @classmethod
    def begin(cls, run: Run, metrics: MetricsLog) -> SpikeWatch | None:
        """The watch over a run that goes on where its checkpoint was; None: nobody asked for one."""
        cfg = run.cfg.spikes
        if cfg is None:
            return None
        detector = SpikeDetector(SpikeRule(cfg.window, cfg.threshold, cfg.max_in_a_row))
        if run.checkpoint is not None:
            _restore(detector, StepReader(run.checkpoint).read_json("state.json")["state"])
        return cls(run, cfg, detector, metrics)

    @property
    def goes_back(self) -> bool:
        """Whether a spike sends the run back."""
        return self.cfg.action == "rewind"

    def limits(self, pending: int) -> Tensor | None:
        """What the next update, with ``pending`` ones before it not judged, is left out above; None: nothing."""
        return self.detector.limits(pending).on(self.run.device) if self.cfg.action == "skip" else None

    def launched(self, step: int) -> None:
        """Update ``step`` is under way, on the samples that the loader gave last."""
        loader = self.run.loader
        self._samples.append((step, loader.last_samples if isinstance(loader, TokenLoader) else None))

    def judge(self, step: int, numbers: StepMetrics[float]) -> bool:
        """Whether update ``step``, the next in order, was a spike; one that was is logged."""
        launched, samples = self._samples.popleft()
        assert launched == step, (launched, step)
        limits = self.detector.limits()
        left_out = self.cfg.action == "skip" and numbers.skipped
        if not self.detector.judge(numbers, agreed=bool(left_out)):
            return False
        spike = Spike(step, numbers, limits, samples)
        if self.goes_back:
            self._to_undo.append(spike)
        else:
            self._tell(spike, {"action": self.cfg.action}, "its update was left out" if left_out else "")
        return True

    # ------------------------------------------------------------------------------------------ going back

    def agreed(self) -> list[Spike]:
        """The spikes that the run has to go back before, if any rank has one; all ranks call this.

        The first is the same on all of them, whatever each has seen.
        """
        run, own = self.run, self._to_undo
        if not run.world.any(bool(own)):
            return []
        self._to_undo = []
        steps = run.world.gather([[one.step, *(one.samples or ())] for one in own[:1]])
        step, *samples = min(one for found in steps for one in found)
        if own and own[0].step == step:
            return own
        unseen = Spike(step, StepMetrics(math.nan, 0, math.nan, False), Limits(), (samples[0], samples[1]))
        return [unseen, *own]

    def checkpoint_before(self, spike: Spike) -> tuple[Path | None, str]:
        """Where to go back to, the same on all ranks, or why not."""
        run = self.run

        def find() -> str | None:
            others = run.checkpointer.retention.protected  # of another course of this run
            found = layout.newest_good(run.run_folder, before=spike.step, without=others)
            return None if found is None else found.name

        run.checkpointer.wait()
        name = on_rank_zero(run.world, find, what="looking for a checkpoint before a spike")
        if name is None:
            return None, "there is no checkpoint before it"
        if self._rewinds[step := layout.step_of(name) or 0] >= self.cfg.max_rewinds:
            return None, f"the run has gone back to step {step} {self.cfg.max_rewinds} times already"
        assert isinstance(run.loader, TokenLoader)
        if len(run.loader.skipped.ranges) >= MOST_RANGES:
            return None, f"{MOST_RANGES:,} ranges of samples are skipped already"
        return run.run_folder / name, ""

    def only_note(self, spikes: Sequence[Spike], why: str) -> None:
        """Log spikes that the run cannot go back before."""
        for spike in spikes:
            self._tell(spike, {"action": "note", "reason": why}, f"noted only: {why}")

    def go_back(self, spike: Spike, checkpoint: Path) -> int:
        """Take up a checkpoint in the middle of a run, and go around the samples of a spike; its step.

        Every rank calls this.
        """
        run = self.run
        assert isinstance(run.loader, TokenLoader) and spike.samples is not None
        averages = None if run.average is None else run.average.tensors
        loaded = run.checkpointer.load(checkpoint, model=run.model, optimizer=run.optimizer, average=averages)
        around = self._around(run.loader, spike.samples, loaded.loader_state["samples_consumed"])
        before = run.loader.skipped
        run.loader.load_state_dict(loaded.loader_state)
        run.loader.skipped = Skipped.of((*before.ranges, *run.loader.skipped.ranges, around))
        training.restore_scaler(run.scaler, loaded.state.get("scaler"), checkpoint)
        training.restore_average(run.average, loaded)
        vars(run.state).update(vars(training.restored_state(loaded)))
        _restore(self.detector, loaded.state)
        self._samples.clear()
        self._rewinds[loaded.step] += 1
        self.metrics.rewind(loaded.step)
        for record in self._gone_back:  # what was gone around before still is
            if record["rewound_to"] >= loaded.step:
                self.metrics.event("spike", record)
        more = {"action": "rewind", "rewound_to": loaded.step, "skipped_samples": list(around)}
        self._tell(spike, more, f"back to step {loaded.step}, samples {around[0]:,} to {around[1]:,} are skipped")
        return loaded.step

    def _around(self, loader: TokenLoader, samples: tuple[int, int], earliest: int) -> tuple[int, int]:
        """The samples of a spike and of ``rewind_margin`` updates on both sides, from those not trained on then."""
        margin, skipped = self.cfg.rewind_margin * loader.latest, loader.skipped
        first, end = (skipped.left_before(sample) for sample in samples)
        first = max(first - margin, skipped.left_before(earliest))
        wanted = skipped.samples(np.array([first, end + margin - 1])).tolist()
        return wanted[0], wanted[1] + 1

    # ------------------------------------------------------------------------------------------ words

    def _tell(self, spike: Spike, more: dict[str, Any], done: str) -> None:
        """The event and the lines of a spike; only rank 0 has a log and speaks."""
        run = self.run
        if not run.world.is_main:
            return
        windows, files = self._places(spike)
        record = spike.record({**more, **windows})
        self.metrics.event("spike", record)
        if record["action"] == "rewind":
            self._gone_back.append(record)
        numbers, limits = spike.numbers, spike.limits
        above = f"loss {numbers.loss:.4f} (limit {limits.loss:.4f})"
        above += f", gradient norm {numbers.grad_norm:.4g} (limit {limits.grad_norm:.4g})"
        run.reporter.say(f"spike at step {spike.step}: {above}{'; ' if done else ''}{done}")
        for line in files:
            run.reporter.say(f"  {line}")
        if spike.samples is not None and run.saves:
            first, end = spike.samples
            run.reporter.say(f"  automodel inspect-data {for_shell(run.run_folder)} --samples {first}:{end}")

    def _places(self, spike: Spike) -> tuple[dict[str, Any], list[str]]:
        """Where the samples of a spike lie: for its event, and in lines."""
        loader = self.run.loader
        if spike.samples is None or not isinstance(loader, TokenLoader):
            return {}, []
        left = [loader.skipped.left_before(sample) for sample in spike.samples]
        samples = loader.skipped.samples(np.arange(*left)) if left[0] < left[1] else np.arange(*spike.samples)
        places: list[list[Piece]] = []
        with contextlib.suppress(AutomodelError, OSError):  # of a file that has gone: the run goes on without
            places = places_of(loader.dataset, samples)
        windows = [
            {"sample": sample, **piece.to_json()}
            for sample, row in zip(samples.tolist(), places, strict=False)
            for piece in row
        ]
        return {"windows": windows[:_MOST_WINDOWS], "num_windows": len(samples)}, _by_file(places)


def _restore(detector: SpikeDetector, state: Mapping[str, Any]) -> None:
    """Let the detector go on from a checkpoint; one of a run that had none leaves it as new."""
    if state.get("spikes") is not None:
        detector.restore(state["spikes"])
    else:
        detector.restore(SpikeDetector(detector.rule).to_dict())


def _by_file(places: Sequence[Sequence[Piece]]) -> list[str]:
    """A line for each file of an update: its windows, from where to where, in which documents."""
    by_file: dict[tuple[str | None, Path], list[Piece]] = {}
    for piece in (piece for row in places for piece in row):
        by_file.setdefault((piece.stretch.source, piece.stretch.file), []).append(piece)
    lines = [_words(source, file, pieces) for (source, file), pieces in list(by_file.items())[:_MOST_FILES]]
    return lines + ([f"and {len(by_file) - _MOST_FILES} more files"] if len(by_file) > _MOST_FILES else [])


def _words(source: str | None, file: Path, pieces: Sequence[Piece]) -> str:
    count = f"{len(pieces)} windows" if len(pieces) > 1 else "1 window"
    first, end = min(piece.stretch.first for piece in pieces), max(piece.stretch.end for piece in pieces)
    numbers = sorted({one.number for piece in pieces for one in piece.documents if one.number is not None})
    shown = ", ".join(f"{number:,}" for number in numbers[:8]) + (" ..." if len(numbers) > 8 else "")
    documents = f", document{'s' if len(numbers) > 1 else ''} {shown}" if numbers else ""
    return f"{f'{source}: ' if source else ''}{file}: {count}, tokens {first:,} to {end:,}{documents}"
