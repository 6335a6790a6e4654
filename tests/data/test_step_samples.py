"""From updates to samples, against runs whose batch sizes are known."""

from __future__ import annotations

import numpy as np
import pytest

from automodel_cli.batch_sizes import BatchSizes
from automodel_cli.data.step_samples import samples_of_step
from automodel_cli.errors import DataError

SIZES = [BatchSizes.of(8), BatchSizes.of(16)]


def test_a_run_that_logged_every_update_is_known_whatever_its_batches_were():
    sizes = np.random.default_rng(0).integers(1, 9, 40)
    ends = np.cumsum(sizes).tolist()
    known = dict(enumerate(ends, 1))
    for step in range(1, 41):
        assert samples_of_step(step, known, (), now=BatchSizes.of(5)) == (
            ends[step - 1] - sizes[step - 1],
            ends[step - 1],
        )
    assert samples_of_step(43, known, (), now=BatchSizes.of(5)) == (ends[-1] + 10, ends[-1] + 15)


def test_between_checkpoints_a_known_batch_size_tells():
    assert samples_of_step(7, {10: 80}, SIZES, now=SIZES[0]) == (48, 56)
    assert samples_of_step(13, {10: 80, 20: 240}, SIZES, now=SIZES[1]) == (112, 128)
    assert samples_of_step(3, {}, (), now=BatchSizes.of(4)) == (8, 12)


def test_a_schedule_of_sizes_tells_where_it_has_made_a_stretch():
    changing = BatchSizes.by_ends([4, 8], [20])
    known = {12: changing.samples(12)}
    for step in range(1, 20):
        first = changing.samples(step - 1)
        assert samples_of_step(step, known, [*SIZES, changing], now=changing) == (first, first + changing.at(first))


@pytest.mark.parametrize("after", [120, 121])
def test_a_change_that_nobody_kept_is_not_guessed(after):
    """Updates of 8, then of 16, in one stretch: 12 each is nobody's batch size."""
    with pytest.raises(DataError, match=r"updates 1 to 10 had 12[01], and the batch size changed"):
        samples_of_step(7, {10: after}, SIZES, now=SIZES[1])
