"""Activation checkpointing: the same gradients from fewer kept tensors, in one process."""

import pytest
import torch

from automodel_cli.batch import Batch
from automodel_cli.distributed.recompute import recompute
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.train.losses import MaskedCrossEntropy


def gradients_and_kept_bytes(how, dropout=0.0):
    model = build_gpt2_model(vocab_size=32, n_positions=16, n_embd=16, n_layer=3, n_head=2, dropout=dropout)
    model.init_weights(0)
    if how is not None:
        for block in model.blocks():
            recompute(block, how, random=dropout > 0)
    ids = torch.randint(0, 32, (2, 17), generator=torch.Generator().manual_seed(0))
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(Batch(ids[:, :-1], ids[:, 1:]), head_loss=MaskedCrossEntropy())
    loss.backward()
    return [parameter.grad for parameter in model.parameters()], sum(kept.values())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("how", ["full", "selective"])
def test_same_gradients(how, dropout):
    expected, _ = gradients_and_kept_bytes(None, dropout)
    found, _ = gradients_and_kept_bytes(how, dropout)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_less_is_kept():
    _, everything = gradients_and_kept_bytes(None)
    _, inputs = gradients_and_kept_bytes("full")
    assert inputs < everything / 2


def test_no_gradients_no_checkpoint():
    model = build_gpt2_model(vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    model.init_weights(0)
    ids = torch.arange(8)[None]
    expected = model(Batch(ids))
    for block in model.blocks():
        recompute(block, "full", random=False)
    with torch.no_grad():
        assert torch.equal(model(Batch(ids)), expected)
