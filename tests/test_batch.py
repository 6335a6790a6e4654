"""The one thing that rooms hand each other."""

import torch

from automodel_cli.batch import Batch


def test_to_moves_every_field_and_keeps_none():
    ids = torch.arange(6).reshape(2, 3)
    moved = Batch(ids, labels=ids + 1).to("meta")
    assert moved.input_ids.device.type == moved.labels.device.type == "meta"
    assert moved.position_ids is None
    assert moved.segment_ids is None


def test_cut_keeps_the_tokens_and_what_is_said_of_each_row():
    ids, rows = torch.arange(16).reshape(2, 8), torch.tensor([3, 5])
    cut = Batch(ids, ids + 1, segment_ids=ids // 3, sources=rows, row_weights=rows.float()).cut(4)
    assert cut.input_ids.tolist() == ids.reshape(4, 4).tolist() and cut.labels.shape == (4, 4)
    assert cut.segment_ids.flatten().tolist() == (ids // 3).flatten().tolist()
    assert cut.sources.tolist() == cut.row_weights.tolist() == [3, 3, 5, 5]
    assert cut.position_ids is None
