"""Choosing tokens: the distribution is that of ``generation.sampling``, and nobody's draw depends on others."""

from __future__ import annotations

import pytest
import torch

from automodel_cli.generation.sampling import next_token_probabilities
from automodel_cli.serving.choosing import Sampling, choose, scores

LOGITS = torch.tensor([[2.0, 1.0, 0.5, -1.0, 0.0, -3.0, 1.5, -0.5]])


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, None, None), (0.7, 3, None), (1.3, None, 0.6), (0.9, 6, 0.8)]
)
def test_frequencies_are_the_probabilities(temperature, top_k, top_p):
    draws = 20_000
    settings = [Sampling(temperature, top_k, top_p, seed=5)] * draws
    chosen = choose(LOGITS.expand(draws, -1), settings, range(draws))
    expected = next_token_probabilities(LOGITS, temperature=temperature, top_k=top_k, top_p=top_p)[0]
    found = torch.bincount(chosen, minlength=8) / draws
    assert ((found == 0) == (expected == 0)).all()
    torch.testing.assert_close(found, expected, atol=0.012, rtol=0)


def test_a_row_draws_the_same_whoever_else_is_there():
    torch.manual_seed(0)
    logits = torch.randn(6, 50)
    settings = [
        Sampling(0.0), Sampling(1.0, seed=1), Sampling(0.8, 5, None, 2), Sampling(1.2, 40, 0.5, 3),
        Sampling(1.0, None, 0.9, 4), Sampling(1.0, 1, None, 9),
    ]  # fmt: skip
    together = choose(logits, settings, [3] * 6)
    alone = [int(choose(logits[row : row + 1], [one], [3])) for row, one in enumerate(settings)]
    assert together.tolist() == alone
    assert together[0] == logits[0].argmax() and together[5] == logits[5].argmax()


def test_numbers_follow_from_seed_and_position():
    numbers = [Sampling(seed=seed).number(position) for seed in (0, 1, -7, 2**62) for position in range(200)]
    assert len(set(numbers)) == 800 and min(numbers) >= 0 and max(numbers) < 1
    assert abs(sum(numbers) / 800 - 0.5) < 0.05


def test_scores_are_of_all_tokens_before_temperature():
    (one,) = scores(LOGITS, torch.tensor([3]), [2])
    logprobs = LOGITS[0].log_softmax(-1)
    assert one.id == 3 and one.logprob == pytest.approx(float(logprobs[3]))
    assert [token for token, _ in one.likeliest] == [0, 6]
    assert one.likeliest[1][1] == pytest.approx(float(logprobs[6]))
