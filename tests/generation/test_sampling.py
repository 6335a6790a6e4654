"""Filters and draws: against probabilities worked out by hand and transformers' own filters."""

from __future__ import annotations

import math

import pytest
import torch

from automodel_cli.errors import ConfigError
from automodel_cli.generation.sampling import (
    SeenTokens,
    filter_top_k,
    filter_top_p,
    next_token_probabilities,
    row_generators,
    sample,
)

LOGITS = torch.log(torch.tensor([[0.1, 0.5, 0.15, 0.25]]))


def kept(logits):
    return torch.isfinite(logits).squeeze(0).tolist()


class TestFilters:
    def test_top_k(self):
        assert kept(filter_top_k(LOGITS, 2)) == [False, True, False, True]
        for all_of_them in (4, 100, None):
            assert filter_top_k(LOGITS, all_of_them) is LOGITS

    @pytest.mark.parametrize(
        ("top_p", "expected"),
        [
            (0.01, [False, True, False, False]),
            (0.5, [False, True, False, False]),
            (0.51, [False, True, False, True]),
            (0.8, [False, True, True, True]),
            (1.0, [True, True, True, True]),
        ],
    )
    def test_top_p_is_the_smallest_set_that_reaches_it(self, top_p, expected):
        assert kept(filter_top_p(LOGITS, top_p)) == expected

    def test_temperature(self):
        found = next_token_probabilities(LOGITS, temperature=0.5)
        expected = torch.tensor([0.1, 0.5, 0.15, 0.25]) ** 2
        torch.testing.assert_close(found[0], expected / expected.sum())

    @pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(0.7, 20, None), (1.3, None, 0.6), (0.9, 30, 0.8)])
    def test_as_transformers_does(self, temperature, top_k, top_p):
        warpers = pytest.importorskip("transformers.generation.logits_process")
        logits = torch.randn(5, 100, generator=torch.Generator().manual_seed(0)) * 2
        expected = warpers.TemperatureLogitsWarper(temperature)(None, logits)
        if top_k is not None:
            expected = warpers.TopKLogitsWarper(top_k)(None, expected)
        if top_p is not None:
            expected = warpers.TopPLogitsWarper(top_p)(None, expected)
        found = next_token_probabilities(logits, temperature=temperature, top_k=top_k, top_p=top_p)
        torch.testing.assert_close(found, expected.softmax(-1))


class TestSample:
    def test_greedy_takes_the_likeliest_and_no_random_number(self):
        torch.manual_seed(1)
        expected = torch.rand(1)
        torch.manual_seed(1)
        assert sample(LOGITS.repeat(3, 1), temperature=0).tolist() == [1, 1, 1]
        assert torch.equal(torch.rand(1), expected)

    def test_frequencies(self):
        generators = row_generators(0, prompts=1, samples=1)
        draws = [int(sample(LOGITS, top_p=0.8, generators=generators)) for _ in range(4000)]
        share = torch.bincount(torch.tensor(draws), minlength=4) / 4000
        torch.testing.assert_close(share, torch.tensor([0.0, 0.5, 0.15, 0.25]) / 0.9, atol=0.03, rtol=0)

    def test_a_row_draws_the_same_whatever_the_others(self):
        logits = torch.zeros(8, 1000)
        many = sample(logits, generators=row_generators(7, prompts=1, samples=8))
        few = sample(logits[:3], generators=row_generators(7, prompts=1, samples=3))
        assert many[:3].tolist() == few.tolist()
        assert len(set(many.tolist())) > 5
        assert sample(logits, generators=row_generators(8, prompts=1, samples=8)).tolist() != many.tolist()

    @pytest.mark.parametrize("bad", [[math.nan, 1.0], [math.inf, 1.0], [-math.inf, -math.inf]])
    def test_logits_that_are_not_finite(self, bad):
        with pytest.raises(ConfigError, match="not finite"):
            sample(torch.tensor([[0.0, 0.0], bad]))

    def test_forbidden_tokens_are_fine(self):
        assert sample(torch.tensor([[-math.inf, 0.0]])).tolist() == [1]

    @pytest.mark.parametrize(
        "setting",
        [{"temperature": -0.1}, {"temperature": math.nan}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}],
    )
    def test_settings_out_of_range(self, setting):
        with pytest.raises(ConfigError, match=next(iter(setting))):
            sample(LOGITS, **setting)


def test_repetition_penalty_as_in_transformers():
    processor = pytest.importorskip("transformers").RepetitionPenaltyLogitsProcessor(1.7)
    torch.manual_seed(0)
    prompts, logits = [[3, 3, 8], [1, 2, 9]], torch.randn(2, 12)
    seen = SeenTokens(prompts, samples=1)
    torch.testing.assert_close(seen.penalise(logits, 1.7), processor(torch.tensor(prompts), logits.clone()))
    seen.add(torch.tensor([5, 2]))
    grown = torch.tensor([[3, 3, 8, 5], [1, 2, 9, 2]])
    torch.testing.assert_close(seen.penalise(logits, 1.7), processor(grown, logits.clone()))
