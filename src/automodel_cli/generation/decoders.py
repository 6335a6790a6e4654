"""Where the logits of the next token come from.

Shapes: P prompts, B rows (P x samples, a prompt's samples next to each other), T tokens so far, V vocabulary.

``Cached`` keeps keys and values, so that a token costs a forward of one token; ``FullForward`` computes everything
anew and is what the other is compared with. At the end of the model's context positions run out, and keys and
values of tokens at other positions are of no use: the newest half of a full row becomes its beginning, computed anew,
so that the cost of a token stays flat. ``FullForward`` lets one token fall out for each that comes instead, as
nanoGPT's sampling does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from automodel_cli.batch import Batch
from automodel_cli.models.layers.gpt import softcapped
from automodel_cli.models.layers.kv_cache import KVCache


class Decoder(Protocol):
    """Where the logits of the next token come from."""

    def start(self, prompts: Sequence[Sequence[int]], *, samples: int, device: torch.device) -> Tensor:
        """Take the prompts, each of them for ``samples`` rows; logits of what follows, ``[B, V]``."""
        ...

    def advance(self, ids: Tensor) -> Tensor:
        """Take one chosen token a row, int64 ``[B]``; logits of what follows, ``[B, V]``."""
        ...


class LastLogits:
    """A ``head_loss`` that is no loss: logits of the last position only, ``[B, V]``."""

    takes_softcap = True

    def __call__(
        self, hidden: Tensor, weight: Tensor, labels: Tensor | None, *, vocab_size: int, softcap: float = 0.0
    ) -> Tensor:
        """From hidden states ``[B, T, D]`` and the head weight ``[P, D]``."""
        logits = nn.functional.linear(hidden[:, -1], weight)[:, :vocab_size]
        return softcapped(logits, softcap) if softcap else logits

    def from_logits(self, logits: Tensor, labels: Tensor | None) -> Tensor:
        """From whole logits ``[B, T, V]``, for models that give no hidden states."""
        return logits[:, -1]


class Cached:
    """A forward over the prompts, then one of a single token a row for each token.

    ``new_tokens``: how many will be asked for: room for them is made at once.
    """

    def __init__(self, model: nn.Module, *, new_tokens: int = 0) -> None:
        self._model = model
        self._context: int | None = getattr(model, "max_seq_len", None)
        self._new_tokens = new_tokens
        self._head = LastLogits()
        self._cache = KVCache()
        self._ids = self._padding = torch.empty(0)

    def start(self, prompts: Sequence[Sequence[int]], *, samples: int, device: torch.device) -> Tensor:
        ids, padding = left_padded(prompts, self._context)
        logits = self._read(ids.to(device), padding.to(device), self._new_tokens)
        if samples == 1:
            return logits
        rows = torch.arange(len(prompts), device=device).repeat_interleave(samples)
        self._cache.select_rows(rows)
        self._ids, self._padding = self._ids[rows], self._padding[rows]
        return logits[rows]

    def _read(self, ids: Tensor, padding: Tensor, more: int) -> Tensor:
        """Begin anew with ``ids [B, T]``, of which the first ``padding [B]`` of each row are none."""
        self._ids, self._padding = ids, padding
        capacity = ids.shape[1] + more
        self._cache = KVCache(
            capacity=capacity if self._context is None else min(capacity, self._context),
            left_padding=padding if bool(padding.any()) else None,
        )
        return self._forward(ids)

    def _forward(self, ids: Tensor) -> Tensor:
        return self._model(Batch(input_ids=ids), head_loss=self._head, cache=self._cache)

    def advance(self, ids: Tensor) -> Tensor:
        self._ids = torch.cat([self._ids, ids[:, None]], dim=1)
        # The longest row has no padding, so its length is the cache's.
        if self._context is None or self._cache.length < self._context:
            return self._forward(ids[:, None])
        return self._slide(self._context)

    def _slide(self, context: int) -> Tensor:
        """Full rows go on from their newest half, the others keep what they have."""
        rows = []
        for row, padding in zip(self._ids.tolist(), self._padding.tolist(), strict=True):
            kept = row[padding:]
            rows.append(kept if len(kept) <= context else kept[-max(1, context // 2) :])
        ids, padding = left_padded(rows, context)
        return self._read(ids.to(self._ids.device), padding.to(self._ids.device), self._new_tokens)


class FullForward:
    """The plain decoder: each token costs a forward over all tokens in the context. Prompts of one length only."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._context: int | None = getattr(model, "max_seq_len", None)
        self._head = LastLogits()

    def start(self, prompts: Sequence[Sequence[int]], *, samples: int, device: torch.device) -> Tensor:
        self._ids = torch.tensor([list(prompt) for prompt in prompts for _ in range(samples)], device=device)
        return self._next_logits()

    def advance(self, ids: Tensor) -> Tensor:
        self._ids = torch.cat([self._ids, ids[:, None]], dim=1)
        return self._next_logits()

    def _next_logits(self) -> Tensor:
        if self._context is not None:
            self._ids = self._ids[:, -self._context :]
        return self._model(Batch(input_ids=self._ids), head_loss=self._head)


def left_padded(prompts: Sequence[Sequence[int]], context: int | None) -> tuple[Tensor, Tensor]:
    """Prompts as one int64 ``[P, T]`` that end together, and how many ids of each row are padding, ``[P]``.

    Of a prompt longer than the context its end is kept.
    """
    kept = [list(prompt) if context is None else list(prompt)[-context:] for prompt in prompts]
    longest = max(map(len, kept))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in kept])
    return ids, torch.tensor([longest - len(row) for row in kept])
