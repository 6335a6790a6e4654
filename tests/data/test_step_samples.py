"""From updates to samples, against runs whose batch sizes are known."""

from __future__ import annotations

import numpy as np
import pytest

from automodel_cli.data.step_samples import samples_of_step
from automodel_cli.errors import DataError


def test_a_run_that_logged_every_update_is_known_whatever_its_batches_were():
    sizes = np.random.default_rng(0).integers(1, 9, 40)
    ends = np.cumsum(sizes).tolist()
    known = dict(enumerate(ends, 1))
    for step in range(1, 41):
        assert samples_of_step(step, known, (), now=5) == (ends[step - 1] - sizes[step - 1], ends[step - 1])
    assert samples_of_step(43, known, (), now=5) == (ends[-1] + 10, ends[-1] + 15)


def test_between_checkpoints_a_known_batch_size_tells():
    assert samples_of_step(7, {10: 80}, {8}, now=8) == (48, 56)
    assert samples_of_step(13, {10: 80, 20: 240}, {8, 16}, now=16) == (112, 128)
    assert samples_of_step(3, {}, {4}, now=4) == (8, 12)


@pytest.mark.parametrize("after", [120, 121])
def test_a_change_that_nobody_kept_is_not_guessed(after):
    """Updates of 8, then of 16, in one stretch: 12 each is nobody's batch size."""
    with pytest.raises(DataError, match=r"updates 1 to 10 had 12[01], and the batch size changed"):
        samples_of_step(7, {10: after}, {8, 16}, now=16)
