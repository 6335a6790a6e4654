"""Doubts about a law: said where runs clearly do not follow it, and not because of their noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.scaling.surfaces import surface

from automodel_cli.scaling.analysis import analyze

DOUBT = "the law does not describe these points"


def doubts(points):
    return [note for note in analyze(points, resamples=4).notes() if DOUBT in note]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_points_of_a_law_raise_no_doubt(seed):
    assert doubts(surface()) == doubts(surface(noise=0.005, seed=seed)) == []


def test_losses_that_fall_ever_faster_are_no_law():
    """Each parabola is fitted well, but from budget to budget the loss falls by 3%, 6%, 9% more than the law."""
    points = surface(noise=0.001)
    faster = replace(points, loss=points.loss * (1 - 0.03) ** (points.group * (points.group + 1) / 2))
    assert np.isfinite(faster.loss).all()
    (doubt,) = doubts(faster)
    assert "do not extrapolate" in doubt
