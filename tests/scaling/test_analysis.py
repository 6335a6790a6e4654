"""Doubts about a law: said where runs clearly do not follow it, and not because of their noise."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from tests.scaling.surfaces import surface

from automodel_cli.scaling.analysis import analyze
from automodel_cli.scaling.report import as_json

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


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", [1, 2, 5])
def test_losses_that_follow_nothing_have_doubts_and_no_nan(seed):
    """Laws without a term, parabolas on their heads, no vertex at all: all of it is said, and nothing else."""
    points, generator = surface(sizes=5), np.random.default_rng(seed)
    losses = generator.uniform(2, 4, len(points)) if seed % 2 else 3 * np.exp(generator.standard_normal(len(points)))
    found = analyze(points.with_loss(losses), resamples=4)
    notes = found.notes()
    assert notes and not any("nan" in note for note in notes)
    json.dumps(as_json(found, [found.optimum(1e20)], [found.predict(1e9, 1e10)]))
