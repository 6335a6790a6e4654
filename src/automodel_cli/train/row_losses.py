"""Losses that also tell the nll of each row, and its sums over the sources that rows are of.

Shapes: B rows, T tokens, D model width, V logical vocabulary, P padded vocabulary, S sources.

A loss with ``by_row`` answers with one more number for each row: fp32 ``[1 + B]``, the sum that is trained on, as the
loss gives it without, and then, without gradient, the nll of each row. With ``row_weights`` the gradient of a row's
tokens (z-loss included) is multiplied by a factor of that row; no value changes.

Models know nothing of rows: they are given ``ByRow``, which they call like any loss.
"""

from __future__ import annotations

from typing import Protocol, TypeGuard

import torch
from torch import Tensor, nn

from automodel_cli.batch import IGNORE_INDEX, Batch
from automodel_cli.models.interface import HeadLoss, takes_softcap


class RowLoss(HeadLoss, Protocol):
    """A loss that can tell the nll of each row."""

    def by_row(
        self, hidden: Tensor, weight: Tensor, labels: Tensor, /, *, vocab_size: int, row_weights: Tensor | None
    ) -> Tensor:
        """``[1 + B]`` for ``hidden [B, T, D]``, ``weight [P, D]``, ``labels [B, T]`` and ``row_weights [B]``."""

    def by_row_from_logits(self, logits: Tensor, labels: Tensor, /, row_weights: Tensor | None) -> Tensor:
        """The same for ``logits [B, T, V]``."""


def tells_rows(loss: HeadLoss) -> TypeGuard[RowLoss]:
    """Whether a loss can tell the nll of each row."""
    return hasattr(loss, "by_row")


class ByRow:
    """A loss with the weights of the rows it is about to see, called as models call a loss; gives ``[1 + B]``."""

    def __init__(self, loss: RowLoss, row_weights: Tensor | None) -> None:
        self.loss, self.row_weights = loss, row_weights
        self.takes_softcap = takes_softcap(loss)

    def __call__(self, hidden: Tensor, weight: Tensor, labels: Tensor, *, vocab_size: int, **more: float) -> Tensor:
        return self.loss.by_row(hidden, weight, labels, vocab_size=vocab_size, row_weights=self.row_weights, **more)

    def from_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.loss.by_row_from_logits(logits, labels, self.row_weights)


def nll_of(model: nn.Module, batch: Batch, loss: HeadLoss, *, by_row: bool) -> tuple[Tensor, Tensor]:
    """nll of ``batch`` under ``model``, its gradient weighted by rows where these have weights, and that of each row.

    The latter is fp32 ``[B]`` without gradient; empty unless ``by_row``, which needs a ``RowLoss``.
    """
    if not by_row:
        nll = model(batch, head_loss=loss)
        return nll, nll.new_empty(0)
    assert tells_rows(loss)
    found = model(batch, head_loss=ByRow(loss, batch.row_weights))
    return found[0], found[1:].detach()


class SourceSums:
    """Sums over batches by source, on their device: nll and label tokens, fp64 ``[2, S]``; nothing waits for it."""

    def __init__(self, sources: int, device: torch.device) -> None:
        self._numbers = torch.arange(sources, device=device)[:, None]
        self.totals = torch.zeros(2, sources, dtype=torch.float64, device=device)

    def add(self, batch: Batch, row_nll: Tensor) -> None:
        """Add the rows of ``batch``, whose nll is ``row_nll [B]``."""
        assert batch.sources is not None and batch.labels is not None
        rows = torch.stack([row_nll.double(), (batch.labels != IGNORE_INDEX).sum(1).double()])  # [2, B]
        mine = batch.sources == self._numbers  # [S, B]; chosen, not multiplied: a NaN stays with its own source
        self.totals += torch.where(mine, rows[:, None], 0.0).sum(2)
