"""Losses against torch's cross-entropy, values and gradients, fp32 and bf16."""

import pytest
import torch
import torch.nn.functional as F

from automodel_cli.batch import IGNORE_INDEX
from automodel_cli.errors import ConfigError
from automodel_cli.train.losses import (
    ChunkedCrossEntropy,
    MaskedCrossEntropy,
    default_chunk_tokens,
)

ROWS, TOKENS, WIDTH, VOCAB, PADDED = 3, 50, 24, 200, 256


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, TOKENS, WIDTH, generator=generator)
    weight = torch.randn(PADDED, WIDTH, generator=generator) * 0.3
    labels = torch.randint(0, VOCAB, (ROWS, TOKENS), generator=generator)
    labels[0, :20] = IGNORE_INDEX
    labels[2, -1] = IGNORE_INDEX
    return hidden, weight, labels


def reference(hidden, weight, labels):
    """nll sum and gradients in float64, over logical logits only."""
    hidden = hidden.double().requires_grad_()
    weight = weight.double().requires_grad_()
    logits = hidden @ weight[:VOCAB].T
    nll = F.cross_entropy(logits.view(-1, VOCAB), labels.view(-1), ignore_index=IGNORE_INDEX, reduction="sum")
    return nll.detach(), *torch.autograd.grad(nll, (hidden, weight))


LOSSES = [
    MaskedCrossEntropy(),
    ChunkedCrossEntropy(chunk_tokens=1000),
    ChunkedCrossEntropy(chunk_tokens=64),
    ChunkedCrossEntropy(chunk_tokens=1),
    ChunkedCrossEntropy(),
]


def run(loss, hidden, weight, labels, scale=1.0):
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    nll = loss(hidden, weight, labels, vocab_size=VOCAB)
    assert nll.dtype == torch.float32
    assert nll.shape == ()
    return nll.detach(), *torch.autograd.grad(nll * scale, (hidden, weight))


@pytest.mark.parametrize("loss", LOSSES)
def test_value_and_gradients_in_fp32(loss, tensors):
    expected = reference(*tensors)
    for found, wanted in zip(run(loss, *tensors), expected, strict=True):
        assert (found - wanted).norm() / wanted.norm() < 1e-5


@pytest.mark.parametrize("loss", LOSSES)
def test_value_and_gradients_under_bf16_autocast(loss, tensors):
    """Products in bf16 have 8 bits: the sum agrees to 1e-3, gradients to 1e-2 of their norm."""
    expected = reference(*tensors)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(loss, *tensors)
    assert abs(found[0] - expected[0]) / expected[0] < 1e-3
    for gradient, wanted in zip(found[1:], expected[1:], strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - wanted).norm() / wanted.norm() < 1e-2


@pytest.mark.parametrize("loss", LOSSES)
def test_the_upstream_factor_scales_the_gradients(loss, tensors):
    plain, scaled = run(loss, *tensors), run(loss, *tensors, scale=0.125)
    for one, eighth in zip(plain[1:], scaled[1:], strict=True):
        torch.testing.assert_close(eighth, one / 8)


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_rows_get_no_probability_and_no_gradient(loss, tensors):
    hidden, weight, labels = tensors
    huge = weight.clone()
    huge[VOCAB:] = 1e4
    nll, _, grad_weight = run(loss, hidden, huge, labels)
    assert nll == run(loss, hidden, weight, labels)[0]
    assert grad_weight[VOCAB:].abs().max() == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_to_predict_is_zero_not_nan(loss, tensors):
    hidden, weight, labels = tensors
    nll, grad_hidden, grad_weight = run(loss, hidden, weight, torch.full_like(labels, IGNORE_INDEX))
    assert nll == 0
    assert grad_hidden.abs().max() == 0
    assert grad_weight.abs().max() == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_evaluation_gives_the_same_number(loss, tensors):
    expected = run(loss, *tensors)[0]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert loss(*tensors, vocab_size=VOCAB) == expected


@pytest.mark.parametrize("loss", LOSSES)
def test_from_logits(loss, tensors):
    hidden, weight, labels = tensors
    logits = hidden @ weight[:VOCAB].T
    assert loss.from_logits(logits, labels) == pytest.approx(reference(*tensors)[0].item(), rel=1e-5)


def test_a_confident_model_does_not_overflow():
    hidden, weight = torch.full((1, 1, 1), 1e4), torch.tensor([[1.0], [-1.0]])
    for loss in (MaskedCrossEntropy(), ChunkedCrossEntropy()):
        assert loss(hidden, weight, torch.tensor([[1]]), vocab_size=2) == 2e4


def test_unused_settings_are_refused():
    with pytest.raises(ConfigError, match="mean"):
        MaskedCrossEntropy(reduction="mean")
    with pytest.raises(ConfigError, match="chunk_tokens"):
        ChunkedCrossEntropy(chunk_tokens=0)


def test_chunks_are_a_bounded_power_of_two():
    for vocab in (128, 50304, 262144, 10**9):
        chunk = default_chunk_tokens(vocab, "cpu")
        assert chunk >= 64
        assert chunk & (chunk - 1) == 0


# ------------------------------------------------------------------------------------------------------- z-loss

WEIGHT = 0.01  # a hundred times the usual one: its share of the gradient is seen


def z_losses(weight=WEIGHT):
    return [
        MaskedCrossEntropy(z_loss_weight=weight),
        ChunkedCrossEntropy(chunk_tokens=64, z_loss_weight=weight),
        ChunkedCrossEntropy(z_loss_weight=weight),
    ]


def whole_logits(hidden, weight, labels, z_loss_weight=WEIGHT):
    """The formula over whole logits: nll, and the gradients of nll + w logsumexp^2 by autograd."""
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logits = (hidden @ weight[:VOCAB].T).view(-1, VOCAB)
    counted = labels.view(-1) != IGNORE_INDEX
    nll = F.cross_entropy(logits, labels.view(-1), ignore_index=IGNORE_INDEX, reduction="sum")
    total = nll + z_loss_weight * logits.logsumexp(1)[counted].square().sum()
    return nll.detach(), *torch.autograd.grad(total, (hidden, weight))


@pytest.mark.parametrize("loss", z_losses())
def test_z_loss_is_autograds_over_whole_logits(loss, tensors):
    """The z-loss is in the gradients and not in the value."""
    found, expected = run(loss, *tensors), whole_logits(*tensors)
    assert found[0] == run(type(loss)(), *tensors)[0]
    for gradient, wanted, without in zip(found[1:], expected[1:], reference(*tensors)[1:], strict=True):
        assert (gradient - wanted).norm() / wanted.norm() < 1e-6
        assert (gradient - without).norm() / wanted.norm() > 1e-2


@pytest.mark.parametrize("loss", z_losses())
def test_z_loss_of_logits(loss, tensors):
    """As softcapped models and those of others are scored."""
    hidden, weight, labels = tensors
    leaf = hidden.clone().requires_grad_()
    nll = loss.from_logits(leaf @ weight[:VOCAB].T, labels)
    expected = whole_logits(*tensors)
    assert nll.item() == pytest.approx(expected[0].item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(nll, leaf)
    assert (gradient - expected[1]).norm() / expected[1].norm() < 1e-6


@pytest.mark.parametrize("loss", z_losses())
def test_z_loss_under_bf16_autocast(loss, tensors):
    expected = whole_logits(*tensors)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(loss, *tensors)
    for gradient, wanted in zip(found[1:], expected[1:], strict=True):
        assert (gradient - wanted).norm() / wanted.norm() < 1e-2


@pytest.mark.parametrize("loss", z_losses())
def test_ignored_tokens_have_no_z_loss(loss, tensors):
    hidden, weight, labels = tensors
    _, grad_hidden, _ = run(loss, hidden, weight, labels)
    assert grad_hidden[labels == IGNORE_INDEX].abs().max() == 0


@pytest.mark.parametrize("loss", z_losses())
def test_without_gradients_the_z_loss_is_nowhere(loss, tensors):
    """As validation calls it."""
    with torch.no_grad():
        assert loss(*tensors, vocab_size=VOCAB) == type(loss)()(*tensors, vocab_size=VOCAB)


@pytest.mark.parametrize(("loss", "plain"), zip(z_losses(0.0), [LOSSES[0], LOSSES[2], LOSSES[4]], strict=True))
def test_a_z_loss_of_weight_zero_changes_no_bit(loss, plain, tensors):
    assert all(map(torch.equal, run(loss, *tensors), run(plain, *tensors)))


@pytest.mark.parametrize("loss", z_losses(1.0))
def test_a_z_loss_of_weight_one_drives_log_z_to_zero(loss, tensors):
    """A head that learns how often labels come, from logits that are equal: log(Z) is log(V) = 5.3 then."""
    labels = tensors[2]
    hidden, weight = torch.ones(ROWS, TOKENS, 1), torch.nn.Parameter(torch.zeros(PADDED, 1))
    optimizer = torch.optim.Adam([weight], lr=0.1, betas=(0.5, 0.9))
    for _ in range(150):
        optimizer.zero_grad()
        (loss(hidden, weight, labels, vocab_size=VOCAB) / labels.numel()).backward()
        optimizer.step()
    assert weight[:VOCAB].logsumexp(0).abs() < 0.05


# ------------------------------------------------------------------------------------------------------ softcap

CAP = 3.0  # logits have a deviation of 1.5: many are capped


def capped_by_autograd(hidden, weight, labels, *, z_loss_weight, row_weights):
    """The formula over whole logits in float64: nll, its gradients and those of the z-loss, and the nll of each row."""
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    logits = CAP * torch.tanh(hidden @ weight[:VOCAB].T / CAP)
    counted = labels != IGNORE_INDEX
    nll = torch.where(counted, -logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0], 0.0)
    z_loss = torch.where(counted, z_loss_weight * logits.logsumexp(-1).square(), 0.0)
    total = ((nll + z_loss) * row_weights[:, None]).sum()
    return nll.sum().detach(), *torch.autograd.grad(total, (hidden, weight)), nll.sum(1).detach()


@pytest.mark.parametrize("chunk_tokens", [None, 64, 1])
@pytest.mark.parametrize("z_loss_weight", [0.0, WEIGHT])
@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 1e-5), (torch.bfloat16, 1e-2)])
def test_a_softcap_in_chunks_is_autograds(tensors, chunk_tokens, z_loss_weight, dtype, tolerance):
    loss = ChunkedCrossEntropy(chunk_tokens=chunk_tokens, z_loss_weight=z_loss_weight)
    hidden, weight, labels = tensors
    row_weights = torch.tensor([1.0, 0.0, 2.5])
    plain = capped_by_autograd(*tensors, z_loss_weight=z_loss_weight, row_weights=torch.ones(ROWS))
    weighted = capped_by_autograd(*tensors, z_loss_weight=z_loss_weight, row_weights=row_weights)
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        nll = loss(hidden, weight, labels, vocab_size=VOCAB, softcap=CAP)
        rows = loss.by_row(hidden, weight, labels, vocab_size=VOCAB, row_weights=row_weights, softcap=CAP)
    found = (nll.detach(), *torch.autograd.grad(nll, (hidden, weight)), rows[1:])
    of_rows = (rows[0].detach(), *torch.autograd.grad(rows[0], (hidden, weight)), rows[1:])
    for numbers, expected in ((found, plain), (of_rows, weighted)):
        for one, wanted in zip(numbers, expected, strict=True):
            assert (one - wanted).norm() / wanted.norm() < tolerance
    assert not torch.autograd.grad(loss(hidden, weight, labels, vocab_size=VOCAB, softcap=CAP), weight)[0][VOCAB:].any()


def test_a_softcap_that_caps_nothing_is_none(tensors):
    loss = ChunkedCrossEntropy()
    capped = [loss(*tensors, vocab_size=VOCAB, softcap=cap).item() for cap in (1e4, 1.0)]
    plain = loss(*tensors, vocab_size=VOCAB).item()
    assert capped[0] == pytest.approx(plain, rel=1e-5)
    assert capped[1] != pytest.approx(plain, rel=1e-2)


@pytest.mark.parametrize("weight", [-1e-4, float("nan"), float("inf")])
def test_an_impossible_z_loss_weight_is_refused(weight):
    for kind in (MaskedCrossEntropy, ChunkedCrossEntropy):
        with pytest.raises(ConfigError, match="z_loss_weight"):
            kind(z_loss_weight=weight)
