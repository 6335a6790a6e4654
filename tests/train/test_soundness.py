"""When a run may be saved."""

from __future__ import annotations

import math

import pytest

from automodel_cli.train.soundness import Soundness
from automodel_cli.train.step import StepMetrics


@pytest.mark.parametrize(
    ("loss", "skipped", "periodic", "at_the_end"),
    [
        (2.0, False, None, None),
        (2.0, True, "the gradient is not finite", None),
        (math.nan, True, "the loss is not finite", "the loss is not finite"),
        (math.inf, True, "the loss is not finite", "the loss is not finite"),
    ],
)
def test_what_the_latest_update_allows(loss, skipped, periodic, at_the_end):
    soundness = Soundness(StepMetrics(loss, 8, 1.0, skipped))
    assert soundness.reason_not_to_save(at_the_end=False) == periodic
    assert soundness.reason_not_to_save(at_the_end=True) == at_the_end
    assert soundness.diverged == (not math.isfinite(loss))


def test_before_the_first_update_nothing_speaks_against_it():
    assert Soundness().reason_not_to_save(at_the_end=False) is None
    assert Soundness().last_loss is None and not Soundness().diverged
