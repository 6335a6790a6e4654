"""What a user's data set yields, turned into a ``Batch``.

An item is a mapping with ``input_ids`` (``tokens``, Megatron's name, is understood) and optionally
``labels``, ``loss_mask``, ``attention_mask``, ``position_ids``, ``segment_ids``: lists, arrays or tensors of
one length T; or a pair ``(input_ids, labels)``. The rules:

1. ``labels`` are already shifted: ``labels[t]`` follows ``input_ids[t]``. Without labels they are made by
   shifting.
2. A zero in ``loss_mask`` or ``attention_mask`` becomes ``IGNORE_INDEX`` in the labels. Beside given labels
   the mask is read at the label's place; where labels are made here, the mask speaks of tokens and shifts
   with them.
3. Rows of different lengths are padded on the right, labels with ``IGNORE_INDEX``. Causal attention never
   looks right, so padding needs no mask in the model; padding on the *left* would be attended to and is
   refused.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from automodel_cli.batch import IGNORE_INDEX, Batch
from automodel_cli.errors import DataError

_PAD = {"input_ids": 0, "labels": IGNORE_INDEX, "position_ids": 0, "segment_ids": 0}
_MASKS = ("loss_mask", "attention_mask")
_HINT = "yield {'input_ids': [...], 'labels': [...]} with integers of one length; labels[t] follows input_ids[t]"


def default_collate(items: Sequence[Any]) -> Batch:
    """Rows of a user's data set, padded on the right to the longest: int64 ``[B, T]``.

    Raises:
        DataError: an item is no mapping or pair, has no ids, lengths that differ, no integers, or left
            padding.
    """
    if not items:
        raise DataError("a batch without rows", "the data set yields nothing for some indices")
    rows = [collated_row(item) for item in items]
    for row in rows:
        if row.keys() != rows[0].keys():
            raise DataError(f"rows of one batch carry different fields: {sorted(rows[0])} and {sorted(row)}", _HINT)
    length = max(len(row["input_ids"]) for row in rows)
    if length == 0:
        raise DataError("every row of a batch is empty", _HINT)
    padded = {name: np.full((len(rows), length), _PAD[name], dtype=np.int64) for name in rows[0]}
    for number, row in enumerate(rows):
        for name, values in row.items():
            padded[name][number, : len(values)] = values
    return Batch(**{name: torch.from_numpy(values) for name, values in padded.items()})


def as_batch(value: Any) -> Batch:
    """The output of a user's own ``collate_fn`` as a ``Batch``: rules 1 and 2 on whole ``[B, T]`` tensors.

    A list of T tensors ``[B]``, which torch's ``default_collate`` makes of lists of ints, is put back in
    order.

    Raises:
        DataError: no ids, shapes that differ, or left padding.
    """
    if isinstance(value, Batch):
        return value
    fields = {name: _batched(name, field) for name, field in _fields(value).items()}
    row = _apply_rules(fields)
    return Batch(**{name: torch.from_numpy(np.ascontiguousarray(row[name])) for name in _PAD if name in row})


def refuse_unshifted(batch: Batch) -> None:
    """Fail on labels that equal their own inputs: a model would learn to copy, its loss would look wonderful.

    Raises:
        DataError: every label is the token at its own place (Hugging Face's convention, shifted in its
            models).
    """
    if batch.labels is None or batch.input_ids.shape[-1] < 2:
        return
    kept = batch.labels != IGNORE_INDEX
    constant = bool((batch.input_ids[:, 1:] == batch.input_ids[:, :-1]).all())
    if not constant and bool(kept.any()) and torch.equal(batch.labels[kept], batch.input_ids[kept]):
        raise DataError(
            "labels equal input_ids: they are not shifted",
            "labels[t] must be the token after input_ids[t]; leave labels out and they are made by shifting",
        )


def collated_row(item: Any) -> dict[str, np.ndarray]:
    """The fields of a ``Batch`` that one item has, int64 ``[T]`` each, by rules 1 and 2; labels always."""
    fields = {name: _array(name, value) for name, value in _fields(item).items()}
    for name, value in fields.items():
        if value.ndim != 1:
            raise DataError(f"{name} has {value.ndim} dimensions, one expected (a row of tokens)", _HINT)
    return _apply_rules(fields)


def _fields(item: Any) -> dict[str, Any]:
    """The known fields of an item or a collated batch, by our names; unknown ones are left alone."""
    if isinstance(item, Mapping):
        found = {name: item[name] for name in (*_PAD, *_MASKS) if item.get(name) is not None}
        if "tokens" in item and "input_ids" not in found:
            found["input_ids"] = item["tokens"]
    elif isinstance(item, tuple | list) and len(item) == 2:
        found = {"input_ids": item[0], "labels": item[1]}
    else:
        raise DataError(f"an item of the data set is a {type(item).__name__}, not a mapping or a pair", _HINT)
    if "input_ids" not in found:
        raise DataError(f"an item of the data set has no input_ids; it has {sorted(map(str, item))}", _HINT)
    return found


def _array(name: str, value: Any) -> np.ndarray:
    """Lists, arrays or tensors as int64 (a mask may be boolean or float)."""
    try:
        found = np.asarray(value.cpu() if isinstance(value, torch.Tensor) else value)
        if found.size and found.dtype.kind not in ("iub" if name not in _MASKS else "iubf"):
            raise TypeError(f"{found.dtype} values")
        return found.astype(np.int64, copy=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} of an item is not a row of integers: {error}", _HINT) from error


def _batched(name: str, value: Any) -> np.ndarray:
    """One field of a collated batch as int64 ``[B, T]``."""
    if isinstance(value, list | tuple) and value and isinstance(value[0], torch.Tensor):
        value = torch.stack(list(value), dim=1)  # torch transposes lists of ints: T tensors of [B]
    found = _array(name, value)
    if found.ndim != 2:
        raise DataError(f"the collate_fn returned {name} of shape {list(found.shape)}, [rows, tokens] expected", _HINT)
    return found


def _apply_rules(fields: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rules 1 and 2 on ``[T]`` or ``[B, T]`` arrays; returns the fields of a Batch."""
    ids = fields["input_ids"]
    for name, value in fields.items():
        if value.shape != ids.shape:
            raise DataError(
                f"{name} has shape {list(value.shape)}, input_ids has {list(ids.shape)}: they must agree",
                _HINT,
            )
    if "attention_mask" in fields:
        seen = fields["attention_mask"] != 0
        if (~seen[..., :-1] & seen[..., 1:]).any():
            raise DataError(
                "attention_mask has a 1 after a 0: the rows are padded on the left",
                "pad on the right, or yield rows of different lengths and let them be padded here",
            )
    labels = fields.get("labels")
    targets = ids.copy() if labels is None else labels.copy()
    for name in _MASKS:
        if name in fields:
            targets[fields[name] == 0] = IGNORE_INDEX
    if labels is None:
        targets[..., :-1] = targets[..., 1:].copy()
        targets[..., -1:] = IGNORE_INDEX
    row = {name: fields[name] for name in _PAD if name in fields}
    row["labels"] = targets
    return row


def collated(items: list[Any], function: Callable[[list[Any]], Any]) -> dict[str, torch.Tensor]:
    """A collate function's output as a dict of tensors, which torch can pin and send between processes."""
    return {name: value for name, value in vars(as_batch(function(items))).items() if value is not None}
