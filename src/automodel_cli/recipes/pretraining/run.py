"""A pretraining run as a value that grows: opened, loaded, planned, ready to train; and how it ended."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from automodel_cli.assembly.data import TrainLoader
from automodel_cli.assembly.facts import Facts, PrecisionFacts, data_facts, lineage_of, stage_of, versions
from automodel_cli.assembly.machine.batch_size import LocalBatch
from automodel_cli.assembly.machine.fast_path import FastPath
from automodel_cli.assembly.machine.memory import DeviceMemory, predict
from automodel_cli.assembly.own_model import code_facts
from automodel_cli.assembly.reporter import Reporter
from automodel_cli.assembly.scoring.during_training import RunEvaluation
from automodel_cli.assembly.tokenizer import RunTokenizer
from automodel_cli.assembly.training_length import TrainingLength
from automodel_cli.assembly.world import parallel_config
from automodel_cli.checkpoint.checkpointer import Checkpointer
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.data.eval_loader import EvalLoader
from automodel_cli.data.interface import source_of
from automodel_cli.distributed.heartbeat import Heartbeat
from automodel_cli.distributed.parallelize import ParallelModel
from automodel_cli.distributed.world import World
from automodel_cli.models.interface import CausalLM, count_parameters
from automodel_cli.sizing.memory import PeakMemory
from automodel_cli.train.averaging import AverageRule, WeightAverage
from automodel_cli.train.deadline import Deadline
from automodel_cli.train.preemption import StopRequest
from automodel_cli.train.row_losses import tells_rows
from automodel_cli.train.schedules import Schedule
from automodel_cli.train.state import TrainState

Stage = TypeVar("Stage", bound="OpenedRun")


@dataclass(frozen=True)
class RunOptions:
    """What a command line says of a run beside its configuration."""

    fresh: bool = False  # move an earlier run in the folder aside and begin
    trust: tuple[str, ...] = ()  # files and modules whose code may be called
    profile: int | None = None  # updates to record with torch's profiler, once the run is warm; None: none
    accept_data_change: bool = False  # go on with another mixture this once


NO_OPTIONS = RunOptions()


@dataclass(frozen=True)
class OpenedRun:
    """A run whose data, model and checkpoint were found: the first stage of a plan."""

    cfg: PretrainConfig  # the configuration, later with a number in the place of ``local_batch_size: auto``
    options: RunOptions
    world: World
    reporter: Reporter
    stop: StopRequest
    deadline: Deadline  # when it has to be over
    dataset: Any
    tokenizer: RunTokenizer | None
    model: CausalLM
    seq_len: int
    memory: DeviceMemory | None  # of the device; None: not known
    checkpoint: Path | None  # the step folder that the run goes on from; None: it begins
    stored: Facts  # what that says of its run

    def grown(self, kind: type[Stage], **more: Any) -> Stage:
        """The next stage: all that is here, and more."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return kind(**{**own, **more})

    @property
    def device(self) -> torch.device:
        """Where the tensors of this rank live."""
        return self.world.device

    @property
    def run_folder(self) -> Path:
        """Where checkpoints and metrics go, where they are kept."""
        return Path(self.cfg.checkpoint.checkpoint_dir)

    @property
    def saves(self) -> bool:
        """Whether there are checkpoints."""
        return self.cfg.checkpoint.enabled

    @property
    def goes_on(self) -> bool:
        """Whether it goes on from a checkpoint of its own folder."""
        return self.checkpoint is not None and self.checkpoint.parent.resolve() == self.run_folder.resolve()


@dataclass(frozen=True)
class LoadedRun(OpenedRun):
    """A run that knows its batches, and so its length."""

    local_batch: LocalBatch
    loader: TrainLoader
    val_sets: Mapping[str, tuple[Any, EvalLoader]]
    evaluation: RunEvaluation
    training_length: TrainingLength


@dataclass(frozen=True)
class RunPlan(LoadedRun):
    """Everything that is known of a run before it has weights; a dry run ends here."""

    fast_path: FastPath
    head_loss: Any
    scaler: torch.amp.GradScaler | None
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    average_rule: AverageRule | None  # of the average of the weights; None: none is kept

    @property
    def sources(self) -> Sequence[str]:
        """The sources whose losses are told apart; none where the loss gives only a sum over all tokens."""
        return source_of(self.dataset).source_names if tells_rows(self.head_loss) else ()

    @property
    def precision(self) -> PrecisionFacts:
        """Number types of weights, products and sums of gradients."""
        policy = parallel_config(self.cfg, self.model, self.fast_path)
        return PrecisionFacts.of(self.model, policy, self.fast_path)

    @property
    def peak(self) -> PeakMemory | None:
        """What a step will need of the device's memory; None: not known."""
        return predict(
            self.cfg,
            self.model,
            self.world,
            self.fast_path,
            seq_len=self.seq_len,
            local_batch_size=self.local_batch.rows,
            resident=self.memory.resident if self.memory else 0,
            tasks=self.evaluation.forward_size(self.device.type, self.model.max_seq_len),
        )

    def describe(self) -> Facts:
        """What its checkpoints will say of it."""
        scheduler = self.cfg.step_scheduler
        return Facts(
            stage=stage_of(self.cfg, self.dataset),
            model=self.model.model_config(),
            code=code_facts(self.model, self.cfg.model),
            param_counts=count_parameters(self.model),
            param_roles=self.model.param_roles(),
            data=data_facts(self.dataset),
            tokenizer=self.tokenizer.facts() if self.tokenizer is not None else None,
            optimizer={"class": type(self.optimizer).__name__},
            schedule=self.schedule.settings(),
            fast_path=self.fast_path.stored(),
            precision=asdict(self.precision),
            batch={"global": scheduler.global_batch_size, "local": scheduler.local_rows},
            versions=versions(),
            lineage=lineage_of(self.run_folder) if self.goes_on else None,
        )


@dataclass(frozen=True)
class Run(RunPlan):
    """A run that is ready to train: the model is over the ranks and has its weights, the run folder is held."""

    facts: Facts  # what its checkpoints say of it
    checkpointer: Checkpointer
    parallel: ParallelModel
    average: WeightAverage | None
    state: TrainState  # the counters; training moves them on
    heartbeat: Heartbeat
    claim: contextlib.ExitStack  # what holds the run folder; closed when training ends


@dataclass(frozen=True)
class RunResult:
    """How a run ended; ``checkpoint`` is the newest one written or loaded, None where checkpoints are off."""

    step: int
    checkpoint: Path | None
    exit_code: int
    last_loss: float | None
    val_losses: Mapping[str, float]
