"""The rows of a running batch: texts that join it, grow by a token a step, and leave.

Shapes: B rows, V vocabulary.

Prompts are read apart from the others, in a cache of their own, and their keys and values are then copied to where the
batch has its own: so a prompt costs no padding to the rows that are there, and a long one can be read in pieces, with
steps of the others between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from automodel_cli.batch import Batch
from automodel_cli.generation.decoders import Cached, Decoder, FullForward, LastLogits
from automodel_cli.models.interface import CausalLM
from automodel_cli.models.layers.gpt import softcapped
from automodel_cli.models.layers.kv_cache import KVCache, SlotCache
from automodel_cli.models.own import OwnCausalLM

CHUNK_TOKENS = 512
"""Tokens, padding included, of prompts that are read in one forward: others wait as long for their next token."""


class Rows(Protocol):
    """Rows by number, 0 to B - 1."""

    def join(self, prompts: Sequence[Sequence[int]]) -> Iterator[Tensor | None]:
        """Read prompts and add their rows at the end: None after each piece, at last logits of what follows ``[P, V]``.

        Other rows may go on and leave meanwhile. More than one prompt only where all of them are one piece.
        """
        ...

    def step(self, ids: Tensor) -> Tensor:
        """Take one chosen token a row, int64 ``[B]``; logits of what follows, ``[B, V]``."""
        ...

    def leave(self, row: int) -> None:
        """Let a row go; the last one takes its number."""
        ...


def rows_of(model: CausalLM, device: torch.device) -> Rows:
    """A batch for models of ours; what others keep of earlier tokens is theirs, and each row is a batch of its own."""
    return BatchedRows(model, device) if isinstance(model, OwnCausalLM) else SingleRows(model, device)


class BatchedRows:
    """All rows in one forward."""

    def __init__(self, model: CausalLM, device: torch.device) -> None:
        self._model, self._device = model, device
        self._cache, self._head = SlotCache(), LastLogits()

    def join(self, prompts: Sequence[Sequence[int]]) -> Iterator[Tensor | None]:
        """As ``Rows`` has it: long prompts in pieces."""
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        ids = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=self._device)
        cache = KVCache(capacity=longest)
        *earlier, last = ids.split(longest if len(prompts) > 1 else CHUNK_TOKENS, dim=1)
        for piece in earlier:
            self._model(Batch(input_ids=piece), head_loss=self._head, cache=cache)
            yield None
        before = cache.length
        head = LogitsAt(torch.tensor(lengths, device=self._device) - 1 - before)
        logits = self._model(Batch(input_ids=last), head_loss=head, cache=cache)
        self._cache.adopt(cache, lengths)
        yield logits

    def step(self, ids: Tensor) -> Tensor:
        ids = ids[:, None].to(self._device)
        return self._model(Batch(input_ids=ids), head_loss=self._head, cache=self._cache)

    def leave(self, row: int) -> None:
        self._cache.drop(row)


class LogitsAt:
    """A ``head_loss`` that is no loss: logits at one position of each row, int64 ``[B]``."""

    takes_softcap = True

    def __init__(self, places: Tensor) -> None:
        self._places = places

    def __call__(
        self, hidden: Tensor, weight: Tensor, labels: Tensor | None, *, vocab_size: int, softcap: float = 0.0
    ) -> Tensor:
        """From hidden states ``[B, T, D]`` and the head weight ``[P, D]``."""
        logits = nn.functional.linear(self._of(hidden), weight)[:, :vocab_size]
        return softcapped(logits, softcap) if softcap else logits

    def from_logits(self, logits: Tensor, labels: Tensor | None) -> Tensor:
        """From whole logits ``[B, T, V]``."""
        return self._of(logits)

    def _of(self, values: Tensor) -> Tensor:
        return values[torch.arange(len(values), device=values.device), self._places]


class SingleRows:
    """One row after the other, each with a decoder of its own."""

    def __init__(self, model: CausalLM, device: torch.device) -> None:
        self._device = device
        self._new: Callable[[], Decoder] = lambda: Cached(model) if model.takes_cache else FullForward(model)
        self._decoders: list[Decoder] = []

    def join(self, prompts: Sequence[Sequence[int]]) -> Iterator[Tensor | None]:
        """As ``Rows`` has it: each prompt whole."""
        decoders = [self._new() for _ in prompts]
        logits = [
            decoder.start([prompt], samples=1, device=self._device)
            for decoder, prompt in zip(decoders, prompts, strict=True)
        ]
        self._decoders += decoders
        yield torch.cat(logits)

    def step(self, ids: Tensor) -> Tensor:
        ids = ids.to(self._device)
        return torch.cat([decoder.advance(one) for decoder, one in zip(self._decoders, ids.split(1), strict=True)])

    def leave(self, row: int) -> None:
        self._decoders[row] = self._decoders[-1]
        self._decoders.pop()
