"""What a run knows and holds only while it trains, and what follows its updates: log, validate, evaluate, save."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

from automodel_cli.assembly import data as data_assembly
from automodel_cli.assembly import training
from automodel_cli.assembly.logs import open_logs, open_profile
from automodel_cli.assembly.run_folder import diverged, reason_not_to_save
from automodel_cli.checkpoint import layout
from automodel_cli.config.load import to_yaml
from automodel_cli.data.objective import losses_by_source
from automodel_cli.errors import EXIT_PREEMPTED
from automodel_cli.metrics.log import MetricsLog
from automodel_cli.metrics.profile import NoProfile
from automodel_cli.metrics.throughput import Throughput
from automodel_cli.recipes.pretraining.copies import Copies
from automodel_cli.recipes.pretraining.run import Run, RunResult
from automodel_cli.recipes.pretraining.spikes import SpikeWatch
from automodel_cli.recipes.pretraining.validation import Validation
from automodel_cli.train.compiling import compile_model, eagerly
from automodel_cli.train.deferred_metrics import DeferredMetrics, read_now
from automodel_cli.train.preemption import Stopped
from automodel_cli.train.soundness import Soundness
from automodel_cli.train.step import StepMetrics


@dataclass(frozen=True)
class Update:
    """Where the run was after an update, and whether that is logged; its numbers come later."""

    step: int
    epoch: int
    tokens: int  # of this update, over all ranks
    tokens_seen: int
    lr: float
    log: bool
    rows: Mapping[str, Any]  # what is said of them


@dataclass
class Progress:
    """A run while it trains."""

    run: Run
    metrics: MetricsLog
    throughput: Throughput
    profile: NoProfile
    deferred: DeferredMetrics[Update]  # numbers of updates that are still on their way from the device
    saved_step: int | None  # of the newest checkpoint in the run folder that this run wrote or goes on from
    draws_random_numbers: bool  # the model has dropout
    last: int  # the update that ends training; where the time does, it is known only then
    compiled: bool  # torch.compile was asked for and has not failed so far
    validation: Validation
    copies: Copies  # of checkpoints, elsewhere
    spikes: SpikeWatch | None  # None: nobody looks for them
    saved_with_less: bool = False  # than the last one has: hf/, or an upload
    soundness: Soundness = field(default_factory=Soundness)
    validated_step: int | None = None  # validated_step, val_losses: the newest validation that was finished
    val_losses: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def begin(cls, run: Run) -> Progress:
        """Open the logs, compile the model, start the stopwatch."""
        last = run.training_length.known_steps
        throughput = training.build_throughput(
            run.model,
            seq_len=run.seq_len,
            total_steps=last,
            precision=run.fast_path.precision,
            device=run.device,
            world_size=run.world.size,
            mfu=run.cfg.mfu,
        )
        metrics = open_logs(
            run.cfg,
            run.run_folder,
            step=run.state.step,
            total_steps=last,
            world=run.world,
            reporter=run.reporter,
        )
        progress = cls(
            run=run,
            metrics=metrics,
            throughput=throughput,
            profile=open_profile(
                run.options.profile,
                run.run_folder if run.saves else None,
                world=run.world,
                reporter=run.reporter,
                aside=throughput.pause,
            ),
            deferred=DeferredMetrics(run.device),
            saved_step=run.state.step if run.goes_on else None,
            draws_random_numbers=run.model.has_dropout(),
            last=run.training_length.total_steps,
            compiled=run.fast_path.compile,
            validation=Validation(run, metrics),
            copies=Copies.begin(run),
            spikes=SpikeWatch.begin(run, metrics),
        )
        progress._compile()
        return progress

    def _compile(self) -> None:
        run = self.run
        if not self.compiled:
            return
        arguments = training.compile_arguments(run.cfg, run.fast_path)
        for part in run.parallel.to_compile(run.fast_path.compile_scope):
            compile_model(part, on_failure=self._go_on_eagerly, **arguments)

    def _go_on_eagerly(self, line: str) -> None:
        """Say that compilation failed, and remember it: a resume takes the path that this run took."""
        self.run.reporter.say(line)
        self.compiled = False
        training.unfuse(self.run.head_loss)

    # ------------------------------------------------------------------------------------------ log

    def follow(self, update: Update, metrics: StepMetrics[Any]) -> None:
        """Take the numbers of an update from the device, and count and log those that have arrived."""
        with self.profile.phase("logging"):
            self.deferred.add(update, metrics)
            if self.spikes is not None:
                self.spikes.launched(update.step)
            self._report(self.deferred.arrived())

    def report_all(self) -> None:
        """Count and log all updates there are; waits for the device."""
        self._report(self.deferred.all())

    def _report(self, updates: Iterable[tuple[Update, StepMetrics[float]]]) -> None:
        """Count and log updates whose numbers have come from the device; on a GPU that is one update late."""
        run = self.run
        for update, numbers in updates:
            spike = self.spikes is not None and self.spikes.judge(update.step, numbers)
            if spike:  # left out or not, its numbers are finite and so are the weights
                numbers = replace(numbers, skipped=False)
            run.state.count_skip(bool(numbers.skipped))
            mean = run.state.mean_loss(numbers.loss, run.cfg.step_scheduler.loss_average_window_steps)
            self.throughput.step(update.tokens)
            self.soundness.latest = numbers
            if not self.soundness.diverged:
                run.checkpointer.confirm(update.step)
            if update.log:
                self._log(update, numbers, {} if mean is None else {"loss_avg": mean}, spike=spike)
            self._abort_on_nan()

    def _log(self, update: Update, numbers: StepMetrics[float], more: dict[str, float], *, spike: bool = False) -> None:
        place = {"step": update.step, "epoch": update.epoch}
        fields = {
            "loss": numbers.loss,
            "grad_norm": numbers.grad_norm,
            "lr": update.lr,
            "num_label_tokens": numbers.num_label_tokens,
            "tokens_seen": update.tokens_seen,
            "skipped": numbers.skipped,
            **({"spike": True} if spike else {}),
        }
        run = self.run
        told_apart = losses_by_source(run.sources, numbers.by_source, self.validation.objective)
        speed = self.throughput.read(update.step)
        self.metrics.train({**place, **fields, **told_apart, **update.rows, **more, **speed})
        run.reporter.progress(update.step, run.training_length.known_steps or 0, f"loss {numbers.loss:.4f}")

    def went_back(self, *, all_told: bool) -> bool:
        """Whether the run has gone back to before a spike; all ranks get the same answer.

        ``all_told``: the updates whose numbers are still on the device are judged first: something follows that must
        not see a spike.
        """
        watch = self.spikes
        if watch is None or not watch.goes_back:
            return False
        if all_told:
            self.report_all()
        spikes = watch.agreed()
        if not spikes:
            return False
        checkpoint, why_not = watch.checkpoint_before(spikes[0])
        if checkpoint is None:
            watch.only_note(spikes, why_not)
            return False
        self.deferred.forget()
        self.saved_step = watch.go_back(spikes[0], checkpoint)
        self.soundness, self.validated_step, self.val_losses = Soundness(), None, {}
        return True

    def limits(self) -> Tensor | None:
        """What the next update is left out above; None: nothing."""
        return None if self.spikes is None else self.spikes.limits(self.deferred.pending)

    def _abort_on_nan(self) -> None:
        run, limit = self.run, self.run.cfg.step_scheduler.max_skipped_steps
        if limit is not None and run.state.skipped_in_a_row >= limit:
            where = f"stopped at step {run.state.step}"
            what = f"{where}: loss or gradient of the last {limit} updates was not finite"
            raise diverged(run.checkpointer, what)

    # ------------------------------------------------------------------------------------------ validate

    def validate(self) -> bool:
        """Score every validation set on the weights as they are now; False: a signal ended it without a score.

        Before the first update nothing is compiled: the shapes of these batches would shape the code of training.
        """
        run = self.run
        with self.profile.phase("validation"):
            self.report_all()
            as_is = contextlib.nullcontext() if run.state.step else eagerly()
            with self.throughput.pause(), contextlib.suppress(Stopped), as_is:
                self.val_losses, self.validated_step = self.validation.losses(), run.state.step
                return True
        return False

    def evaluate(self) -> bool:
        """Put tasks and prompts to the model; False: a signal ended it."""
        with self.profile.phase("validation"):
            return self.run.evaluation.run(self.run, self.metrics, self.throughput)

    # ------------------------------------------------------------------------------------------ save

    def can_make_up(self, metrics: StepMetrics[Any]) -> bool:
        """Whether a save that could not be made when it fell due can be made after an update of these numbers."""
        if not self.soundness.owed:
            return False
        return Soundness(read_now(metrics)).reason_not_to_save(at_the_end=False) is None

    def save(self, *, stopping: bool = False) -> None:
        """Write the checkpoint of this step; it is BEST if its validation loss is the lowest of those saved.

        ``stopping``: all ranks have agreed that this is the last one; a signal may have come to one of them since.
        """
        with self.profile.phase("saving"):
            self.report_all()
            if self.may_save(stopping=stopping):
                self._write(f" ({self.run.stop.name} received)" if stopping else "")

    def may_save(self, *, stopping: bool) -> bool:
        """Whether loss and weights are numbers; if not, the save is owed, or the earlier checkpoint is the newest."""
        run, soundness = self.run, self.soundness
        at_the_end = stopping or run.state.step >= self.last
        reason = reason_not_to_save(soundness, run.model, run.world, at_the_end=at_the_end)
        if reason is not None and not soundness.owed:
            run.reporter.say(f"step {run.state.step} is not saved: {reason}")
        soundness.owed = reason is not None
        if reason is not None and stopping:
            run.checkpointer.step_back()
        return reason is None

    def _write(self, why: str) -> None:
        run, state = self.run, self.run.state
        losses = self.val_losses if self.validated_step == state.step else {}
        loss = losses.get(self.validation.best_key, math.inf)
        is_best = loss < state.best_val_loss
        state.best_val_loss = loss if is_best else state.best_val_loss
        wanted = run.cfg.checkpoint.save_consolidated
        is_last = state.step >= self.last
        uploaded = self.copies.is_uploaded(is_best=is_best, is_last=is_last)
        consolidate = wanted == "every" or (wanted == "final" and is_last) or uploaded
        facts, started = run.facts.to_json(), time.perf_counter()
        averages, of_average = ({}, None) if run.average is None else run.average.saved()
        kept = {} if of_average is None else {"ema": of_average}
        kept |= {} if self.spikes is None else {"spikes": self.spikes.detector.to_dict()}
        with self.throughput.pause():
            folder = run.checkpointer.save(
                state.step,
                model=run.model,
                optimizer=run.optimizer,
                state={"train": state.to_dict(), "scaler": run.scaler.state_dict() if run.scaler else None, **kept},
                loader_state=data_assembly.position(run.loader, run.world),
                config_yaml=to_yaml(run.cfg),
                # That compiling failed has come to light since.
                facts={**facts, "fast_path": {**facts["fast_path"], "compile": self.compiled}},
                tokenizer_folder=run.tokenizer.folder if run.tokenizer else None,
                metrics={"loss": self.soundness.last_loss, "val_loss": losses},
                is_best=is_best,
                proven=any(map(math.isfinite, losses.values())),
                consolidate=consolidate,
                remark=why,
                average=averages,
                then=partial(self.copies.add, uploaded=uploaded),
            )
        self.saved_step = state.step
        last_is_uploaded = self.copies.is_uploaded(is_best=is_best, is_last=True)
        self.saved_with_less = (last_is_uploaded and not uploaded) or (wanted == "final" and not consolidate)
        if not run.checkpointer.is_async:
            run.reporter.say(f"saved {folder} in {time.perf_counter() - started:.1f} s{why}")

    # ------------------------------------------------------------------------------------------ end

    @contextlib.contextmanager
    def finished(self) -> Iterator[None]:
        """Saves in the background and logs are finished however the loop ends; its own error is the one to tell."""
        try:
            yield
            self.run.checkpointer.wait()
            self.copies.finish()
        except BaseException as error:
            with contextlib.suppress(Exception):
                self.run.checkpointer.wait()
                self.copies.give_up(error)
            self.metrics.close(ok=False)
            raise
        self.metrics.close(ok=True)

    def result(self) -> RunResult:
        """How the run has ended; a signal may have come during the last save."""
        run, saved = self.run, self.saved_step
        return RunResult(
            step=run.state.step,
            checkpoint=None if saved is None else layout.step_folder(run.run_folder, saved),
            exit_code=EXIT_PREEMPTED if run.stop.agreed(run.world.any) else 0,
            last_loss=self.soundness.last_loss,
            val_losses=dict(self.val_losses),
        )
