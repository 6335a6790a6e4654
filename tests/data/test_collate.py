"""Items of a user's data set into batches: shifting, masks, padding, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate as torch_collate

from automodel_cli.batch import IGNORE_INDEX, Batch
from automodel_cli.data.collate import as_batch, default_collate, refuse_unshifted
from automodel_cli.errors import DataError

X = IGNORE_INDEX


@pytest.mark.parametrize("make", [list, np.array, torch.tensor, lambda row: np.array(row, dtype=np.uint16)])
def test_lists_arrays_and_tensors_give_the_same(make: Any) -> None:
    batch = default_collate([{"input_ids": make([1, 2, 3]), "labels": make([2, 3, 4])}] * 2)
    assert batch.input_ids.tolist() == [[1, 2, 3]] * 2
    assert batch.labels is not None
    assert batch.labels.tolist() == [[2, 3, 4]] * 2
    assert batch.input_ids.dtype == batch.labels.dtype == torch.int64
    assert batch.position_ids is None


def test_labels_are_made_by_shifting() -> None:
    batch = default_collate([{"input_ids": [5, 6, 7]}])
    assert batch.labels is not None
    assert batch.labels.tolist() == [[6, 7, X]]
    assert batch.input_ids.tolist() == [[5, 6, 7]]


def test_ragged_rows_are_padded_on_the_right() -> None:
    batch = default_collate([{"input_ids": [5, 6, 7]}, {"input_ids": [8]}, {"input_ids": []}])
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 0, 0], [0, 0, 0]]
    assert batch.labels is not None
    assert batch.labels.tolist() == [[6, 7, X], [X, X, X], [X, X, X]]


def test_masks_beside_given_labels_speak_of_labels() -> None:
    item = {"input_ids": [1, 2, 3], "labels": [2, 3, 4], "loss_mask": [0.0, 1.0, 1.0]}
    labels = default_collate([item]).labels
    assert labels is not None
    assert labels.tolist() == [[X, 3, 4]]


def test_masks_without_labels_speak_of_tokens() -> None:
    item = {"input_ids": [1, 2, 3, 9], "attention_mask": [1, 1, 1, 0], "loss_mask": [True, False, True, True]}
    labels = default_collate([item]).labels
    assert labels is not None
    assert labels.tolist() == [[X, 3, X, X]]  # token 2 is masked, token 9 is padding


def test_positions_and_segments_travel_and_pairs_and_megatron_names_are_understood() -> None:
    batch = default_collate(
        [{"tokens": [1, 2], "labels": [2, 3], "position_ids": [0, 1], "segment_ids": [0, 0], "text": "x"}]
    )
    assert batch.position_ids is not None
    assert batch.segment_ids is not None
    assert batch.position_ids.tolist() == [[0, 1]]
    assert default_collate([([1, 2], [2, 3])]).input_ids.tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"labels": [1]}, "no input_ids"),
        ("text", "is a str"),
        ({"input_ids": [1, 2], "labels": [1]}, "they must agree"),
        ({"input_ids": [[1, 2]]}, "2 dimensions"),
        ({"input_ids": [1.5, 2.5]}, "not a row of integers"),
        ({"input_ids": ["a"]}, "not a row of integers"),
        ({"input_ids": [1, 2, 3], "attention_mask": [0, 1, 1]}, "padded on the left"),
        ({"input_ids": []}, "empty"),
    ],
)
def test_refusals(item: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        default_collate([item])


def test_rows_with_different_fields_are_refused() -> None:
    with pytest.raises(DataError, match="different fields"):
        default_collate([{"input_ids": [1], "position_ids": [0]}, {"input_ids": [1]}])


def test_torch_collate_of_lists_comes_out_in_order() -> None:
    items = [{"input_ids": [1, 2, 3], "labels": [2, 3, 4]}, {"input_ids": [5, 6, 7], "labels": [6, 7, 8]}]
    transposed = torch_collate(items)
    assert len(transposed["input_ids"]) == 3  # torch makes T tensors of [B]
    batch = as_batch(transposed)
    assert batch.input_ids.tolist() == [[1, 2, 3], [5, 6, 7]]
    assert batch.labels is not None
    assert batch.labels.tolist() == [[2, 3, 4], [6, 7, 8]]


def test_as_batch_takes_batches_and_tensors_and_applies_masks() -> None:
    made = Batch(torch.zeros(1, 2, dtype=torch.int64))
    assert as_batch(made) is made
    tensors = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    labels = as_batch(tensors).labels
    assert labels is not None
    assert labels.tolist() == [[2, X, X]]
    with pytest.raises(DataError, match=r"shape \[3\]"):
        as_batch({"input_ids": torch.tensor([1, 2, 3])})


def test_unshifted_labels_are_refused_but_constants_and_shifted_ones_are_not() -> None:
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(DataError, match="not shifted"):
        refuse_unshifted(Batch(ids, torch.tensor([[X, 2, 3]])))
    refuse_unshifted(Batch(ids, torch.tensor([[2, 3, 4]])))
    refuse_unshifted(Batch(torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.int64)))
    refuse_unshifted(Batch(ids, torch.full((1, 3), X)))
