"""Pretraining, in order: data, model, optimizer, resume, the loop, the last save.

The loop is ``run_train_validation_loop``; everything above it builds what it uses, everything below it is one thing
the loop does. Nothing here prints: lines, tables and the bar go through the ``Reporter`` that was handed in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automodel_cli import device as this_machine
from automodel_cli.assembly import data as data_assembly
from automodel_cli.assembly import facts as run_facts
from automodel_cli.assembly import model as model_assembly
from automodel_cli.assembly import summary, training
from automodel_cli.assembly import world as world_assembly
from automodel_cli.assembly.logs import open_logs, open_profile, tracker_missing
from automodel_cli.assembly.machine import batch_size
from automodel_cli.assembly.machine import memory as memory_assembly
from automodel_cli.assembly.machine.fast_path import FastPath, choose_fast_path
from automodel_cli.assembly.reporter import Reporter
from automodel_cli.assembly.run_folder import (
    WHAT,
    check_run_folder,
    diverged,
    find_checkpoint,
    open_run_folder,
    reason_not_to_save,
    unused,
)
from automodel_cli.assembly.scoring import during_training as evaluation
from automodel_cli.assembly.tokenizer import run_tokenizer
from automodel_cli.assembly.training_length import due, plan_training_length
from automodel_cli.batch import Batch
from automodel_cli.checkpoint import layout, nested_runs
from automodel_cli.checkpoint.all_ranks import all_ranks, on_rank_zero
from automodel_cli.checkpoint.checkpointer import check_fits
from automodel_cli.config.load import to_yaml
from automodel_cli.config.schema.commands import PretrainConfig
from automodel_cli.data.files.overlap import notes_on_overlap
from automodel_cli.data.packed_loader import PackedLoader
from automodel_cli.data.position import check_plan
from automodel_cli.distributed.heartbeat import Heartbeat
from automodel_cli.distributed.start import leave
from automodel_cli.distributed.world import World
from automodel_cli.errors import EXIT_PREEMPTED
from automodel_cli.evaluation.likelihood import Likelihood
from automodel_cli.evaluation.likelihood import evaluate as evaluate_likelihood
from automodel_cli.train.compiling import compile_model
from automodel_cli.train.deferred_metrics import Results, StepNumbers
from automodel_cli.train.preemption import Stopped, StopRequest
from automodel_cli.train.schedules import contradictions
from automodel_cli.train.soundness import Soundness
from automodel_cli.train.state import TrainState
from automodel_cli.train.step import StepResult, train_step


@dataclass(frozen=True)
class RunResult:
    """How a run ended; ``checkpoint`` is the newest one written or loaded, None where checkpoints are off."""

    step: int
    checkpoint: Path | None
    exit_code: int
    last_loss: float | None
    val_losses: Mapping[str, float]


@dataclass(frozen=True)
class _Update:
    """What the log wants to know of an update besides its numbers: where the run was then."""

    step: int
    epoch: int
    tokens_seen: int
    lr: float
    log: bool
    packed: Mapping[str, Any]


def run(
    cfg: PretrainConfig,
    *,
    fresh: bool = False,
    dry_run: bool = False,
    trust: Sequence[str] = (),
    profile: int | None = None,
    processes: int | None = None,
    reporter: Reporter | None = None,
) -> int:
    """Train as ``cfg`` says; the exit code is 0, or 75 when a signal stopped the run after a checkpoint.

    ``processes``: of the run that a ``dry_run`` is about; None: those that a launcher has started.
    """
    recipe = PretrainRecipe(cfg, fresh=fresh, trust=trust, profile=profile, reporter=reporter)
    if dry_run:
        recipe.plan(processes)
        return 0
    recipe.setup()
    result = recipe.run_train_validation_loop()
    leave(recipe.world)
    return result.exit_code


class PretrainRecipe:
    """A pretraining run as an object, for notebooks and scripts: ``setup()``, ``run_train_validation_loop()``.

    ``world``: the processes it runs in, where they have met already; None: as the environment says.
    ``profile``: updates to record with torch's profiler, once the run is warm; None: none.
    """

    def __init__(
        self,
        cfg: PretrainConfig,
        *,
        fresh: bool = False,
        trust: Sequence[str] = (),
        profile: int | None = None,
        reporter: Reporter | None = None,
        world: World | None = None,
    ) -> None:
        self.cfg = cfg
        self.fresh = fresh
        self.trust = tuple(trust)
        self.profile_updates = profile
        self.reporter = reporter or Reporter()
        self.world = world or World.single()
        self._joined = world is not None
        self.run_folder = Path(cfg.checkpoint.checkpoint_dir)
        self.stop = StopRequest(cfg.step_scheduler.preemption_signal)
        self.state = TrainState()
        self._saves = cfg.checkpoint.enabled
        self.fast_path: FastPath
        self.soundness = Soundness()
        self._val_losses: dict[str, float] = {}
        self._val_step: int | None = None
        self._saved_step: int | None = None

    # ------------------------------------------------------------------------------------------ building

    def setup(self) -> None:
        """Build everything the loop needs and take up an earlier checkpoint, if the run folder has one.

        The run folder is held from here to the end of the loop: a second run in it is refused. Started by torchrun
        or srun, this process first meets the others; only rank 0 speaks, logs, and holds the folder.
        """
        if not self._joined:
            self.world, self._joined = world_assembly.join(self.cfg), True
        if not self.world.is_main:
            self.reporter = Reporter()
        self.heartbeat = Heartbeat(self.world)
        with contextlib.ExitStack() as claim, self.heartbeat.collective_errors(lambda: "during set-up"):
            if self._saves:
                on_rank_zero(
                    self.world, lambda: claim.enter_context(layout.run_lock(self.run_folder)), what=WHAT
                )
            checkpoint = self._prepare()
            self._begin(checkpoint)
            self._claim = claim.pop_all()

    def plan(self, processes: int | None = None) -> None:
        """``--dry-run`` of a run in so many processes: what a run does before it has weights, and the plan.

        None: as many as a launcher has started.
        """
        self.world = world_assembly.planned(self.cfg, processes)
        if self._saves:
            layout.refuse_unusable(self.run_folder)
        checkpoint = self._prepare()
        would = f"would resume {checkpoint}" if checkpoint else "not made in a dry run"
        self._show_summary(would)
        if self._saves and self.fresh and nested_runs.files_of_run(self.run_folder):
            self.reporter.say(f"would move the earlier run to {unused(self.run_folder)}")
        if (line := tracker_missing(self.cfg)) is not None:
            self.reporter.say(line)

    def _prepare(self) -> Path | None:
        """All that can be refused before there are weights; returns the checkpoint to go on from.

        A run and its dry run both pass here, so that one refuses what the other does. Nothing is changed on the disk.
        """
        self._build()
        checkpoint = find_checkpoint(self.cfg, self.world, fresh=self.fresh, say=self.reporter.say)
        self._choose_fast_path(checkpoint)
        world_assembly.check_spread(self.cfg, self.model, self.world)
        check_run_folder(self.cfg, self.model, self.world, fresh=self.fresh)
        if checkpoint is None:
            model_assembly.check_weights(
                self.model,
                self.tokenizer,
                init_from=self.cfg.init_from,
                any_function=self.cfg.init_from_any_function,
            )
        self._build_optimizer()
        if checkpoint is not None:
            all_ranks(self.world, lambda: self._check_resume(checkpoint), what=f"loading {checkpoint}")
        return checkpoint

    def _check_resume(self, checkpoint: Path) -> None:
        facts = layout.read_step_manifest(checkpoint)["facts"]
        run_facts.refuse_other_run(facts, self._facts(), checkpoint)
        loaded = check_fits(checkpoint, model=self.model, optimizer=self.optimizer)
        training.restored_state(loaded)
        check_plan(loaded.loader_state, self.loader.plan)

    def _build_optimizer(self) -> None:
        self.optimizer = training.build_optimizer(
            self.cfg, self.model, self.device, self.fast_path, trust=self.trust
        )
        self.schedule = training.build_schedule(self.cfg, self.optimizer, self.training_length.total_steps)

    def _begin(self, checkpoint: Path | None) -> None:
        """Make room in the run folder, spread the model, give it weights, and open the logs."""
        self.checkpointer = open_run_folder(self.cfg, self.world, fresh=self.fresh, say=self.reporter.say)
        self.parallel = world_assembly.lay_out(self.cfg, self.model, self.world, self.fast_path)
        if self.fast_path.compile and not self.parallel.to_compile(self.fast_path.compile_scope):
            self._without_compile(
                "note: torch.compile stays off: it cannot follow tensor parallel, or bf16 over ranks on a CPU"
            )
        weights_from = model_assembly.init_or_load_weights(
            self.model,
            init_from=self.cfg.init_from if checkpoint is None else None,
            seed=self.cfg.rng_seed,
            device=self.device,
            any_function=self.cfg.init_from_any_function,
        )
        self.parallel.connect()
        self._build_optimizer()  # anew: spreading and weights have put other parameters into the model
        if checkpoint is not None:
            self._resume(checkpoint)
            weights_from = f"{checkpoint}, step {self.state.step}"
        self._show_summary(weights_from)
        self._open_logs()
        self.results: Results[_Update] = Results(self.device)
        if self.fast_path.compile:
            arguments = training.compile_arguments(self.cfg, self.fast_path)
            for part in self.parallel.to_compile(self.fast_path.compile_scope):
                compile_model(part, on_failure=self._without_compile, **arguments)

    def _without_compile(self, line: str) -> None:
        """Say that compilation failed, and remember it: a resume takes the path that this run took."""
        self.reporter.say(line)
        self.fast_path = dataclasses.replace(self.fast_path, compile=False)
        self.head_loss = training.build_head_loss(self.cfg, self.fast_path, trust=self.trust)

    def _build(self) -> None:
        """Data first: it is the cheapest thing that can be wrong. Weights come later."""
        cfg, scheduler = self.cfg, self.cfg.step_scheduler
        self.device = self.world.device
        this_machine.bound_the_heap()
        self.dataset = data_assembly.build_dataset(cfg, cfg.dataset, trust=self.trust)
        self.tokenizer = run_tokenizer(cfg, self.dataset)
        self.memory = memory_assembly.probe_device_memory(self.world)
        self.model = model_assembly.build_model(
            cfg.model, seed=cfg.rng_seed, trust=self.trust, on_meta=self.world.size > 1
        )
        data_assembly.check_fits(self.dataset, self.model, what="dataset")
        data_assembly.check_tokenizer(self.tokenizer, self.model)
        packing = data_assembly.packing_of(cfg)
        if packing is None:
            self.seq_len = data_assembly.sequence_length(self.dataset, self.model)
        else:
            data_assembly.check_packing(packing, self.dataset, self.model)
            self.seq_len = packing.size
        cfg = self._resolve_batch_size()
        self.loader = data_assembly.build_train_loader(cfg, self.dataset, self.world, trust=self.trust)
        self.val_sets = data_assembly.build_eval_sets(cfg, self.world, trust=self.trust)
        for name, (dataset, _) in self.val_sets.items():
            data_assembly.check_fits(dataset, self.model, what=f"validation set {name}")
        self.evaluation = evaluation.build_evaluation(cfg, self.model, self.tokenizer, self.reporter.say)
        self.training_length = plan_training_length(
            max_steps=scheduler.max_steps,
            num_epochs=scheduler.num_epochs,
            steps_in_epochs=data_assembly.steps_in_epochs(cfg, self.loader, self.world, self.reporter.say),
            tokens_per_step=scheduler.global_batch_size * self.seq_len,
        )

    def _resolve_batch_size(self) -> PretrainConfig:
        """Put a number in the place of ``local_batch_size: auto``."""
        stored: Mapping[str, Any] = {}
        if self.cfg.step_scheduler.local_batch_size == "auto" and not self.fresh:
            checkpoint = find_checkpoint(self.cfg, self.world, fresh=False, say=lambda line: None)
            stored = layout.read_step_manifest(checkpoint)["facts"] if checkpoint is not None else {}
        self.local_batch = batch_size.choose(
            self.cfg, self.model, self.world, self.memory, seq_len=self.seq_len, stored=stored
        )
        self.cfg = batch_size.settled(self.cfg, self.local_batch)
        return self.cfg

    def _choose_fast_path(self, checkpoint: Path | None) -> None:
        training.keep_compiled_code(self.cfg)
        stored = layout.read_step_manifest(checkpoint)["facts"] if checkpoint is not None else {}
        chosen = choose_fast_path(
            self.cfg,
            device=self.device,
            training_length=self.training_length,
            model=self.model,
            rows=self.cfg.step_scheduler.local_rows,
            seq_len=self.seq_len,
            stored=stored.get("fast_path"),
            processes=self.world.size,
        )
        self.fast_path = FastPath(**self.world.broadcast(dataclasses.asdict(chosen)))
        self.fast_path.apply(self.model)
        this_machine.configure_process(self.device, threads=self.fast_path.threads)
        self.head_loss = training.build_head_loss(self.cfg, self.fast_path, trust=self.trust)
        self.scaler = training.build_scaler(self.fast_path, self.device)

    def _resume(self, checkpoint: Path) -> None:
        facts = layout.read_step_manifest(checkpoint)["facts"]
        run_facts.refuse_other_run(facts, self._facts(), checkpoint)
        loaded = self.checkpointer.load(checkpoint, model=self.model, optimizer=self.optimizer)
        self.state = training.restored_state(loaded)
        self.loader.load_state_dict(loaded.loader_state)
        training.restore_scaler(self.scaler, loaded.state.get("scaler"), checkpoint)
        for line in run_facts.changes(loaded, self._facts(), self.cfg):
            self.reporter.say(line)
        if checkpoint.parent.resolve() == self.run_folder.resolve():
            self._saved_step = self.state.step

    def load_checkpoint(self, restore_from: str = "LATEST") -> None:
        """After ``setup()``, take up another checkpoint: LATEST, BEST, a step's folder name or a path."""
        self._resume(layout.resolve(self.run_folder, restore_from, say=self.reporter.say))

    def _open_logs(self) -> None:
        self.metrics = open_logs(
            self.cfg,
            self.run_folder,
            step=self.state.step,
            total_steps=self.training_length.total_steps,
            world=self.world,
            reporter=self.reporter,
        )
        self.throughput = training.build_throughput(
            self.model,
            seq_len=self.seq_len,
            total_steps=self.training_length.total_steps,
            precision=self.fast_path.precision,
            device=self.device,
            world_size=self.world.size,
            mfu=self.cfg.mfu,
        )
        self.profile = open_profile(
            self.profile_updates,
            self.run_folder if self._saves else None,
            world=self.world,
            reporter=self.reporter,
            aside=self.throughput.pause,
        )

    # ------------------------------------------------------------------------------------------ the loop

    def run_train_validation_loop(self) -> RunResult:
        """Train to the last step or to a signal, logging, validating and saving on the way."""
        every, last = self.cfg.step_scheduler, self.training_length.total_steps
        with (
            self._claim,
            self.heartbeat.collective_errors(lambda: f"after step {self.state.step}"),
            self.stop.listening(),
            self._logs_closed(),
            self._saves_finished(),
            training.gc_control(every.gc_every_steps) as collect,
            self.profile as profile,
        ):
            for microbatches in self._updates(last):
                lr = self.schedule.apply(self.optimizer, self.state.step)
                result = self._train_step(microbatches)
                self.state.advance(self.loader.epoch, self.training_length.tokens_per_step)
                step = self.state.step
                self.heartbeat.beat(step)

                log = due(step, every=every.log_every_steps, last=last)
                with profile.phase("logging"):
                    packed = self._packed()
                    self.results.add(
                        _Update(step, self.state.epoch, self.state.tokens_seen, lr, log, packed), result
                    )
                    self._report(self.results.arrived())
                save, evaluate = self._save_due() or self._can_make_up(), self.evaluation.due(step, last)
                validate = evaluate or (save and every.validate_on_checkpoint)
                if validate or due(step, every=every.val_every_steps, last=last):
                    with profile.phase("validation"):
                        self._report(self.results.all())
                        self._validate()
                if evaluate:
                    with profile.phase("validation"):
                        self.evaluation.run(self)
                stopping = self.stop.agreed(self.world.any)
                if save or stopping:
                    with profile.phase("saving"):
                        self._save(stopping=stopping)
                if stopping:
                    break
                self.checkpointer.raise_failure()
                collect(step)
                profile.step(step)
            else:
                self._end_with_the_data(last)
            self._report(self.results.all())
            if self.soundness.owed and self.state.step >= last:
                raise diverged(self.checkpointer, f"the run ended at step {last} without a checkpoint of it")
        return self._result()

    def _updates(self, last: int) -> Iterator[list[Batch]]:
        """The micro-batches of each update that is still to do."""
        if self.state.step >= last:
            self.reporter.say(f"nothing to do: step {self.state.step} of {last} is already trained")
            return
        for number, microbatches in enumerate(self.profile.each("data wait", self.loader)):
            with self.profile.phase("copy to device"):
                here = [
                    self.parallel.shard_batch(one.to(self.device, non_blocking=True)) for one in microbatches
                ]
            yield here
            if number == 0:  # all is compiled: from now on who is late hangs
                if self._saves:
                    self.checkpointer.prepare(model=self.model, optimizer=self.optimizer)
                world_assembly.set_timeouts(self.cfg, self.world)
            if self.state.step >= last:
                return

    def _train_step(self, microbatches: Sequence[Batch]) -> StepResult:
        return train_step(
            self.parallel.call,
            self.head_loss,
            self.optimizer,
            microbatches,
            max_norm=self.cfg.max_norm,
            autocast_dtype=self.fast_path.autocast_dtype,
            scaler=self.scaler,
            ranks=self.parallel.ranks,
            dropout_seed=training.dropout_seed(self.cfg, self.model, self.state.step, self.world),
            phase=self.profile.phase,
        )

    def _packed(self) -> Mapping[str, Any]:
        """How full the packs of the last update were, where rows are packed."""
        if not isinstance(self.loader, PackedLoader):
            return {}
        long_rows = {"long_rows": self.loader.long_rows} if self.loader.long_rows else {}
        return {"packing_efficiency": self.loader.efficiency, **long_rows}

    def _save_due(self) -> bool:
        every = self.cfg.step_scheduler
        if not self._saves:
            return False
        epoch_ends = every.save_checkpoint_every_epoch and self._epoch_ends()
        return epoch_ends or due(
            self.state.step, every=every.ckpt_every_steps, last=self.training_length.total_steps
        )

    def _can_make_up(self) -> bool:
        """Whether a save that could not be made when it fell due can be made now, by the numbers of this update."""
        if not self.soundness.owed:
            return False
        self._report(self.results.all())
        return self.soundness.reason_not_to_save(at_the_end=False) is None

    def _epoch_ends(self) -> bool:
        """Whether this update is the first to reach (or pass) the end of an epoch."""
        return self.loader.epoch_ended

    # ------------------------------------------------------------------------------------- what it does

    def _report(self, updates: Iterable[tuple[_Update, StepNumbers]]) -> None:
        """Count and log updates whose numbers have come from the device; on a GPU that is one update late."""
        for update, numbers in updates:
            self.state.count_skip(numbers.skipped)
            mean = self.state.mean_loss(numbers.loss, self.cfg.step_scheduler.loss_average_window_steps)
            self.throughput.step(self.training_length.tokens_per_step)
            self.soundness.latest = numbers
            if not self.soundness.diverged:
                self.checkpointer.confirm(update.step)
            if update.log:
                self._log(update, numbers, {} if mean is None else {"loss_avg": mean})
            self._abort_on_nan()

    def _log(self, update: _Update, numbers: StepNumbers, more: dict[str, float]) -> None:
        self.metrics.train(
            {
                "step": update.step,
                "epoch": update.epoch,
                "loss": numbers.loss,
                "grad_norm": numbers.grad_norm,
                "lr": update.lr,
                "num_label_tokens": numbers.num_label_tokens,
                "tokens_seen": update.tokens_seen,
                "skipped": numbers.skipped,
                **update.packed,
                **more,
                **self.throughput.read(update.step),
            }
        )
        self.reporter.progress(update.step, self.training_length.total_steps, f"loss {numbers.loss:.4f}")

    def _abort_on_nan(self) -> None:
        limit = self.cfg.step_scheduler.max_skipped_steps
        if limit is None or self.state.skipped_in_a_row < limit:
            return
        what = (
            f"stopped at step {self.state.step}: loss or gradient of the last {limit} updates was not finite"
        )
        raise diverged(self.checkpointer, what)

    def _end_with_the_data(self, last: int) -> None:
        """Validate and save where a data set without a known length has ended before the last update."""
        step, every = self.state.step, self.cfg.step_scheduler
        if step >= last:
            return
        self.reporter.say(f"the data ended after step {step} of {last} (step_scheduler.num_epochs)")
        if every.val_every_steps is not None:
            self._report(self.results.all())
            self._validate()
        if every.ckpt_every_steps is not None:
            self._save()

    def _validate(self) -> None:
        """Score every validation set on the weights as they are now; a signal ends it without a score."""
        if self._val_step == self.state.step:
            return
        losses = {}
        with self.throughput.pause(), contextlib.suppress(Stopped):
            for name, (_, loader) in self.val_sets.items():
                scores = evaluate_likelihood(
                    self.model,
                    map(self.parallel.shard_batch, self.stop.until(loader, self.world.any)),
                    head_loss=self.head_loss,
                    token_bytes=self.tokenizer.token_bytes() if self.tokenizer else None,
                    device=self.device,
                    autocast_dtype=self.fast_path.autocast_dtype,
                    sum_over_ranks=self.world.sum,
                )
                losses[name] = scores.loss
                self._log_validation(name, scores)
            self._val_losses, self._val_step = losses, self.state.step

    def _log_validation(self, name: str, scores: Likelihood) -> None:
        best = name == self._best_key and scores.loss < self.state.best_val_loss
        where = {"step": self.state.step, "epoch": self.state.epoch, "name": name, "best": best}
        self.metrics.validation({**where, **scores.as_dict()})

    @property
    def _best_key(self) -> str:
        """The validation set that decides which checkpoint is best."""
        wanted = self.cfg.checkpoint.best_metric_key
        return wanted if wanted in self.val_sets else next(iter(self.val_sets), wanted)

    def _save(self, *, stopping: bool = False) -> None:
        """Write the checkpoint of this step; it is BEST if its validation loss is the lowest of those saved.

        ``stopping``: all ranks have agreed that this is the last one; a signal may have come to one of them since.
        """
        if not self._saves or self._saved_step == self.state.step:
            return
        self._report(self.results.all())
        if not self._may_save(stopping=stopping):
            return
        losses = self._val_losses if self._val_step == self.state.step else {}
        loss = losses.get(self._best_key, math.inf)
        is_best = loss < self.state.best_val_loss
        if is_best:
            self.state.best_val_loss = loss
        why = f" ({self.stop.name} received)" if stopping else ""
        started = time.perf_counter()
        with self.throughput.pause():
            folder = self.checkpointer.save(
                self.state.step,
                model=self.model,
                optimizer=self.optimizer,
                state={
                    "train": self.state.to_dict(),
                    "scaler": self.scaler.state_dict() if self.scaler is not None else None,
                },
                loader_state=data_assembly.position(self.loader, self.world),
                config_yaml=to_yaml(self.cfg),
                facts=self._facts(),
                tokenizer_folder=self.tokenizer.folder if self.tokenizer else None,
                metrics={"loss": self.soundness.last_loss, "val_loss": losses},
                is_best=is_best,
                proven=any(map(math.isfinite, losses.values())),
                consolidate=self._consolidate_due(),
                remark=why,
            )
        self._saved_step = self.state.step
        if not self.checkpointer.is_async:
            self.reporter.say(f"saved {folder} in {time.perf_counter() - started:.1f} s{why}")

    def _may_save(self, *, stopping: bool) -> bool:
        """Whether loss and weights are numbers; if not, the save is owed, or the earlier checkpoint is the newest."""
        at_the_end = stopping or self.state.step >= self.training_length.total_steps
        reason = reason_not_to_save(self.soundness, self.model, self.world, at_the_end=at_the_end)
        if reason is not None and not self.soundness.owed:
            self.reporter.say(f"step {self.state.step} is not saved: {reason}")
        self.soundness.owed = reason is not None
        if reason is not None and stopping:
            self.checkpointer.step_back()
        return reason is None

    def _consolidate_due(self) -> bool:
        wanted = self.cfg.checkpoint.save_consolidated
        return wanted == "every" or (
            wanted == "final" and self.state.step >= self.training_length.total_steps
        )

    @contextlib.contextmanager
    def _saves_finished(self) -> Iterator[None]:
        """What is still being written in the background is finished however the loop ends."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):  # the loop's own error is the one to tell
                self.checkpointer.wait()
            raise
        self.checkpointer.wait()

    @contextlib.contextmanager
    def _logs_closed(self) -> Iterator[None]:
        """The metrics file and W&B are finished however the loop ends."""
        try:
            yield
        except BaseException:
            self.metrics.close(ok=False)
            raise
        self.metrics.close(ok=True)

    def _result(self) -> RunResult:
        saved = self._saved_step
        return RunResult(
            step=self.state.step,
            checkpoint=None if saved is None else layout.step_folder(self.run_folder, saved),
            exit_code=EXIT_PREEMPTED if self.stop.agreed(self.world.any) else 0,  # also during the last save
            last_loss=self.soundness.last_loss,
            val_losses=dict(self._val_losses),
        )

    # ------------------------------------------------------------------------------------- what it says

    def _facts(self) -> dict[str, Any]:
        """What a checkpoint of this run says of itself, beyond tensors and counters."""
        scheduler = self.cfg.step_scheduler
        return run_facts.collect(
            model=self.model,
            target=self.cfg.model,
            dataset=self.dataset,
            tokenizer=self.tokenizer,
            optimizer=self.optimizer,
            schedule=self.schedule,
            fast_path=self.fast_path,
            batch=(scheduler.global_batch_size, scheduler.local_rows),
        )

    def _show_summary(self, weights_from: str) -> None:
        held_out = {f"validation: {name}": dataset for name, (dataset, _) in self.val_sets.items()}
        datasets = {"training data": self.dataset, **held_out}
        self.peak = memory_assembly.predict(
            self.cfg,
            self.model,
            self.world,
            seq_len=self.seq_len,
            local_batch_size=self.local_batch.rows,
            precision=self.fast_path.precision,
            residual=self.fast_path.residual,
            compiled=self.fast_path.compile,
            scope=self.fast_path.compile_scope,
            head_loss=self.fast_path.head_loss,
            resident=self.memory.resident if self.memory else 0,
            tasks=self.evaluation.forward_size(self.device.type, self.model.max_seq_len),
        )
        notes = [*self.cfg.notes, *world_assembly.notes(self.cfg, self.device.type), *self.model.notes]
        notes += contradictions(self.schedule, self.training_length.total_steps)
        notes += memory_assembly.notes(self.peak, self.memory)
        notes += notes_on_overlap(self.dataset, held_out)
        if self._saves and self.world.is_main:
            notes += nested_runs.notes(self.run_folder)
        for note in [*notes, *data_assembly.notes(self.loader, *datasets.values())]:
            self.reporter.say(f"note: {note}")
        if (blend := summary.blend_table(datasets)) is not None:
            self.reporter.columns(*blend)
        rows = [
            *summary.model_rows(self.model, weights_from=weights_from),
            *(summary.data_row(name, dataset) for name, dataset in datasets.items()),
            *summary.packing_rows(self.loader, self.world),
            *summary.schedule_rows(
                self.cfg,
                self.training_length,
                self.schedule,
                dp_world=self.world.dp_world,
                why=self.local_batch.reason,
            ),
            *world_assembly.rows(self.cfg, self.world),
            *summary.fast_path_rows(self.fast_path, self.device),
            *summary.cost_rows(self.model, self.training_length, self.seq_len, self.peak, self.memory),
            ("run folder", f"{self.run_folder}" if self._saves else "none: checkpoints are off"),
        ]
        self.reporter.table("pretrain llm", rows)


TrainFinetuneRecipeForNextTokenPrediction = PretrainRecipe
"""The name the guides use."""
