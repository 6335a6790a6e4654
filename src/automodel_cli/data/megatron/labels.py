"""From the tokens of a Megatron sample to labels, loss mask, positions and attention, by Megatron's rules.

A row is T + 1 tokens, ``pad_id`` where a last sample is short of them. Inputs are its first T, labels its last T.
- No loss where the label is ``pad_id``, nor, with ``eod_mask_loss``, where the input is end-of-document.
- ``pad_id`` itself is replaced by 0, so that a model can embed it.
- ``reset_position_ids``: positions start again after each end-of-document, which keeps the old count.
- ``reset_attention_mask``: a token sees nothing up to and including the last end-of-document before it.

megatron-core keeps one loss mask for all samples and zeroes it in place, so that there the mask of a sample depends
on which samples were read before; here it is what the rules say.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from automodel_cli.batch import IGNORE_INDEX, Batch
from automodel_cli.data.files.documents import positions, segments
from automodel_cli.errors import ConfigError

NO_PAD = -1
_EOD_NAMES = ("eod", "eot_id", "eos_token_id", "eos")
_PAD_NAMES = ("pad", "pad_id", "pad_token_id")
_OTHER_NAMES = (
    *("eod", "eos", "bos", "unk", "sep", "cls", "mask", "eot_id", "bos_id"),
    *(f"{name}_token_id" for name in ("eos", "bos", "unk", "sep", "cls", "mask")),
)


@dataclass(frozen=True)
class SpecialIds:
    """The end-of-document id, where it is known, and the padding id, -1 where no id stands for padding alone."""

    eod: int | None = None
    pad: int = NO_PAD


def special_ids(tokenizer: Any) -> SpecialIds:
    """What ``tokenizer`` (ours, transformers' or Megatron's) says of them.

    A padding id that is also another special token is no padding id: real tokens would lose their loss.
    """
    if tokenizer is None:
        return SpecialIds()
    pad = _first_id(tokenizer, _PAD_NAMES)
    others = {_first_id(tokenizer, (name,)) for name in _OTHER_NAMES}
    return SpecialIds(_first_id(tokenizer, _EOD_NAMES), NO_PAD if pad is None or pad in others else pad)


def _first_id(tokenizer: Any, names: tuple[str, ...]) -> int | None:
    for name in names:
        try:
            value = getattr(tokenizer, name)
        except (AttributeError, NotImplementedError):
            continue
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


@dataclass(frozen=True)
class LabelRules:
    """How rows become batches. ``padded``: rows may be short of tokens.

    Raises:
        ConfigError: a rule needs the end-of-document id, and nothing says which it is.
    """

    ids: SpecialIds
    reset_position_ids: bool = False
    reset_attention_mask: bool = False
    eod_mask_loss: bool = False
    padded: bool = False

    def __post_init__(self) -> None:
        for name in ("reset_position_ids", "reset_attention_mask", "eod_mask_loss"):
            if getattr(self, name) and self.ids.eod is None:
                raise ConfigError(
                    f"dataset.{name} needs to know which token ends a document",
                    "give dataset.tokenizer a tokenizer with an end-of-text token",
                )

    @functools.cached_property
    def plain(self) -> bool:
        """Whether labels are just the next tokens, and nothing else is needed."""
        special = self.reset_position_ids or self.reset_attention_mask or self.eod_mask_loss
        return not (special or self.padded or self.ids.pad >= 0)

    def batch(self, rows: np.ndarray) -> Batch:
        """A batch of ``rows`` (int64 ``[B, T + 1]``), which are copied."""
        inputs, labels, keep = self._taken_apart(rows)
        labels[~keep] = IGNORE_INDEX
        ends = self._ends(rows)
        return Batch(
            torch.from_numpy(inputs),
            torch.from_numpy(labels),
            torch.from_numpy(positions(ends)) if self.reset_position_ids else None,
            torch.from_numpy(segments(ends)) if self.reset_attention_mask else None,
        )

    def item(self, row: np.ndarray, *, attention_mask: bool) -> dict[str, torch.Tensor]:
        """One row (int64 ``[T + 1]``) as megatron-core's dict; its mask is True where attention is forbidden.

        Tokens and labels are views of ``row`` where nothing in them is replaced.
        """
        tokens = len(row) - 1
        found = {  # made by numpy, which has less to do before it begins
            "tokens": torch.from_numpy(row[:-1]),
            "labels": torch.from_numpy(row[1:]),
            "loss_mask": torch.from_numpy(np.ones(tokens, dtype=np.float32)),
            "position_ids": torch.from_numpy(np.arange(tokens)),
        }
        if not self.plain:
            inputs, labels, keep = self._taken_apart(row[None])
            found["tokens"], found["labels"] = torch.from_numpy(inputs[0]), torch.from_numpy(labels[0])
            found["loss_mask"] = torch.from_numpy(keep[0].astype(np.float32))
        ends = self._ends(row[None]) if attention_mask or self.reset_position_ids else row[None]
        if self.reset_position_ids:
            found["position_ids"] = torch.from_numpy(positions(ends)[0])
        if attention_mask:
            forbidden = ~np.tri(tokens, dtype=bool)
            if self.reset_attention_mask:
                document = segments(ends)[0]
                forbidden |= document[:, None] != document[None, :]
            found["attention_mask"] = torch.from_numpy(forbidden[None])
        return found

    def _taken_apart(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Inputs, labels and where there is a loss, each ``[B, T]`` and new."""
        inputs, labels = rows[:, :-1].copy(), rows[:, 1:].copy()
        keep = labels != self.ids.pad
        if self.eod_mask_loss:
            keep &= inputs != self.ids.eod
        inputs[inputs == self.ids.pad] = 0
        labels[labels == self.ids.pad] = 0
        return inputs, labels, keep

    def _ends(self, rows: np.ndarray) -> np.ndarray:
        """Whether the input before this one ended a document, bool ``[B, T]``."""
        ends = np.zeros((len(rows), rows.shape[1] - 1), dtype=bool)
        if self.reset_position_ids or self.reset_attention_mask:
            ends[:, 1:] = rows[:, :-2] == self.ids.eod
        return ends
