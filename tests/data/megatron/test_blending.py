"""Blends: the lanes against the rule taken step by step, and the stateless blend against its definition."""

from __future__ import annotations

import numpy as np
import pytest

from automodel_cli.data.megatron import blending
from automodel_cli.data.megatron.blending import StrideBlend, blend, blend_all
from automodel_cli.data.megatron.gpt_index import normalize
from automodel_cli.errors import ConfigError


def step_by_step(weights: list[float], size: int, caps: list[int] | None = None) -> list[int]:
    """The rule, in plain Python floats."""
    drawn, chosen = [0] * len(weights), []
    for step in range(size):
        best, most = -1, 0.0
        for number, weight in enumerate(weights):
            if caps is not None and drawn[number] >= caps[number]:
                continue
            lag = weight * max(step, 1) - drawn[number]
            if best < 0 or lag > most:
                best, most = number, lag
        drawn[best] += 1
        chosen.append(best)
    return chosen


def assert_numbered(chosen: np.ndarray, numbers: np.ndarray) -> None:
    """Each data set's samples are taken in turn, from 0 on."""
    for dataset in np.unique(chosen):
        mine = numbers[chosen == dataset]
        np.testing.assert_array_equal(mine, np.arange(len(mine)))


WEIGHTS = {
    "equal": [1.0] * 7,
    "seeds": [7400.0] * 13 + [1912.0],
    "thirds": [1.0, 2.0],
    "skewed": [1000.0, 10.0, 1.0, 0.1],
    "very skewed": [1.0, 1e-5, 1e-5],
    "one": [3.0],
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_lanes_give_what_the_rule_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blending, "_ONE_LANE", 64)
    monkeypatch.setattr(blending, "_LANE_ELEMENTS", 1 << 11)
    weights = normalize(normalize(WEIGHTS[name]))
    for size in (1, 63, 5000):
        found = blend(weights, size)
        assert found.dataset_index.dtype == np.int16
        assert found.dataset_sample_index.dtype == np.int64
        assert found.dataset_index.tolist() == step_by_step(weights, size)
        assert_numbered(found.dataset_index, found.dataset_sample_index)


def test_random_blends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blending, "_ONE_LANE", 64)
    random = np.random.default_rng(2)
    for _ in range(40):
        count, size = int(random.integers(1, 9)), int(random.integers(1, 3000))
        weights = normalize((10 ** random.uniform(-3, 0, count)).tolist())
        assert blend(weights, size).dataset_index.tolist() == step_by_step(weights, size)


def test_all_of_it_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blending, "_ONE_LANE", 64)
    random = np.random.default_rng(3)
    for _ in range(40):
        sizes = random.integers(1, random.choice([4, 50, 900]), int(random.integers(1, 7))).tolist()
        total = sum(sizes)
        found = blend_all(sizes)
        assert np.bincount(found.dataset_index, minlength=len(sizes)).tolist() == sizes
        weights = [size / float(total) for size in sizes]
        assert found.dataset_index.tolist() == step_by_step(weights, total, caps=sizes)
        assert_numbered(found.dataset_index, found.dataset_sample_index)


def test_a_wrong_guess_is_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes that start from nonsense and do not run ahead: all of the work is left to the repair."""
    monkeypatch.setattr(blending, "_lanes", lambda weights, size: (8, 0))
    monkeypatch.setattr(blending, "_likely_counts", lambda weights, drawn: np.array([drawn, 0.0, 0.0]) * bool(drawn))
    weights = [0.2, 0.3, 0.5]
    assert blend(weights, 400).dataset_index.tolist() == step_by_step(weights, 400)
    sizes = [40, 60, 100]
    expected = step_by_step([0.2, 0.3, 0.5], 200, caps=sizes)
    assert blend_all(sizes).dataset_index.tolist() == expected


@pytest.mark.parametrize("weights", [[0.5, 0.0, 0.5], [1.0, -1.0], [float("nan"), 1.0], []])
def test_weights_are_above_zero(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="blend"):
        blend(weights, 10)


def test_an_empty_data_set_and_too_many() -> None:
    with pytest.raises(ConfigError, match="number 2 of the blend has weight 0"):
        blend_all([3, 0])
    with pytest.raises(ConfigError, match="at most 32,766"):
        blend([1 / 40_000] * 40_000, 10)


# ------------------------------------------------------------------------------------------- stateless


@pytest.mark.parametrize("count", [1, 2, 5, 200])
def test_a_stateless_blend_keeps_each_share_and_order(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blending, "_BLOCK", 512)
    weights = np.array(normalize((np.random.default_rng(count).random(count) ** 2 + 0.01).tolist()))
    datasets, samples = StrideBlend(weights.tolist())(np.arange(4000))
    assert_numbered(datasets, samples)
    for length in range(0, 4000, 97):
        drawn = np.bincount(datasets[:length], minlength=count)
        assert np.abs(drawn - weights * length).max() < 2


def test_a_stateless_blend_is_a_function_of_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [0.3, 0.3, 0.4]
    whole = StrideBlend(weights)(np.arange(3 * 65_536))
    numbers = np.random.default_rng(0).permutation(3 * 65_536)[:5000]
    found = StrideBlend(weights)(numbers)
    np.testing.assert_array_equal(found[0], whole[0][numbers])
    np.testing.assert_array_equal(found[1], whole[1][numbers])
    monkeypatch.setattr(blending, "_BLOCK", 1000)  # the size of a block does not show
    again = StrideBlend(weights)(numbers)
    np.testing.assert_array_equal(again[1], found[1])
    far = StrideBlend(weights)(np.arange(10**12, 10**12 + 10))
    assert abs(int(far[1][far[0] == 2].max()) - 0.4 * 10**12) < 10
