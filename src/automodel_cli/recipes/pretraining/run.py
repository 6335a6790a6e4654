"""A pretraining run as a value: its plan, what is built of it, and how it ended."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from automodel_cli.assembly.data import TrainLoader
from automodel_cli.assembly.facts import Facts, PrecisionFacts
from automodel_cli.assembly.machine.batch_size import LocalBatch
from automodel_cli.assembly.machine.fast_path import FastPath
from automodel_cli.assembly.machine.memory import DeviceMemory
from automodel_cli.assembly.reporter import Reporter
from automodel_cli.assembly.scoring.during_training import RunEvaluation
from automodel_cli.assembly.tokenizer import RunTokenizer
from automodel_cli.assembly.training_length import TrainingLength
from automodel_cli.checkpoint.checkpointer import Checkpointer
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.data.loader import EvalLoader
from automodel_cli.distributed.heartbeat import Heartbeat
from automodel_cli.distributed.parallelize import ParallelModel
from automodel_cli.distributed.world import World
from automodel_cli.models.interface import CausalLM
from automodel_cli.sizing.memory import PeakMemory
from automodel_cli.train.preemption import StopRequest
from automodel_cli.train.schedules import Schedule
from automodel_cli.train.state import TrainState


@dataclass(frozen=True)
class RunOptions:
    """What a command line says of a run beside its configuration.

    Attributes:
        fresh: move an earlier run in the folder aside and begin.
        trust: files and modules whose code may be called.
        profile: updates to record with torch's profiler, once the run is warm; None: none.
    """

    fresh: bool = False
    trust: tuple[str, ...] = ()
    profile: int | None = None


NO_OPTIONS = RunOptions()


@dataclass(frozen=True)
class RunPlan:
    """Everything that is known of a run before it has weights; a dry run ends here.

    Attributes:
        cfg: the configuration, with a number in the place of ``local_batch_size: auto``.
        memory, peak: of the device, and what a step will need of it; None: not known.
        checkpoint: the step folder that the run goes on from; None: it begins.
        facts: what its checkpoints will say of it.
    """

    cfg: PretrainConfig
    options: RunOptions
    world: World
    reporter: Reporter
    stop: StopRequest
    dataset: Any
    tokenizer: RunTokenizer | None
    model: CausalLM
    seq_len: int
    memory: DeviceMemory | None
    peak: PeakMemory | None
    local_batch: LocalBatch
    loader: TrainLoader
    val_sets: Mapping[str, tuple[Any, EvalLoader]]
    evaluation: RunEvaluation
    training_length: TrainingLength
    fast_path: FastPath
    precision: PrecisionFacts
    head_loss: Any
    scaler: torch.amp.GradScaler | None
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    checkpoint: Path | None
    facts: Facts

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


@dataclass(frozen=True)
class Run(RunPlan):
    """A run that is ready to train: the model is over the ranks and has its weights, the run folder is held.

    Attributes:
        state: the counters; training moves them on.
        claim: what holds the run folder; closed when training ends.
    """

    checkpointer: Checkpointer
    parallel: ParallelModel
    state: TrainState
    heartbeat: Heartbeat
    claim: contextlib.ExitStack


@dataclass(frozen=True)
class RunResult:
    """How a run ended; ``checkpoint`` is the newest one written or loaded, None where checkpoints are off."""

    step: int
    checkpoint: Path | None
    exit_code: int
    last_loss: float | None
    val_losses: Mapping[str, float]
