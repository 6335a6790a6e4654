"""The training loop: one update after another, and what follows each, on one page."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import islice
from typing import Any

from automodel_cli.assembly import training
from automodel_cli.assembly.run_folder import diverged
from automodel_cli.batch import Batch
from automodel_cli.distributed import start
from automodel_cli.recipes.pretraining.events import Intervals
from automodel_cli.recipes.pretraining.progress import Progress, Update
from automodel_cli.recipes.pretraining.run import Run, RunResult
from automodel_cli.train.step import StepMetrics, train_step


def train(run: Run) -> RunResult:
    """Train to the last step or to a signal, logging, validating, evaluating and saving on the way."""
    state, last = run.state, run.training_length.total_steps
    intervals = Intervals.of(run.cfg, last)
    with contextlib.ExitStack() as stack:
        stack.enter_context(run.claim)
        stack.enter_context(run.heartbeat.collective_errors(lambda: f"after step {state.step}"))
        stack.enter_context(run.stop.listening())
        progress = Progress.begin(run)
        stack.enter_context(progress.finished())
        collect = stack.enter_context(training.gc_control(run.cfg.step_scheduler.gc_every_steps))
        profile = stack.enter_context(progress.profile)

        if state.step >= last:
            run.reporter.say(f"nothing to do: step {state.step} of {last} is already trained")
        if intervals.before_the_first(state.step).validate:
            progress.validate()
        is_first = True
        for microbatches in _updates(progress):
            lr = run.schedule.apply(run.optimizer, state.step)
            metrics = one_update(progress, microbatches)
            tokens = run.loader.latest * run.seq_len
            state.advance(run.loader.epoch, tokens)
            run.heartbeat.beat(state.step)

            time_is_up = run.training_length.timed and run.deadline.near()
            stopping, save_failed, time_is_up = run.world.any_of(
                run.stop.requested, run.checkpointer.failed, time_is_up
            )
            if time_is_up:
                progress.last = last = state.step
                intervals = replace(intervals, last=last)
                run.reporter.say(f"the time is up: step {last} is the last ({run.training_length.reason})")
            events = intervals.after(
                state.step,
                stopping=run.stop.heard(stopping),
                epoch_ended=run.loader.epoch_ended,
                save_owed=progress.can_make_up(metrics),
            )
            now = Update(state.step, state.epoch, tokens, state.tokens_seen, lr, events.log, run.loader.of_latest)
            progress.follow(now, metrics)
            if progress.went_back(all_told=events.validate or events.evaluate or events.save or events.stop):
                continue
            if save_failed:
                run.checkpointer.wait()
            went_on = not events.stop
            if events.validate:
                with run.deadline.timing("validation"):
                    went_on = progress.validate()
            if events.evaluate and went_on:
                went_on = progress.evaluate()
            if run.saves and (events.save or not went_on):
                with run.deadline.timing("save"):
                    progress.save(stopping=not went_on)
            if not went_on or time_is_up:
                break
            if is_first:
                _after_the_first_update(run)
                is_first = False
            collect(state.step)
            profile.step(state.step)
        else:
            if state.step < last:
                _end_with_the_data(progress, intervals)
        progress.report_all()
        if progress.soundness.owed and state.step >= last:
            raise diverged(run.checkpointer, f"the run ended at step {last} without a checkpoint of it")
    return progress.result()


def one_update(progress: Progress, microbatches: Sequence[Batch]) -> StepMetrics[Any]:
    """One update of the weights from the micro-batches of this rank."""
    run, profile = progress.run, progress.profile
    with profile.phase("copy to device"):
        here = [run.parallel.shard_batch(one.to(run.device, non_blocking=True)) for one in microbatches]
    random = progress.draws_random_numbers
    metrics = train_step(
        run.parallel.train_module,
        run.head_loss,
        run.optimizer,
        here,
        max_norm=run.cfg.max_norm,
        autocast_dtype=run.fast_path.autocast_dtype,
        scaler=run.scaler,
        ranks=run.parallel.grad_sync,
        dropout_seed=training.dropout_seed(run.cfg, run.state.step, run.world) if random else None,
        limits=progress.limits(),
        phase=profile.phase,
        sources=len(run.sources),
    )
    if run.average is not None:
        with profile.phase("average of weights"):
            run.average.update(run.state.step + 1, metrics.skipped)
    return metrics


def _updates(progress: Progress) -> Iterator[Sequence[Batch]]:
    """The micro-batches of each update to the last; after the run has gone back, from where it is then."""
    run = progress.run
    reading = True
    while reading:
        reading, before = False, run.state.step
        batches = iter(progress.profile.each("data wait", run.loader))
        for microbatches in islice(batches, max(0, progress.last - before)):
            yield microbatches
            if run.state.step <= before:
                reading = True
                break
            before = run.state.step


def _after_the_first_update(run: Run) -> None:
    """All is compiled and the optimizer has its state: make room for saves; from now on who is late hangs."""
    if run.saves:
        averages = None if run.average is None else run.average.tensors
        run.checkpointer.prepare(model=run.model, optimizer=run.optimizer, average=averages)
    start.set_timeouts(run.world, timedelta(minutes=run.cfg.dist_env.timeout_minutes))


def _end_with_the_data(progress: Progress, intervals: Intervals) -> None:
    """Validate and save where a data set without a known length has ended before the last update."""
    run, step = progress.run, progress.run.state.step
    run.reporter.say(f"the data ended after step {step} of {intervals.last} (step_scheduler.num_epochs)")
    progress.last = step
    events = intervals.at_the_end_of_the_data()
    if events.validate and progress.validated_step != step:
        progress.validate()
    if events.save and (progress.saved_step != step or progress.saved_with_less):
        progress.save()
