"""Anybody's own module: what it may return, and what is read off it."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from automodel_cli.batch import Batch
from automodel_cli.errors import ConfigError
from automodel_cli.models.hf import wrap
from automodel_cli.models.interface import CausalLM
from automodel_cli.train.losses import ChunkedCrossEntropy, MaskedCrossEntropy


class Bigram(nn.Module):
    """Logits of the next token from the token alone."""

    def __init__(self, returns="tensor"):
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.lm_head = nn.Linear(8, 11)
        self.returns = returns

    def forward(self, input_ids):
        logits = self.lm_head(self.norm(self.table(input_ids)))
        return {"tensor": logits, "object": SimpleNamespace(logits=logits), "tuple": (logits, None)}[self.returns]


class Positional(Bigram):
    """Takes its tokens under another name, and positions."""

    block_size = 16

    def forward(self, idx, position_ids=None):
        logits = self.lm_head(self.norm(self.table(idx)))
        return logits if position_ids is None else logits * 0


IDS = torch.arange(10).view(2, 5)
LABELS = (IDS + 1).where(IDS != 3, -100)


@pytest.mark.parametrize("returns", ["tensor", "object", "tuple"])
def test_logits_in_any_wrapping(returns):
    model = wrap(Bigram(returns))
    assert isinstance(model, CausalLM)
    assert model.vocab_size == 11
    logits = model(Batch(IDS, LABELS))
    assert logits.shape == (2, 5, 11)
    expected = nn.functional.cross_entropy(logits.view(-1, 11), LABELS.view(-1), reduction="sum")
    for loss in (MaskedCrossEntropy(), ChunkedCrossEntropy()):
        assert model(Batch(IDS, LABELS), head_loss=loss).item() == pytest.approx(expected.item(), rel=1e-6)


def test_what_is_already_a_model_stays_itself():
    model = wrap(Bigram())
    assert wrap(model) is model


def test_positions_are_passed_only_where_they_are_taken():
    model = wrap(Positional())
    assert model.max_seq_len == 16
    assert model(Batch(IDS, position_ids=IDS)).abs().max() == 0
    assert wrap(Bigram())(Batch(IDS, position_ids=IDS)).abs().max() > 0


def test_roles():
    assert wrap(Bigram()).param_roles() == {
        "module.table.weight": "embedding",
        "module.norm.weight": "norm",
        "module.norm.bias": "norm",
        "module.lm_head.weight": "head",
        "module.lm_head.bias": "bias",
    }


def test_its_own_initial_values_stay():
    module = Bigram()
    before = module.table.weight.clone()
    wrap(module).init_weights(0)
    assert torch.equal(module.table.weight, before)
    with torch.device("meta"):
        unborn = wrap(Bigram())
    with pytest.raises(ConfigError, match="meta"):
        unborn.init_weights(0)


class Wrong(nn.Module):
    """Returns hidden states summed away."""

    vocab_size = 5

    def forward(self, input_ids):
        return input_ids.float()


class Nameless(nn.Module):
    """Has no vocabulary that could be found."""

    def forward(self, input_ids):
        return input_ids


def test_what_does_not_fit_is_named():
    with pytest.raises(ConfigError, match=r"a tensor of shape \(2, 5\)"):
        wrap(Wrong())(Batch(IDS))
    with pytest.raises(ConfigError, match="vocabulary of Nameless"):
        wrap(Nameless())
    with pytest.raises(ConfigError, match="keep documents in one row apart"):
        wrap(Bigram())(Batch(IDS, segment_ids=IDS))
