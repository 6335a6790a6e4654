"""The next token of rows that each have settings and random numbers of their own, all rows at once.

Shapes: N rows, V vocabulary, K candidates.

A row draws one number a token, a function of its seed and the position alone: what it gets does not depend on who else
is in the batch. The number picks from the cumulated probabilities; of likely tokens only, where there is a top-k.
The order is that of ``generation.sampling``: temperature, top-k, top-p.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from automodel_cli.generation.sampling import mix


@dataclass(frozen=True)
class Sampling:
    """How tokens of one row are chosen: temperature 0 takes the likeliest; None: all tokens are candidates."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def number(self, position: int) -> float:
        """At least 0 and below 1."""
        return (mix(mix(self.seed, 1), position) >> 10) * 2.0**-53


Pick = Callable[[Tensor, Sequence[Sampling], Tensor], Tensor]


def choose(logits: Tensor, settings: Sequence[Sampling], positions: Sequence[int]) -> Tensor:
    """The next token of each row, int64 ``[N]``, from finite fp32 logits ``[N, V]`` on the CPU."""
    chosen = torch.empty(len(settings), dtype=torch.int64)
    numbers = torch.tensor(
        [one.number(position) for one, position in zip(settings, positions, strict=True)], dtype=torch.float64
    )
    for pick, rows in _by_kind(settings).items():
        some = logits if len(rows) == len(settings) else logits[rows]
        chosen[rows] = pick(some, [settings[row] for row in rows], numbers[rows])
    return chosen


def _by_kind(settings: Sequence[Sampling]) -> dict[Pick, list[int]]:
    """The rows that are chosen for in the same way."""
    kinds: dict[Pick, list[int]] = {}
    for row, one in enumerate(settings):
        some = one.top_k is not None or (one.top_p is not None and one.top_p < 1)
        kinds.setdefault(_likeliest if one.temperature == 0 else _of_some if some else _of_all, []).append(row)
    return kinds


def _likeliest(logits: Tensor, settings: Sequence[Sampling], numbers: Tensor) -> Tensor:
    return logits.argmax(dim=-1)


def _of_all(logits: Tensor, settings: Sequence[Sampling], numbers: Tensor) -> Tensor:
    return _drawn((logits / _column([one.temperature for one in settings])).softmax(dim=-1), numbers)


def _of_some(logits: Tensor, settings: Sequence[Sampling], numbers: Tensor) -> Tensor:
    """From the likeliest K tokens in their order, of which each row may use its first few."""
    size = logits.shape[-1]
    allowed = [min(one.top_k or size, size) for one in settings]
    values, ids = logits.topk(max(allowed), dim=-1)
    scaled = values / _column([one.temperature for one in settings])
    places = torch.arange(values.shape[-1])
    weights = scaled.masked_fill(places >= _column(allowed), float("-inf")).softmax(dim=-1)
    if any(one.top_p is not None for one in settings):
        likelier = weights.cumsum(dim=-1) - weights  # what those before hold already
        drop = likelier >= _column([one.top_p or math.inf for one in settings])
        drop[:, 0] = False
        weights = weights.masked_fill(drop, 0.0)
    return ids.gather(-1, _drawn(weights, numbers)[:, None])[:, 0]


def _drawn(weights: Tensor, numbers: Tensor) -> Tensor:
    """Where the cumulated ``weights [N, K]`` pass the share ``numbers [N]`` of their sum."""
    reached = weights.cumsum(dim=-1, dtype=torch.float64)
    wanted = (numbers * reached[:, -1])[:, None]
    return torch.searchsorted(reached, wanted, right=True)[:, 0].clamp(max=weights.shape[-1] - 1)


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values)[:, None]


@dataclass(frozen=True)
class Score:
    """How likely the model found a chosen token, and the likeliest ones there: natural logarithms."""

    id: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...] = ()


def scores(logits: Tensor, chosen: Tensor, counts: Sequence[int]) -> list[Score]:
    """Of each row the chosen token's score and ``counts`` alternatives, before temperature and filters."""
    logprobs = logits.log_softmax(dim=-1)
    values, ids = logprobs.topk(max(1, *counts), dim=-1)
    return [
        Score(token, float(row[token]), tuple(zip(some[:count].tolist(), best[:count].tolist(), strict=True)))
        for row, token, some, best, count in zip(logprobs, chosen.tolist(), ids, values, counts, strict=True)
    ]
