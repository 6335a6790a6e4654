"""Which updates are spikes: against NumPy, through a resume, and what an update does with limits."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from automodel_cli.batch import Batch
from automodel_cli.errors import CheckpointError
from automodel_cli.train.spikes import (
    LOSS_FLOOR,
    MINIMUM,
    NO_LIMITS,
    NORM_CEILING,
    NORM_FLOOR,
    Limits,
    SpikeDetector,
    SpikeRule,
)
from automodel_cli.train.step import StepMetrics, train_step

RULE = SpikeRule(window=60, threshold=5.0, most_in_a_row=4)


def numbers(loss: float, norm: float = 1.0, skipped: bool = False) -> StepMetrics[float]:
    return StepMetrics(np.float32(loss).item(), 8, np.float32(norm).item(), skipped)


def series(length: int, seed: int = 0) -> list[StepMetrics[float]]:
    """Falling losses and wandering norms, with jumps of either."""
    rng = np.random.default_rng(seed)
    losses = 4 * np.exp(-np.arange(length) / 80) + 2 + rng.normal(0, 0.05, length)
    norms = np.exp(rng.normal(0, 0.2, length) + np.sin(np.arange(length) / 40))
    for at in rng.choice(np.arange(70, length), 6, replace=False):
        (losses if at % 2 else norms)[at] *= 4
    return [numbers(*pair) for pair in zip(losses, norms, strict=True)]


def limit_by_numpy(values: np.ndarray, floor: float, ceiling: float = math.inf) -> float:
    middle = np.median(values)
    return float(middle + RULE.threshold * np.clip(1.4826 * np.median(np.abs(values - middle)), floor, ceiling))


def test_limits_are_those_of_the_update_before_last():
    detector, accepted, spikes = SpikeDetector(RULE), list[StepMetrics[float]](), 0
    expected = [NO_LIMITS, NO_LIMITS]
    for one in series(300):
        limits = expected.pop(0)
        assert detector.limits() == pytest.approx(limits, rel=1e-6)
        assert detector.limits(1) == pytest.approx(expected[0], rel=1e-6)
        spike = one.loss > limits.loss or one.grad_norm > limits.grad_norm
        assert detector.judge(one) == spike
        spikes += spike
        accepted = accepted if spike else [*accepted, one][-RULE.window :]
        norms = np.log([each.grad_norm for each in accepted])
        known = len(accepted) >= MINIMUM
        loss = limit_by_numpy(np.array([each.loss for each in accepted]), LOSS_FLOOR) if known else math.inf
        norm = math.exp(limit_by_numpy(norms, NORM_FLOOR, NORM_CEILING)) if known else math.inf
        expected.append(Limits(loss, norm))
    assert detector.seen == spikes >= 4


def test_a_detector_goes_on_from_json_as_if_it_had_never_stopped():
    whole, parts = SpikeDetector(RULE), SpikeDetector(RULE)
    for number, one in enumerate(series(300)):
        if number % 7 == 3:
            stored = json.loads(json.dumps(parts.to_dict(), allow_nan=False))
            parts = SpikeDetector(RULE)
            parts.restore(stored)
        assert parts.judge(one) == whole.judge(one)
        assert parts.to_dict() == whole.to_dict()


def test_a_new_level_is_accepted_after_so_many_spikes():
    detector = SpikeDetector(RULE)
    assert not any(detector.judge(numbers(2.0)) for _ in range(100))
    assert [detector.judge(numbers(3.0)) for _ in range(4)] == [True] * 4
    assert detector.judge(numbers(3.0))  # its limits were made before the fourth was known
    assert not any(detector.judge(numbers(3.0)) for _ in range(100))
    assert detector.judge(numbers(4.0)) and detector.seen == 6


def test_what_is_not_finite_is_no_spike_and_no_measure():
    detector = SpikeDetector(RULE)
    for _ in range(60):
        detector.judge(numbers(2.0))
        assert not detector.judge(numbers(math.nan, skipped=True)) and not detector.judge(numbers(2.0, math.inf, True))
    assert detector.limits() == pytest.approx((2.0 + 5 * LOSS_FLOOR, math.exp(5 * NORM_FLOOR)))
    assert detector.judge(numbers(2.0), agreed=True)  # another rank saw it above


@pytest.mark.parametrize(
    "spoiled",
    [{}, {"losses": [1.0], "grad_norms": [], "limits": []}, {"losses": ["a"], "grad_norms": [], "limits": []}, 3],
)
def test_a_state_that_is_none_is_refused(spoiled):
    with pytest.raises(CheckpointError, match="the state of spikes"):
        SpikeDetector(RULE).restore(spoiled)


class Line(nn.Module):
    """One weight; the loss sums w * label."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch: Batch, head_loss: object) -> torch.Tensor:
        assert batch.labels is not None
        return (self.weight * batch.labels).sum()


@pytest.mark.parametrize(
    ("limits", "left_out"),
    [(None, False), (NO_LIMITS, False), (Limits(3.0, 3.0), False), (Limits(2.9, 9.0), True), (Limits(9.0, 2.9), True)],
)
@pytest.mark.parametrize("fused", [False, True])
def test_an_update_above_a_limit_is_left_out(limits, left_out, fused):
    model = Line()  # loss 3, gradient 3
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    batch = Batch(torch.full((1, 4), 3), torch.full((1, 4), 3))
    given = None if limits is None else limits.on(torch.device("cpu"))
    metrics = train_step(model, None, optimizer, [batch], max_norm=None, limits=given)
    assert (metrics.loss.item(), metrics.grad_norm.item()) == (3.0, 3.0)
    assert bool(metrics.skipped) == left_out and (model.weight.item() == 1.0) == left_out
