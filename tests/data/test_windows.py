"""Token windows into batches: views of buffers that are used again, or narrow ones for a device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.token_files import write_token_file

from automodel_cli.batch import Batch
from automodel_cli.corpus.formats.nanogpt_writer import ShardWriter
from automodel_cli.data.nanogpt_dataset import NanogptDataset
from automodel_cli.data.sampler import BatchShape
from automodel_cli.data.windows import UpdateRows, read_updates, with_fields


def updates(dataset: NanogptDataset, shape: BatchShape, count: int, *, pin_memory: bool = False) -> list[list[Batch]]:
    numbers = shape.samples(0, count)
    offsets = dataset.sample_offsets(numbers.ravel()).reshape(*numbers.shape, 2)
    return list(read_updates(dataset, shape, map(UpdateRows, offsets), pin_memory=pin_memory))


def test_buffers_are_filled_in_place_in_turn(tmp_path: Path) -> None:
    write_token_file(tmp_path / "x.bin", np.arange(100))
    dataset = NanogptDataset(str(tmp_path / "x.bin"), 4)
    found = updates(dataset, BatchShape(6, 3), 4)
    firsts = [[batch.input_ids[:, 0].tolist() for batch in update] for update in found]
    assert firsts[1:3] == [[[24, 28, 32], [36, 40, 44]], [[48, 52, 56], [60, 64, 68]]]
    assert firsts[0] == firsts[3] == [[72, 76, 80], [84, 88, 92]]  # the fourth update is where the first one was
    last = found[3][1]
    assert last.labels is not None
    assert torch.equal(last.labels[:, :-1], last.input_ids[:, 1:])
    assert last.labels.data_ptr() == last.input_ids.data_ptr() + 8


@pytest.mark.parametrize("pin_memory", [False, True])
@pytest.mark.parametrize("apart", [False, True])
def test_numbers_of_rows_come_along(tmp_path: Path, pin_memory: bool, apart: bool) -> None:
    """By views, as narrow copies, and from a data set that makes its own batches."""
    write_token_file(tmp_path / "x.bin", np.arange(100))
    dataset = NanogptDataset(str(tmp_path / "x.bin"), 4, intra_document=apart, bos_token=7)
    numbers = BatchShape(4, 2).samples(0, 3)
    offsets = dataset.sample_offsets(numbers.ravel()).reshape(*numbers.shape, 2)
    weights = (numbers / 2).astype(np.float32)
    rows = with_fields(offsets, pin_memory=False, sources=numbers, row_weights=weights)
    found = list(read_updates(dataset, BatchShape(4, 2), rows, pin_memory=pin_memory and not apart))
    moved = [[batch.to("cpu") for batch in update] for update in found]
    for field, expected in (("sources", numbers), ("row_weights", weights)):
        assert [[getattr(batch, field).tolist() for batch in update] for update in moved] == expected.tolist()
    assert (moved[0][0].segment_ids is not None) == apart


@pytest.mark.parametrize(("dtype", "narrow"), [("uint16", torch.uint16), ("uint32", torch.int32)])
def test_narrow_buffers_hold_what_wide_ones_do(tmp_path: Path, dtype: str, narrow: torch.dtype) -> None:
    tokens = np.random.default_rng(0).integers(0, 60_000, 200).astype(dtype)
    writer = ShardWriter(tmp_path / "a.bin", dtype=np.dtype(dtype))
    writer.write(tokens, np.array([0]))
    writer.close()
    dataset, shape = NanogptDataset(tmp_path / "a.bin", 8), BatchShape(4, 2)
    (wide,), (pinned,) = updates(dataset, shape, 1), updates(dataset, shape, 1, pin_memory=True)
    for one, other in zip(pinned, wide, strict=True):
        assert one.labels is not None and other.labels is not None
        assert one.input_ids.dtype == narrow and one.input_ids.is_contiguous()
        assert torch.equal(one.input_ids.long(), other.input_ids)
        assert torch.equal(one.labels.long(), other.labels)
