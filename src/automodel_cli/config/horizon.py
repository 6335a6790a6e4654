"""The horizon of a run: the one key of ``step_scheduler`` that says where it ends, in updates.

Only the configuration is looked at, and no torch is imported: a Megatron data set has to know the number of updates
before there is a model, and ``automodel plan`` and a resume have to find the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from automodel_cli.batch_sizes import BatchSizes, Staged
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.stages import batch_sizes_of, seq_lens_of
from automodel_cli.config.targets.own_models import own_model
from automodel_cli.errors import ConfigError
from automodel_cli.sizing.shape import flops_per_token

_IN_TOKENS = ("max_tokens", "target_flops", "tokens_per_param")
_ENDS = ("cosine", "linear", "WSD")  # schedules that reach their lowest rate at the end of the run


@dataclass(frozen=True)
class Horizon:
    """Where a run ends, and why; ``steps`` None: with the data, or where it is ``timed`` with the time."""

    steps: int | None
    reason: str = "max_steps"
    timed: bool = False
    seconds: float | None = None  # that a timed run has, where the configuration says it


def horizon_of(cfg: PretrainConfig) -> Horizon:
    """The number of whole updates that fit the horizon.

    Raises:
        ConfigError: it is less than one update, or what it counts in is not known before the model is built.
    """
    scheduler = cfg.step_scheduler
    if scheduler.max_steps is not None:
        return Horizon(scheduler.max_steps)
    for key in _IN_TOKENS:
        if (value := getattr(scheduler, key)) is not None:
            reason = f"{key} {value:,}" if isinstance(value, int) else f"{key} {value:g}"
            return Horizon(_steps(cfg, key, value, reason), reason)
    if scheduler.max_minutes is not None:
        _check_schedule(cfg)
        if scheduler.max_minutes == "auto":
            return Horizon(None, "max_minutes auto", timed=True)
        reason = f"max_minutes {scheduler.max_minutes:g}"
        return Horizon(None, reason, timed=True, seconds=60 * scheduler.max_minutes)
    return Horizon(None)


def _check_schedule(cfg: PretrainConfig) -> None:
    """See that the schedule does not wait for an end that nobody knows."""
    schedule = cfg.lr_scheduler
    if schedule is not None and schedule.lr_decay_steps is None and schedule.lr_decay_style in _ENDS:
        raise ConfigError(
            f"lr_scheduler: {schedule.lr_decay_style} has to know the number of updates, and max_minutes says none",
            "set lr_scheduler.lr_decay_steps, or lr_decay_style: constant",
        )


def _steps(cfg: PretrainConfig, key: str, value: float, reason: str) -> int:
    if (seq_len := configured_seq_len(cfg)) is None:
        raise ConfigError(
            f"step_scheduler.{key}: the dataset section does not say how long its rows are",
            "set step_scheduler.max_steps instead",
        )
    tokens = _tokens(cfg, key, value, seq_len)
    samples = tokens // seq_len
    sizes = batch_sizes_of(cfg.step_scheduler, seq_len=seq_len, samples=samples)
    if not (updates := sizes.updates(samples)):
        raise ConfigError(
            f"step_scheduler.{reason} is {tokens:,} tokens, less than one update of {sizes.at(0) * seq_len:,}",
            "raise it, or lower step_scheduler.global_batch_size",
        )
    return updates


def batches_of(cfg: PretrainConfig) -> BatchSizes:
    """The global batch size of every update of the run.

    Raises:
        ConfigError: a schedule of them that means nothing, or that needs to know what is not known yet.
    """
    return batch_sizes_of(cfg.step_scheduler, seq_len=configured_seq_len(cfg), samples=_samples(cfg))


def row_lengths_of(cfg: PretrainConfig, seq_len: int) -> Staged | None:
    """Tokens of a row of every update, where they change; ``seq_len`` at the end.

    Raises:
        ConfigError: as above.
    """
    sizes, samples = batches_of(cfg), _samples(cfg)
    if samples is None and cfg.step_scheduler.max_steps is not None:
        samples = sizes.samples(cfg.step_scheduler.max_steps)
    return seq_lens_of(cfg.step_scheduler, sizes, seq_len=seq_len, samples=samples)


def _samples(cfg: PretrainConfig) -> int | None:
    """Samples of the run, where its horizon counts tokens and a schedule has to know."""
    scheduler, seq_len = cfg.step_scheduler, configured_seq_len(cfg)
    if seq_len is None or not (scheduler.batch_size_schedule or scheduler.seq_len_schedule):
        return None
    for key in _IN_TOKENS:
        if (value := getattr(scheduler, key)) is not None:
            return _tokens(cfg, key, value, seq_len) // seq_len
    return None


def configured_seq_len(cfg: PretrainConfig) -> int | None:
    """Tokens of a row of the training data, as far as the configuration says."""
    rows = cfg.dataset.arguments
    size = cfg.packed_sequence.packed_sequence_size or rows.get("seq_len") or rows.get("seq_length")
    return size if isinstance(size, int) else None


def _tokens(cfg: PretrainConfig, key: str, value: float, seq_len: int) -> int:
    """Whole tokens of the horizon ``key: value``."""
    if key == "max_tokens":
        return int(value)
    model = own_model(cfg.model)
    flops = None if model is None else flops_per_token(model.shape(), seq_len)
    if model is None or flops is None:
        raise ConfigError(
            f"step_scheduler.{key}: the size of {cfg.model.name} is not known before it is built",
            "set step_scheduler.max_tokens or max_steps instead",
        )
    return int(value // flops if key == "target_flops" else value * model.counts().scaling)
