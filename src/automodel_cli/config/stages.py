"""Batch sizes and row lengths that change in the course of a run: from shares, steps and tokens to samples."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from automodel_cli.batch_sizes import BatchSizes, Staged
from automodel_cli.config.schema.training_sections import ENDS, BatchSizeStage, StageEnd, StepSchedulerConfig
from automodel_cli.errors import ConfigError

_UNKNOWN_LENGTH = "give until_step or until_tokens, or say with max_steps or max_tokens how long the run is"


def batch_sizes_of(scheduler: StepSchedulerConfig, *, seq_len: int | None, samples: int | None) -> BatchSizes:
    """The global batch size of every update.

    Args:
        seq_len: tokens of a sample; None: the configuration does not say.
        samples: of the whole run, where its horizon counts tokens; None: it counts updates, or is not known.

    Raises:
        ConfigError: ends that do not ascend, or that depend on what is not known.
    """
    stages = scheduler.batch_size_schedule
    if not stages:
        return BatchSizes.of(scheduler.global_batch_size)
    if any(stage.until is not None for stage in stages) and samples is None:
        samples = _samples_of_steps(scheduler)
    ends: list[int] = []
    for number, stage in enumerate(stages):
        before = BatchSizes.by_ends(scheduler.global_batch_sizes[: number + 1], ends)
        key = f"step_scheduler.batch_size_schedule[{number}]"
        end = _end(stage, key, before, seq_len=seq_len, samples=samples)
        if end <= (begin := before.stages[-1][0]):
            raise _not_ascending(key, stage, end, begin)
        ends.append(end)
    return BatchSizes.by_ends(scheduler.global_batch_sizes, ends)


def seq_lens_of(
    scheduler: StepSchedulerConfig, sizes: BatchSizes, *, seq_len: int, samples: int | None
) -> Staged | None:
    """Tokens of a row by the sample that an update begins with; None where they never change.

    Raises:
        ConfigError: rows that are no divisor of ``seq_len``; ends as above.
    """
    stages = scheduler.seq_len_schedule
    if not stages:
        return None
    found, first = [], 0
    for number, stage in enumerate(stages):
        key = f"step_scheduler.seq_len_schedule[{number}]"
        if seq_len % stage.seq_len or stage.seq_len == seq_len:
            raise ConfigError(
                f"{key}.seq_len is {stage.seq_len}, the data set's {seq_len}",
                f"give a smaller divisor of {seq_len}, such as {_divisors(seq_len)}",
            )
        end = sizes.end_of_update(_end(stage, key, sizes, seq_len=seq_len, samples=samples))
        if end <= first:
            raise _not_ascending(key, stage, end, first)
        found.append((first, stage.seq_len))
        first = end
    return Staged((*found, (first, seq_len)))


def _end(stage: StageEnd, key: str, sizes: BatchSizes, *, seq_len: int | None, samples: int | None) -> int:
    """The sample before which a stage ends; ``sizes`` hold as far as it goes."""
    if stage.until_step is not None:
        return sizes.samples(stage.until_step)
    if stage.until_tokens is not None:
        if seq_len is None:
            raise ConfigError(
                f"{key}.until_tokens: the dataset section does not say how long its rows are", "give until_step"
            )
        return -(-stage.until_tokens // seq_len)
    assert stage.until is not None
    if samples is None:
        raise ConfigError(
            f"{key}.until is a share of the run, whose length is not known before the data is read", _UNKNOWN_LENGTH
        )
    return round(stage.until * samples)


def _not_ascending(key: str, stage: StageEnd, end: int, before: int) -> ConfigError:
    given = next(f"{name} {value}" for name in ENDS if (value := getattr(stage, name)) is not None)
    return ConfigError(
        f"{key}: {given} is sample {end:,}, and the stage before it ends with sample {before:,}",
        "let the ends of stages ascend",
    )


def _samples_of_steps(scheduler: StepSchedulerConfig) -> int | None:
    """Samples of a run of ``max_steps`` updates whose stages end at shares of those samples; None: not known.

    Stage i takes a share u_i - u_(i-1) of the S samples in updates of b_i; they add up to the updates of the run.
    """
    stages: Sequence[BatchSizeStage] = scheduler.batch_size_schedule
    if scheduler.max_steps is None:
        return None
    shares = [stage.until for stage in stages]
    if None in shares:
        raise ConfigError(
            "step_scheduler.batch_size_schedule: with max_steps, shares of the run do not go with other ends",
            "give every stage until, or none; or say with max_tokens how long the run is",
        )
    bounds = [0.0, *(share for share in shares if share is not None), 1.0]
    widths = [end - begin for begin, end in itertools.pairwise(bounds)]
    if min(widths) <= 0:
        raise ConfigError(
            f"step_scheduler.batch_size_schedule: until goes {', '.join(f'{share:g}' for share in bounds[1:-1])}",
            "let the ends of stages ascend",
        )
    updates = sum(width / size for width, size in zip(widths, scheduler.global_batch_sizes, strict=True))
    return round(scheduler.max_steps / updates)


def _divisors(number: int) -> str:
    return ", ".join(str(number >> power) for power in (1, 2, 3) if number % (1 << power) == 0) or "1"
