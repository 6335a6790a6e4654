"""Who reads which sample: pure integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.effort import examples

from automodel_cli.data.sampler import BatchShape, divisors_near, grad_accum_steps
from automodel_cli.errors import ConfigError

SIZES = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 7))  # ranks, rows, micro-batches


@examples(200)
@given(sizes=SIZES, first=st.integers(0, 10**12), updates=st.integers(1, 4))
def test_ranks_share_each_update_without_gap_or_overlap(sizes: tuple[int, int, int], first: int, updates: int) -> None:
    ranks, rows, accum = sizes
    size = ranks * rows * accum
    parts = [
        BatchShape(global_batch_size=size, local_batch_size=rows, dp_rank=r, dp_world=ranks).samples(first, updates)
        for r in range(ranks)
    ]
    assert all(part.shape == (updates, accum, rows) for part in parts)
    together = np.stack(parts, axis=1).reshape(updates, size)
    expected = first + np.arange(updates * size).reshape(updates, size)
    assert np.array_equal(together, expected)


@examples(100)
@given(global_size=st.integers(1, 600), local=st.integers(1, 40), ranks=st.integers(1, 16))
def test_accumulation_or_an_error_whose_choices_are_valid(global_size: int, local: int, ranks: int) -> None:
    try:
        steps = grad_accum_steps(global_size, local, ranks)
    except ConfigError as error:
        assert global_size % (local * ranks)
        globals_part, _, locals_part = error.hint.partition("; or local_batch_size: ")
        numbers = globals_part.partition(":")[2].split("(")[0]
        choices = [int(word) for word in numbers.split(",")]
        assert choices
        assert all(grad_accum_steps(size, local, ranks) >= 1 for size in choices)
        for size in locals_part.split(", ") if locals_part else []:
            assert grad_accum_steps(global_size, int(size), ranks) >= 1
    else:
        assert steps * local * ranks == global_size


def test_error_names_the_sizes_and_the_nearest_valid_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        grad_accum_steps(512, 24, 8)
    assert "512 is not a multiple of local_batch_size 24 x 8 data-parallel ranks = 192" in caught.value.message
    assert caught.value.hint == ("valid global_batch_size near it: 384, 576; or local_batch_size: 1, 2, 4, 8, 16, 32")
    with pytest.raises(ConfigError, match="no local_batch_size fits"):
        grad_accum_steps(10, 2, 3)
    with pytest.raises(ConfigError, match="local_batch_size is 0"):
        grad_accum_steps(8, 0, 1)


def test_divisors_near() -> None:
    assert divisors_near(64, 24) == [1, 2, 4, 8, 16, 32]
    assert divisors_near(720, 100, count=3) == [80, 90, 120]
    assert divisors_near(7, 3) == [1, 7]
