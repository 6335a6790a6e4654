"""Who reads what, and when: pure integers, no files, no tensors.

Samples are numbered 0, 1, 2, ... for ever: sample ``k`` is epoch ``k // W``, slot ``k % W`` of a data set of
``W`` windows. Update ``u`` (counted from the position at which a run starts) uses samples ``[u * G, (u + 1) *
G)``, whatever the number of ranks or the size of a micro-batch; a rank takes one contiguous piece of them and
cuts it into micro-batches. So a position is one integer, the same data is seen in the same order by 1 rank or
64, and batches straddle epochs instead of dropping each epoch's tail.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from automodel_cli.errors import ConfigError
from automodel_cli.text import plural


@dataclass(frozen=True)
class BatchShape:
    """How one update of ``global_batch_size`` samples is divided over ranks and micro-batches.

    Raises:
        ConfigError: the global batch is not a whole number of micro-batches a rank.
    """

    global_batch_size: int
    local_batch_size: int
    dp_rank: int = 0
    dp_world: int = 1

    def __post_init__(self) -> None:
        assert 0 <= self.dp_rank < self.dp_world, f"rank {self.dp_rank} of {self.dp_world}"
        _ = self.grad_accum

    @functools.cached_property
    def grad_accum(self) -> int:
        """Micro-batches that one rank adds up for one update."""
        return grad_accum_steps(self.global_batch_size, self.local_batch_size, self.dp_world)

    @property
    def samples_per_rank(self) -> int:
        """Rows that one rank reads for one update: ``grad_accum * local_batch_size``."""
        return self.grad_accum * self.local_batch_size

    def samples(self, first_sample: int, updates: int = 1) -> np.ndarray:
        """This rank's sample numbers for ``updates`` updates, the first of which begins at ``first_sample``.

        Returns:
            int64 [updates, grad_accum, local_batch_size].
        """
        mine = first_sample + self.dp_rank * self.samples_per_rank
        starts = mine + self.global_batch_size * np.arange(updates, dtype=np.int64)
        within = np.arange(self.samples_per_rank, dtype=np.int64)
        numbers = starts[:, None] + within[None, :]
        return numbers.reshape(updates, self.grad_accum, self.local_batch_size)


def grad_accum_steps(global_batch_size: int, local_batch_size: int, dp_world: int) -> int:
    """Micro-batches that one rank adds up for one update: ``global / (local * dp_world)``.

    Raises:
        ConfigError: it does not come out even; the message lists global and local sizes that would.
    """
    for name, size in (("global_batch_size", global_batch_size), ("local_batch_size", local_batch_size)):
        if size < 1:
            raise ConfigError(f"step_scheduler.{name} is {size}", "it counts sequences: give 1 or more")
    rows = local_batch_size * dp_world
    if global_batch_size % rows == 0:
        return global_batch_size // rows
    raise ConfigError(
        f"step_scheduler.global_batch_size {global_batch_size} is not a multiple of "
        f"local_batch_size {local_batch_size} x {plural(dp_world, 'data-parallel rank')} = {rows}",
        _valid_sizes(global_batch_size, local_batch_size, dp_world),
    )


def _valid_sizes(global_batch_size: int, local_batch_size: int, dp_world: int) -> str:
    """The nearest sizes that fit, in words."""
    rows = local_batch_size * dp_world
    below = global_batch_size // rows * rows
    choices = [str(size) for size in (below, below + rows) if size > 0]
    hint = f"valid global_batch_size near it: {', '.join(choices)}"
    if global_batch_size % dp_world:
        return f"{hint} (no local_batch_size fits: {global_batch_size} does not divide by {dp_world} ranks)"
    local_sizes = divisors_near(global_batch_size // dp_world, local_batch_size)
    return f"{hint}; or local_batch_size: {', '.join(map(str, local_sizes))}"


def divisors_near(number: int, wanted: int, count: int = 6) -> list[int]:
    """Up to ``count`` divisors of ``number``, those nearest to ``wanted``, ascending."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    divisors = {*small, *(number // d for d in small)}
    return sorted(sorted(divisors, key=lambda d: (abs(d - wanted), d))[:count])
