"""Losses of packages: called the right way round, summed, without padding rows; a missing package is named."""

import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from automodel_cli.batch import IGNORE_INDEX
from automodel_cli.errors import ConfigError
from automodel_cli.train.losses import MaskedCrossEntropy
from automodel_cli.train.packaged_losses import CutCrossEntropy, LigerCrossEntropy

VOCAB, PADDED = 100, 128


class FakeLiger:
    """liger_kernel 0.8's class, computed with torch."""

    def __init__(self, *, ignore_index, reduction, accum_dtype):
        assert accum_dtype == torch.float32
        self.options = {"ignore_index": ignore_index, "reduction": reduction}

    def __call__(self, lin_weight, _input, target):
        return F.cross_entropy(_input @ lin_weight.t(), target, **self.options)


def fake_cut(e, c, targets, *, ignore_index, reduction):
    """cut_cross_entropy's function, computed with torch."""
    return F.cross_entropy(e @ c.t(), targets, ignore_index=ignore_index, reduction=reduction)


@pytest.fixture
def packages(monkeypatch):
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    liger = ModuleType("liger_kernel.transformers.fused_linear_cross_entropy")
    liger.LigerFusedLinearCrossEntropyLoss = FakeLiger
    monkeypatch.setitem(sys.modules, liger.__name__, liger)
    cut = ModuleType("cut_cross_entropy")
    cut.linear_cross_entropy = fake_cut
    monkeypatch.setitem(sys.modules, cut.__name__, cut)


@pytest.mark.parametrize("kind", [LigerCrossEntropy, CutCrossEntropy])
def test_they_are_the_plain_loss(kind, packages):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 9, 16, generator=generator)
    weight = torch.randn(PADDED, 16, generator=generator)
    labels = torch.randint(0, VOCAB, (2, 9), generator=generator)
    labels[0, :4] = IGNORE_INDEX
    results = []
    for loss in (kind(), MaskedCrossEntropy()):
        one, other = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        nll = loss(one, other, labels, vocab_size=VOCAB)
        results.append((nll.detach(), *torch.autograd.grad(nll, (one, other))))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "package"), [(LigerCrossEntropy, "liger-kernel"), (CutCrossEntropy, "cut-cross-entropy")]
)
def test_a_missing_package_is_named(kind, package, monkeypatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    monkeypatch.setitem(sys.modules, "cut_cross_entropy", None)
    with pytest.raises(ConfigError, match=package):
        kind()
