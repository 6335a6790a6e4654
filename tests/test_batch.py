"""The one thing that rooms hand each other."""

import torch

from automodel_cli.batch import Batch


def test_to_moves_every_field_and_keeps_none():
    ids = torch.arange(6).reshape(2, 3)
    moved = Batch(ids, labels=ids + 1).to("meta")
    assert moved.input_ids.device.type == moved.labels.device.type == "meta"
    assert moved.position_ids is None
    assert moved.segment_ids is None
