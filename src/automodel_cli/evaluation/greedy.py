"""The likeliest continuation of many prompts of different length, in batches, through keys and values.

Rows march in step: the batch starts with as many tokens as the shortest prompt has; from there a row takes the next
token of its own prompt while it has one, and the likeliest one afterwards. No row needs padding on its left, so
positions and masks are the model's ordinary ones. Prompts are sorted by length, so few steps go to prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from automodel_cli.batch import Batch
from automodel_cli.evaluation.likelihood import eval_mode
from automodel_cli.evaluation.span_scores import Progress, SpanScorer
from automodel_cli.generation.decoders import LastLogits
from automodel_cli.models.layers.kv_cache import KVCache

Enough = Callable[[Sequence[int]], bool]
AUTO_ROWS = 32
_KEPT = 0.75  # of the rows in a batch: with so many left or fewer, it goes on without those that are done
_LAST = LastLogits()  # of a batch of prompts, whole logits would be gigabytes


@dataclass(frozen=True)
class Prompt:
    """What to continue, by how many tokens at most, and whether what was written so far is enough."""

    ids: tuple[int, ...]
    max_new_tokens: int
    enough: Enough = lambda written: False


def continue_greedily(
    engine: SpanScorer,
    prompts: Sequence[Prompt],
    *,
    stop_ids: frozenset[int] = frozenset(),
    usable_ids: int | None = None,
    progress: Progress | None = None,
) -> list[list[int]]:
    """The ids written after each prompt, on every rank; a stop id is not among them.

    A prompt that leaves no room for its answer in the model's context keeps its tail.

    Args:
        engine: the model, its device and the processes that take turns.
        usable_ids: choose among the ids below this (a tokenizer may know fewer than the model).
    """
    context, world = engine.model.max_seq_len, engine.world
    rows = engine.batch_size if engine.batch_size != "auto" else AUTO_ROWS
    order = sorted(range(len(prompts)), key=lambda number: (-len(prompts[number].ids), number))
    batches = [order[start : start + rows] for start in range(0, len(order), rows)]
    found: dict[int, list[int]] = {}
    with eval_mode(engine.model, engine.device), torch.no_grad(), engine.autocast():
        for done in range(0, len(batches), world.dp_world):
            numbers = batches[min(done + world.dp_rank, len(batches) - 1)]
            asked = [_fitted(prompts[number], context) for number in numbers]
            written = _Rows(engine, asked, stop_ids, usable_ids).write()
            found |= zip(numbers, written, strict=True)
            if progress is not None:
                progress(min(done + world.dp_world, len(batches)), len(batches))
    merged = {number: ids for of_rank in world.gather(list(found.items())) for number, ids in of_rank}
    return [list(merged[number]) for number in range(len(prompts))]


def stops_at(stops: Sequence[str], decode: Callable[[Sequence[int]], str], *, tail: int) -> Enough:
    """Enough is written once one of ``stops`` is in the text of the last ``tail`` ids."""

    def enough(ids: Sequence[int]) -> bool:
        text = decode(ids[-tail:])
        return any(stop in text for stop in stops)

    return enough


def _fitted(prompt: Prompt, context: int | None) -> Prompt:
    if context is None:
        return prompt
    new = min(prompt.max_new_tokens, context - 1)
    return Prompt(prompt.ids[-(context - new) :], new, prompt.enough)


class _Rows:
    """One batch of rows being written."""

    def __init__(
        self, engine: SpanScorer, prompts: Sequence[Prompt], stop_ids: frozenset[int], usable_ids: int | None
    ) -> None:
        self._engine, self._prompts = engine, prompts
        self._stop_ids, self._usable_ids = stop_ids, usable_ids
        self._written: list[list[int]] = [[] for _ in prompts]
        self._done = [prompt.max_new_tokens == 0 for prompt in prompts]
        self._rows = list(range(len(prompts)))  # those that are still computed, in the order of ``_ids``
        self._cache = KVCache() if engine.share else None
        shortest = min(len(prompt.ids) for prompt in prompts)
        self._ids = torch.tensor([prompt.ids[:shortest] for prompt in prompts], device=engine.device)

    def write(self) -> list[list[int]]:
        """Write until every row of every rank is done; a rank that is done keeps the others company."""
        logits = self._forward(self._ids)
        while True:
            if not all(self._done):
                self._take(logits)
            if not self._engine.world.any(not all(self._done)):
                return self._written
            if all(self._done):
                self._engine.model(Batch(self._ids[:1, :1]))
            else:
                logits = self._forward(self._ids[:, -1:] if self._cache is not None else self._ids)

    def _forward(self, ids: Tensor) -> Tensor:
        logits = self._engine.model(Batch(ids), head_loss=_LAST, cache=self._cache)
        return logits[:, : self._usable_ids]

    def _take(self, logits: Tensor) -> None:
        """Append one id a row: the prompt's own next one, or the likeliest."""
        length = self._ids.shape[1]
        column = []
        for row, token in zip(self._rows, logits.argmax(dim=-1).tolist(), strict=True):
            prompt = self._prompts[row]
            if length < len(prompt.ids):
                column.append(prompt.ids[length])
                continue
            column.append(token)
            if not self._done[row]:
                self._add(row, token)
        self._ids = torch.cat([self._ids, torch.tensor(column, device=self._ids.device)[:, None]], dim=1)
        self._let_go()

    def _add(self, row: int, token: int) -> None:
        if token in self._stop_ids:
            self._done[row] = True
            return
        prompt, written = self._prompts[row], self._written[row]
        written.append(token)
        self._done[row] = len(written) >= prompt.max_new_tokens or prompt.enough(written)

    def _let_go(self) -> None:
        """Compute rows that are done no longer, once they are a fourth: copying the others costs something too."""
        left = [place for place, row in enumerate(self._rows) if not self._done[row]]
        if 0 < len(left) <= len(self._rows) * _KEPT:
            places = torch.tensor(left, device=self._ids.device)
            self._ids, self._rows = self._ids[places], [self._rows[place] for place in left]
            if self._cache is not None:
                self._cache.select_rows(places)
