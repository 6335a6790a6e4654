"""Batches on their way to a device: left alone elsewhere than on CUDA; narrow buffers hold what wide ones do."""

import numpy as np
import pytest
import torch

from automodel_cli.batch import Batch
from automodel_cli.corpus.formats.nanogpt_bin import ShardWriter
from automodel_cli.data.nanogpt_dataset import NanogptDataset
from automodel_cli.data.prefetch import _widened, prefetch_to_device
from automodel_cli.data.sampler import batch_shape
from automodel_cli.data.windows import Buffer, PinnedBuffer, narrow_dtype


def test_a_cpu_gets_what_it_was_given():
    updates = [[Batch(torch.zeros(1, 2))], [Batch(torch.ones(1, 2))]]
    found = list(prefetch_to_device(iter(updates), torch.device("cpu")))
    assert [batches[0] is mine[0] for batches, mine in zip(found, updates, strict=True)] == [True, True]


def test_widening_keeps_every_value_and_every_field():
    ids = torch.tensor([[0, 65535]], dtype=torch.uint16)
    wide = _widened(Batch(ids, ids, segment_ids=torch.tensor([[0, 1]])))
    assert wide.input_ids.dtype == wide.labels.dtype == torch.int64
    assert wide.labels.tolist() == [[0, 65535]]
    assert wide.position_ids is None
    assert wide.segment_ids.tolist() == [[0, 1]]


@pytest.mark.parametrize(("dtype", "narrow"), [("uint16", torch.uint16), ("uint32", torch.int32)])
def test_narrow_buffers_hold_what_wide_ones_do(tmp_path, dtype, narrow):
    tokens = np.random.default_rng(0).integers(0, 60_000, 200).astype(dtype)
    writer = ShardWriter(tmp_path / "a.bin", dtype=np.dtype(dtype))
    writer.write(tokens, np.array([0]))
    writer.close()
    dataset = NanogptDataset(tmp_path / "a.bin", 8)
    assert narrow_dtype(dataset) == narrow
    shape = batch_shape(global_batch_size=4, local_batch_size=2)
    offsets = dataset.sample_offsets(np.arange(4)).reshape(2, 2, -1)
    wide = Buffer(shape, 8).fill(dataset, offsets)
    pinned = PinnedBuffer(shape, 8, narrow).fill(dataset, offsets)
    for one, other in zip(pinned, wide, strict=True):
        assert one.input_ids.dtype == narrow and one.input_ids.is_contiguous()
        assert torch.equal(_widened(one).input_ids, other.input_ids)
        assert torch.equal(_widened(one).labels, other.labels)
