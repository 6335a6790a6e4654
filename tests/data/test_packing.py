"""Best fit against slow and independent packers, and what a pack holds against its rows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_cli.batch import IGNORE_INDEX
from automodel_cli.data import packing as packing_module
from automodel_cli.data.collate import default_collate
from automodel_cli.data.packing import Packing, Read, Row, Start, batch_of_packs, best_fit, row_of, windows
from automodel_cli.errors import DataError
from automodel_cli.models.layers.document_attention import dense_mask


def best_fit_by_hand(lengths, size):
    """The textbook's words: longest first, each into the fullest pack that has room, the oldest of equals."""
    packs = []
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        room = [size - sum(lengths[n] for n in pack) for pack in packs]
        fitting = [n for n, left in enumerate(room) if left >= lengths[number]]
        if fitting:
            packs[min(fitting, key=lambda n: (room[n], n))].append(number)
        else:
            packs.append([number])
    return packs


def fewest_packs(lengths, size):
    """By trying every assignment."""
    for count in range(1, len(lengths) + 1):
        for chosen in itertools.product(range(count), repeat=len(lengths)):
            if all(
                sum(length for length, pack in zip(lengths, chosen, strict=True) if pack == one) <= size
                for one in range(count)
            ):
                return count
    return 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(1, n), max_size=60))))
def test_packs_are_those_of_best_fit_decreasing(drawn):
    size, lengths = drawn
    packs = best_fit(lengths, size)
    assert sorted(packs) == sorted(sorted(pack) for pack in best_fit_by_hand(lengths, size))
    longest = [max(pack, key=lambda n: (lengths[n], -n)) for pack in packs]
    assert longest == sorted(longest)  # in the order of their longest rows, not by length


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 10), min_size=1, max_size=5))
def test_few_packs_more_than_the_fewest_possible(lengths):
    assert len(best_fit(lengths, 10)) <= 11 / 9 * fewest_packs(lengths, 10) + 6 / 9


def rows_of_lengths(*lengths, first=1):
    return [Row(np.arange(n) + first * 100, np.arange(n) + first * 100 + 1) for first, n in enumerate(lengths, first)]


def test_a_pack_holds_its_rows_one_after_the_other():
    batch = batch_of_packs([rows_of_lengths(3, 2)], 8)
    pad = IGNORE_INDEX
    assert batch.input_ids.tolist() == [[100, 101, 102, 200, 201, 0, 0, 0]]
    assert batch.labels.tolist() == [[101, 102, 103, 201, 202, pad, pad, pad]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]]
    assert batch.segment_ids.tolist() == [[0, 0, 0, 1, 1, 2, 2, 2]]


def test_attention_is_block_diagonal():
    """As NeMo AutoModel's ``create_block_causal_mask`` is described: lower triangles of the lengths."""
    lengths = [3, 2, 1]
    expected = torch.block_diag(*(torch.ones(n, n).tril() for n in lengths)).bool()
    batch = batch_of_packs([rows_of_lengths(*lengths)], 6)
    assert torch.equal(dense_mask(batch.segment_ids)[0, 0], expected)


def test_documents_within_a_row_and_their_positions_stay():
    row = row_of({"input_ids": [1, 2, 3, 4], "segment_ids": [5, 5, 7, 7], "position_ids": [0, 1, 0, 1]})
    batch = batch_of_packs([[row, *rows_of_lengths(2)]], 6)
    assert batch.segment_ids.tolist() == [[0, 0, 2, 3, 3, 4]]  # the last token of the row has no label
    assert batch.position_ids.tolist() == [[0, 1, 0, 0, 1, 0]]


@pytest.mark.parametrize(
    "item",
    [
        {"input_ids": [1, 2, 3, 4, 0, 0], "attention_mask": [1, 1, 1, 1, 0, 0]},
        {"input_ids": [1, 2, 3, 4], "labels": [2, 3, 4, IGNORE_INDEX]},
        {"input_ids": [1, 2, 3], "labels": [2, 3, 4], "loss_mask": [1, 1, 1]},
        ([1, 2, 3], [2, 3, 4]),
    ],
)
def test_a_row_ends_with_its_last_label(item):
    row = row_of(item)
    assert (row.input_ids.tolist(), row.labels.tolist()) == ([1, 2, 3], [2, 3, 4])


def test_loss_masks_of_a_row_are_kept():
    row = row_of({"input_ids": [1, 2, 3, 4], "labels": [2, 3, 4, 5], "loss_mask": [0, 0, 1, 0]})
    assert row.labels.tolist() == [IGNORE_INDEX, IGNORE_INDEX, 4]
    assert len(row_of({"input_ids": [1, 2], "labels": [2, 3], "loss_mask": [0, 0]})) == 0


def test_a_collate_function_of_the_user_is_given_one_item():
    def padded(items):
        batch = default_collate([{"input_ids": ids} for ids in items])
        return {"input_ids": batch.input_ids, "labels": batch.labels}

    assert row_of([7, 8, 9], padded).labels.tolist() == [8, 9]
    with pytest.raises(DataError, match="made 2 rows of one item"):
        row_of([7, 8, 9], lambda items: padded([*items, *items]))


def lengths_of(found):
    return [[len(row) for row in pack] for window in found for pack in window.packs]


@pytest.mark.parametrize(("rule", "expected"), [("drop", [[4]]), ("split", [[10], [10], [5, 4]])])
def test_a_row_longer_than_a_pack(rule, expected):
    reads = [Read(0, row) for row in rows_of_lengths(25, 4)]
    found = list(windows(reads, Packing(10, rule), Start()))
    assert lengths_of(found) == expected
    assert found[-1].end.long_rows == 1
    if rule == "split":
        pieces = [row for pack in found[0].packs for row in pack if row.input_ids[0] < 200]
        labels = np.concatenate([row.labels for row in pieces])
        assert labels.tolist() == rows_of_lengths(25)[0].labels.tolist()  # not one label is lost


def test_a_row_longer_than_a_pack_is_refused_by_number():
    reads = [Read(0, row) for row in rows_of_lengths(4, 25)]
    with pytest.raises(DataError, match="row 1 of the data has 25 tokens, packed_sequence_size is 10"):
        list(windows(reads, Packing(10, "refuse"), Start()))


def test_a_window_is_bounded_and_ends_with_its_epoch(monkeypatch):
    monkeypatch.setattr(packing_module, "WINDOW_PACKS", 3)
    reads = [Read(number // 20, range(4)) for number in range(40)]
    found = list(windows(reads, Packing(10), Start()))
    assert [(window.start.row, window.end.row) for window in found] == [
        (0, 8), (8, 16), (16, 20), (20, 28), (28, 36), (36, 40),
    ]  # fmt: skip
    assert [window.ends_epoch for window in found] == [False, False, True] * 2
    again = list(windows(reads[28:], Packing(10), found[4].start))
    assert again == found[4:]


def test_data_without_anything_to_pack_is_an_error_not_a_hang():
    endless = (Read(epoch, range(25)) for epoch in itertools.count())
    with pytest.raises(DataError, match="of 3, 3 are longer than packed_sequence_size"):
        list(windows(endless, Packing(10), Start(), rows_per_epoch=1))
