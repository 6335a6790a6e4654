"""From logits to the next token: repetition penalty, temperature, top-k, top-p, greedy.

Shapes: B rows, V vocabulary. Logits are ``[B, V]``; a filtered token has logit ``-inf``.

The order is the usual one: repetition penalty (Keskar et al. 2019, "CTRL"), temperature, then top-k, then top-p
(Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration") on what is left. At least one token always
stays.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from automodel_cli.errors import ConfigError


def filter_top_k(logits: Tensor, top_k: int | None) -> Tensor:
    """Keep the ``top_k`` likeliest tokens of each row (and whatever ties with the last of them)."""
    if top_k is None or top_k >= logits.shape[-1]:
        return logits
    smallest_kept = logits.topk(top_k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest_kept, float("-inf"))


def filter_top_p(logits: Tensor, top_p: float | None) -> Tensor:
    """Keep the fewest likeliest tokens of each row whose probabilities add up to ``top_p`` or more."""
    if top_p is None or top_p >= 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # what the likelier ones hold already
    drop_ordered = before >= top_p
    drop_ordered[..., 0] = False
    drop = torch.zeros_like(drop_ordered).scatter(-1, order, drop_ordered)
    return logits.masked_fill(drop, float("-inf"))


def next_token_probabilities(
    logits: Tensor, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """The distribution that is sampled from, fp32 ``[B, V]``; ``temperature`` must be positive."""
    scaled = logits.float() / temperature
    return filter_top_p(filter_top_k(scaled, top_k), top_p).softmax(dim=-1)


def sample(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generators: Sequence[torch.Generator] | None = None,
) -> Tensor:
    """The next token of each row, int64 ``[B]``; ``temperature`` 0 takes the likeliest.

    Args:
        generators: one for each row, on the device of ``logits``, so that what a row draws does not depend on
            how many rows there are; None: torch's default generator.

    Raises:
        ConfigError: a setting outside its range, or logits that are not finite.
    """
    check_settings(temperature=temperature, top_k=top_k, top_p=top_p)
    largest = logits.amax(dim=-1)  # NaN where any logit is, -inf where no token is allowed
    if not bool(largest.isfinite().all()):
        raise ConfigError(
            "the model's logits are not finite: there is no next token to choose",
            "check the weights with: automodel inspect-ckpt CKPT --verify",
        )
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = next_token_probabilities(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    rows = [
        torch.multinomial(row, 1, generator=generators[index] if generators is not None else None)
        for index, row in enumerate(probabilities)
    ]
    return torch.cat(rows)


class SeenTokens:
    """Which ids each row has had so far, prompt included: those that a repetition penalty makes less likely."""

    def __init__(self, prompts: Sequence[Sequence[int]], samples: int) -> None:
        self._seen = [torch.tensor(sorted(set(prompt))) for prompt in prompts for _ in range(samples)]

    def add(self, chosen: Tensor) -> None:
        """Take one more id a row, int64 ``[B]``."""
        self._seen = [torch.cat([seen, one]).unique() for seen, one in zip(self._seen, chosen[:, None], strict=True)]

    def penalise(self, logits: Tensor, penalty: float) -> Tensor:
        """Logits with those of seen ids divided by ``penalty`` where positive and multiplied where negative."""
        logits = logits.clone()
        for row, seen in zip(logits, self._seen, strict=True):
            usable = seen[seen < len(row)]
            values = row[usable]
            row[usable] = torch.where(values > 0, values / penalty, values * penalty)
        return logits


def row_generators(
    seed: int, *, prompts: int, samples: int, device: torch.device | str = "cpu"
) -> list[torch.Generator]:
    """A generator for each sample of each prompt, a function of (seed, prompt, sample) alone."""
    return [
        torch.Generator(device).manual_seed(mix(seed if prompt == 0 else mix(seed, -prompt), number))
        for prompt in range(prompts)
        for number in range(samples)
    ]


def mix(seed: int, number: int) -> int:
    """63 bits of a seed and a number, neighbors far apart: one round of SplitMix64."""
    value = (seed * 0x9E3779B97F4A7C15 + number * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & (2**64 - 1)
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (value ^ (value >> 31)) >> 1  # manual_seed takes 63 bits


def check_settings(
    *, temperature: float, top_k: int | None, top_p: float | None, repetition_penalty: float = 1.0
) -> None:
    """Check the ranges.

    Raises:
        ConfigError: naming the setting, what it is and what it may be.
    """
    if not temperature >= 0 or temperature == float("inf"):
        raise ConfigError(f"temperature is {temperature}", "give 0 (always the likeliest token) or more")
    if top_k is not None and top_k < 1:
        raise ConfigError(f"top_k is {top_k}", "give 1 or more, or leave it out to allow all tokens")
    if top_p is not None and not 0 < top_p <= 1:
        raise ConfigError(f"top_p is {top_p}", "give more than 0 and at most 1, or leave it out")
    if not 0 < repetition_penalty < float("inf"):
        raise ConfigError(f"repetition_penalty is {repetition_penalty}", "give more than 0; 1 means no penalty")
