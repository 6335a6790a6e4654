"""What the base class gives every model."""

import torch

from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.interface import count_parameters


def tiny(**changes):
    return build_gpt2_model(vocab_size=100, n_positions=8, n_embd=16, n_layer=1, n_head=2, **changes)


def test_counts_are_logical_and_tied_weights_count_once():
    counts = count_parameters(tiny())
    assert counts["embedding"] == 100 * 16  # stored as 128 rows
    assert counts["position"] == 8 * 16
    assert counts["matrix"] == 12 * 16 * 16
    assert "head" not in counts


def test_materialize_serves_models_on_meta_and_models_with_storage():
    stored, meta = tiny(), tiny(is_meta_device=True)
    for model in (stored, meta):
        model.materialize("cpu", seed=1)
    assert torch.equal(stored.wte.weight, meta.wte.weight)
