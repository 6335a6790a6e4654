"""How well a model predicts tokens it was not trained on: loss, perplexity, bits per byte.

Shapes: B rows, T tokens, V vocabulary.

Everything is a sum over label tokens divided once by their number; a mean of batch means would weigh a short
last batch like a full one. Bits per byte does not depend on the tokenizer, so models with different ones can
be compared: the nats of all predicted tokens, in bits, over the bytes of text that these tokens stand for.
Special tokens (end of text) stand for no bytes, but predicting them is part of the text's price and counts. How many
bytes a token stands for is the matter of ``corpus.tokenizers.token_bytes``; where one is scored of which nobody knows,
there is no sum.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from automodel_cli.batch import IGNORE_INDEX, Batch
from automodel_cli.corpus.tokenizers.token_bytes import UNKNOWN, TokenBytes
from automodel_cli.data.objective import losses_by_source
from automodel_cli.dtypes import autocast
from automodel_cli.errors import DataError
from automodel_cli.models.interface import HeadLoss
from automodel_cli.train.losses import ChunkedCrossEntropy
from automodel_cli.train.row_losses import SourceSums, nll_of, tells_rows

_PIECE = 1024  # batches whose sums share a piece of memory


@dataclass(frozen=True)
class Likelihood:
    """The score of a model on some tokens; ``loss`` in nats per token, ``bytes`` None where unknown."""

    loss: float
    perplexity: float
    bits_per_byte: float | None
    tokens: int
    bytes: int | None
    seconds: float
    tokens_per_s: float
    loss_by_source: Mapping[str, float] = field(default_factory=dict)
    tokens_by_source: Mapping[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name, as metrics records and result files have them; by source where there are such."""
        return {name: value for name, value in asdict(self).items() if value != {}}


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    token_bytes: TokenBytes | np.ndarray | None = None,
    device: torch.device | str = "cpu",
    autocast_dtype: torch.dtype | None = None,
    head_loss: HeadLoss | None = None,
    sum_over_ranks: Callable[[Tensor], Tensor] | None = None,
    progress: Callable[[int], None] | None = None,
    sources: Sequence[str] = (),
) -> Likelihood:
    """Score ``model`` on ``batches``, in eval mode and without gradients.

    The model's modes and the random number generators are afterwards as they were, so validation in the
    middle of a run does not change its course.

    Args:
        model: called as ``model(batch, head_loss=...)``, a ``CausalLM``.
        batches: with labels ``[B, T]``; ``IGNORE_INDEX`` marks tokens that are not scored.
        token_bytes: bytes each id stands for (an array ``[V]``: the same anywhere); None: no bits per byte.
        autocast_dtype: compute in this dtype; None: as the weights are.
        head_loss: sum of the negative log-likelihoods; None: in chunks over the head, logits never stored.
        sum_over_ranks: adds a float64 tensor ``[3]`` over the ranks that share the batches.
        progress: called with the number of batches done.
        sources: names of those that rows are of, whose losses are told apart where ``head_loss`` can; none: they are
            not. Then ``sum_over_ranks`` also gets a float64 ``[2, S]``.

    Raises:
        DataError: no label token in all of ``batches`` (of all ranks).
    """
    device = torch.device(device)
    started = time.perf_counter()
    table = None if token_bytes is None else _SizeTable(token_bytes)
    score = head_loss or ChunkedCrossEntropy()
    sums = _Sums()
    by_source = SourceSums(len(sources), device) if sources and tells_rows(score) else None
    with eval_mode(model, device), torch.no_grad():
        for number, batch in enumerate(batches, start=1):
            sums.count_labels(batch, table)
            here = batch.to(device, non_blocking=True)
            with autocast(device, autocast_dtype):
                nll, rows = nll_of(model, here, score, by_row=by_source is not None)
            sums.nll.append(nll)
            if by_source is not None:
                by_source.add(here, rows)
            if progress is not None:
                progress(number)
        totals = sums.totals()
    told_apart = None if by_source is None else by_source.totals.cpu()
    if sum_over_ranks is not None:
        totals = sum_over_ranks(totals)
        told_apart = None if told_apart is None else sum_over_ranks(told_apart)
    nll, tokens, size = totals.tolist()  # here the device is waited for, once
    seconds = time.perf_counter() - started
    scores = summarise(nll, tokens, None if table is None else size, seconds)
    return scores if told_apart is None else replace(scores, **losses_by_source(sources, told_apart.tolist()))


class _SizeTable:
    """Bytes of labels, float64 so that an unknown one makes an unknown sum (NaN)."""

    def __init__(self, token_bytes: TokenBytes | np.ndarray) -> None:
        if not isinstance(token_bytes, TokenBytes):
            token_bytes = TokenBytes.everywhere(np.asarray(token_bytes))
        self._inside, self._first = (
            torch.from_numpy(np.where(sizes == UNKNOWN, np.nan, sizes).astype(np.float64))
            for sizes in (token_bytes.inside, token_bytes.first)
        )
        self._begins = torch.from_numpy(token_bytes.begins)

    def sizes(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Of ``labels [B, T]``, each behind the id of ``inputs [B, T]`` at its place."""
        inside = self._inside.to(labels.device)[labels]
        if not bool(self._begins.any()):
            return inside
        known = inputs.clamp(max=len(self._begins) - 1)
        begins = self._begins.to(labels.device)[known] & (known == inputs)
        return torch.where(begins, self._first.to(labels.device)[labels], inside)


class _Sums:
    """What is added up over batches; nothing here waits for the device."""

    def __init__(self) -> None:
        self.nll, self._tokens, self._bytes = _Column(), _Column(), _Column()

    def count_labels(self, batch: Batch, table: _SizeTable | None) -> None:
        """Count the label tokens and their bytes, where the labels are."""
        assert batch.labels is not None, "a batch without labels cannot be scored"
        labels = batch.labels
        scored = labels != IGNORE_INDEX
        self._tokens.append(scored.sum())
        if table is not None:
            self._bytes.append(table.sizes(batch.input_ids, labels.where(scored, 0)).where(scored, 0).sum())

    def totals(self) -> Tensor:
        """nll, tokens, bytes (NaN where unknown): float64 ``[3]`` on the CPU. Counts below 2^53 are exact."""
        return torch.stack([self.nll.total(), self._tokens.total(), self._bytes.total()])


class _Column:
    """Scalars of many batches in a few pieces of memory.

    A tensor for each would stay between the large blocks of its batch, which the heap could then not put together.
    """

    def __init__(self) -> None:
        self._pieces: list[Tensor] = []
        self._count = 0

    def append(self, value: Tensor) -> None:
        slot = self._count % _PIECE
        if slot == 0:
            self._pieces.append(value.new_zeros(_PIECE))
        self._pieces[-1][slot] = value.detach()
        self._count += 1

    def total(self) -> Tensor:
        """The sum in float64, on the CPU."""
        if not self._pieces:
            return torch.zeros((), dtype=torch.float64)
        return torch.cat(self._pieces)[: self._count].cpu().double().sum()


def summarise(nll: float, tokens: float, size_bytes: float | None, seconds: float) -> Likelihood:
    """The score from its sums.

    Raises:
        DataError: there are no tokens; a loss of 0.0 would look like the best ever.
    """
    if tokens <= 0:
        raise DataError(
            "nothing to score: the evaluation data holds no label token",
            "check the data's path, its split and limit_val_batches / --limit-batches",
        )
    loss = nll / tokens
    if size_bytes is not None and math.isnan(size_bytes):
        size_bytes = None
    return Likelihood(
        loss=loss,
        perplexity=_exp(loss),
        bits_per_byte=nll / math.log(2) / size_bytes if size_bytes else None,
        tokens=int(tokens),
        bytes=None if size_bytes is None else int(size_bytes),
        seconds=seconds,
        tokens_per_s=tokens / max(seconds, 1e-9),
    )


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


@contextlib.contextmanager
def eval_mode(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode inside; afterwards each module's own mode and the random generators are as before."""
    modes = {module: module.training for module in model.modules()}
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, enabled=True):
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
