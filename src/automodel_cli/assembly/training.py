"""Loss, optimizer, schedule and stopwatch as the configuration describes them."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, Field

from automodel_cli import device as this_machine
from automodel_cli.assembly.machine.fast_path import FastPath
from automodel_cli.assembly.training_length import TrainingLength
from automodel_cli.checkpoint.load_step import Loaded
from automodel_cli.checkpoint.snapshot import trained_parameters
from automodel_cli.config.schema.other_sections import MfuConfig
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.schema.training_sections import DEFAULT_EMA_DECAY
from automodel_cli.config.targets.instantiate import instantiate
from automodel_cli.data.interface import DataSource
from automodel_cli.data.objective import refuse_reserved
from automodel_cli.distributed.world import World
from automodel_cli.errors import CheckpointError, ConfigError
from automodel_cli.json_files import Count, FileModel, FiniteFloat, validated
from automodel_cli.metrics.throughput import Throughput
from automodel_cli.models.init import derive_seed
from automodel_cli.models.interface import CausalLM
from automodel_cli.sizing import shape as sizing
from automodel_cli.train.averaging import AverageRule, WeightAverage
from automodel_cli.train.deadline import Deadline
from automodel_cli.train.losses import ChunkedCrossEntropy, LogitsLoss, MaskedCrossEntropy
from automodel_cli.train.row_losses import tells_rows
from automodel_cli.train.state import TrainState

_SLURM_END = "SLURM_JOB_END_TIME"


def build_head_loss(cfg: PretrainConfig, fast_path: FastPath, *, trust: Sequence[str] = ()) -> Any:
    """The loss over hidden states and head weight: the section's, else the one the fast path chose."""
    loss = None if cfg.loss_fn is None else instantiate(cfg.loss_fn, "loss_fn", trust=trust)
    if isinstance(loss, torch.nn.Module):
        return LogitsLoss(loss)
    if loss is None or type(loss) is MaskedCrossEntropy:
        weight = 0.0 if loss is None else loss.z_loss_weight
        chunked = fast_path.head_loss != "plain"
        loss = ChunkedCrossEntropy(z_loss_weight=weight) if chunked else loss or MaskedCrossEntropy()
    if isinstance(loss, ChunkedCrossEntropy):
        loss.fused, loss.takes_softcap = fast_path.compile, fast_path.head_loss == "chunked_capped"
    return loss


def check_objective(data: DataSource, head_loss: Any, val_sets: Mapping[str, Any]) -> None:
    """Check that a loss can weigh rows where the data asks for it, and that no validation set has the mean's name.

    Raises:
        ConfigError: it cannot, or one has.
    """
    if data.objective is None:
        return
    if not tells_rows(head_loss):
        raise ConfigError(
            f"objective weights need a loss that weighs tokens, {loss_name(head_loss)} gives one sum",
            "leave loss_fn out, or use MaskedCrossEntropy or ChunkedCrossEntropy",
        )
    refuse_reserved(val_sets, "validation_dataset_*")


def loss_name(head_loss: Any) -> str:
    """What a user calls it."""
    return type(head_loss.module if isinstance(head_loss, LogitsLoss) else head_loss).__name__


def unfuse(head_loss: Any) -> None:
    """Let a loss that was built for a compiled model do without the compiler."""
    if isinstance(head_loss, ChunkedCrossEntropy):
        head_loss.fused = False


def build_scaler(fast_path: FastPath, device: torch.device) -> torch.amp.GradScaler | None:
    """A gradient scaler for fp16; bf16 and fp32 need none."""
    return torch.amp.GradScaler(device.type) if fast_path.precision == "fp16" else None


class _StoredScaler(FileModel):
    """``scaler`` in state.json, as ``torch.amp.GradScaler`` gives it."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")
    scale: FiniteFloat = Field(gt=0)
    growth_factor: FiniteFloat = Field(gt=1)
    backoff_factor: FiniteFloat = Field(gt=0, lt=1)
    growth_interval: Count
    growth_tracker: Count = Field(alias="_growth_tracker")


def restore_scaler(scaler: torch.amp.GradScaler | None, stored: Any, checkpoint: Path) -> None:
    """Give the scaler of fp16 what the checkpoint has of one.

    Raises:
        CheckpointError: that is no state of a scaler.
    """
    if scaler is not None and stored:
        where = f"{checkpoint / 'state.json'}: scaler"
        scaler.load_state_dict(validated(stored, _StoredScaler, where, CheckpointError).model_dump(by_alias=True))


def restored_state(loaded: Loaded) -> TrainState:
    """The counters that a checkpoint holds.

    Raises:
        CheckpointError: there are none, or they are of another step.
    """
    stored = loaded.state.get("train")
    where, hint = loaded.path / "state.json", "use an older checkpoint"
    if not isinstance(stored, dict):
        raise CheckpointError(f"{where} holds no training state", hint)
    state = TrainState.from_dict(stored)
    if state.step != loaded.step:
        raise CheckpointError(f"{where} names two steps: {loaded.step:,} and {state.step:,}", hint)
    return state


def average_rule(cfg: PretrainConfig, length: TrainingLength) -> AverageRule | None:
    """What the `ema` section asks for, in a run of that length.

    Raises:
        ConfigError: the last updates of a run that has fewer, or none that is known to be the last.
    """
    section = cfg.ema
    if section is None:
        return None
    if section.tail_steps is None:
        return AverageRule(section.decay or DEFAULT_EMA_DECAY, every=section.every)
    if length.timed:
        raise ConfigError(
            f"ema.tail_steps {section.tail_steps:,}: this run ends with the time ({length.reason}), so its last "
            "updates are not known in advance",
            "set ema.decay, or end the run by step_scheduler.max_steps",
        )
    if section.tail_steps > length.total_steps:
        raise ConfigError(
            f"ema.tail_steps {section.tail_steps:,} is more than the {length.total_steps:,} updates of the run",
            f"give at most {length.total_steps:,}",
        )
    return AverageRule(None, first=length.total_steps - section.tail_steps + 1, every=section.every)


def build_average(model: CausalLM, rule: AverageRule | None) -> WeightAverage | None:
    """The average that the rule asks for, of the model as it lies over the ranks; still without values."""
    return None if rule is None else WeightAverage(model, trained_parameters(model), rule)


def restore_average(average: WeightAverage | None, loaded: Loaded) -> str | None:
    """Go on with the average that a checkpoint held; a line where that is not seamless.

    Raises:
        CheckpointError: what is stored is no state of an average.
    """
    stored = loaded.state.get("ema")
    if average is not None:
        return average.restore(stored, loaded.step, loaded.path)
    if stored is None:
        return None
    return f"there is no ema section: the averaged weights of {loaded.path.name} are not gone on with"


def build_throughput(
    model: CausalLM,
    *,
    seq_len: int,
    total_steps: int | None,
    precision: str,
    device: torch.device,
    world_size: int = 1,
    mfu: MfuConfig | None = None,
) -> Throughput:
    """The stopwatch of the loop, with what it needs to say MFU and time left."""
    return Throughput(
        total_steps=total_steps,
        flops_per_token=sizing.flops_per_token(model.shape(), seq_len),
        peak_flops_per_s=_peak_flops(mfu, device, precision),
        device=device,
        world_size=world_size,
    )


def build_deadline(cfg: PretrainConfig, *, started: float) -> Deadline:
    """When the run has to be over: ``max_minutes`` after the command began (``started``, seconds since 1970).

    Raises:
        ConfigError: `auto`, and Slurm does not say when the job ends.
    """
    minutes = cfg.step_scheduler.max_minutes
    if minutes is None:
        return Deadline()
    if minutes != "auto":
        return Deadline(started + 60 * minutes)
    if not (ends_at := os.environ.get(_SLURM_END, "")).isdigit():
        raise ConfigError(
            f"step_scheduler.max_minutes auto: {_SLURM_END} is {ends_at or 'not set'}: the end of the job is not known",
            "start the run in a Slurm job with a time limit, or give minutes",
        )
    return Deadline(float(ends_at))


def _peak_flops(mfu: MfuConfig | None, device: torch.device, precision: str) -> float | None:
    """Peak FLOP/s of one device: as the ``mfu`` section says, else as the device is known."""
    if mfu and mfu.peak_tflops:
        return mfu.peak_tflops * 1e12
    if mfu and mfu.device:
        return this_machine.peak_flops_by_name(mfu.device, precision)
    return this_machine.peak_flops(device, precision)


def compile_arguments(cfg: PretrainConfig, fast_path: FastPath) -> dict[str, Any]:
    """Arguments of ``torch.compile`` as the ``compile:`` section gives them, in the mode that was chosen."""
    section = cfg.compile
    if section.dynamo_cache_size_limit is not None:
        torch._dynamo.config.recompile_limit = section.dynamo_cache_size_limit
    mode = None if fast_path.compile_mode == "default" else fast_path.compile_mode
    given = {"mode": mode, "backend": section.backend, "options": section.options}
    return {
        "fullgraph": section.fullgraph,
        "dynamic": section.dynamic,
        **{key: value for key, value in given.items() if value is not None},
    }


def dropout_seed(cfg: PretrainConfig, step: int, world: World) -> int:
    """Seed of the dropout of the update after ``step``.

    Another one on each data-parallel rank and, where a sequence or a matrix is shared, for each part of it; with
    ``rng.ranked: false`` the same on all.
    """
    part = world.axis_rank("cp") * world.axis_size("tp") + world.axis_rank("tp")
    keys = [world.dp_rank, *([part] if part else [])] if cfg.rng.ranked else [0]
    return derive_seed(cfg.rng_seed, "dropout", step, *keys)


@contextlib.contextmanager
def gc_control(every: int | None) -> Iterator[Callable[[int], None]]:
    """Garbage collection by us every N updates instead of whenever Python likes; None leaves it to Python."""
    if every is None or not gc.isenabled():
        yield lambda step: None
        return
    gc.collect()
    gc.freeze()  # what set-up has built stays: no collection needs to look at it again
    gc.disable()
    try:
        yield lambda step: _collect(step, every)
    finally:
        gc.enable()
        gc.unfreeze()


def _collect(step: int, every: int) -> None:
    if step % every == 0:
        gc.collect(1)
