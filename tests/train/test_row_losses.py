"""Losses by row: value and gradient bit for bit those without, weights against autograd, sums against brute force."""

import pytest
import torch
import torch.nn.functional as F
from tests.train.test_step import TOKENS, VOCAB, _TwoThatAverage, adamw, batch, pieces, tiny, weights

from automodel_cli.batch import IGNORE_INDEX, Batch
from automodel_cli.train.chunked_nll import chunked_nll, nll_and_gradient
from automodel_cli.train.losses import ChunkedCrossEntropy, LogitsLoss, MaskedCrossEntropy
from automodel_cli.train.row_losses import ByRow, SourceSums, tells_rows
from automodel_cli.train.step import train_step

LOSSES = [
    MaskedCrossEntropy(),
    MaskedCrossEntropy(z_loss_weight=0.1),
    ChunkedCrossEntropy(chunk_tokens=24),
    ChunkedCrossEntropy(chunk_tokens=24, z_loss_weight=0.1),
]
ROWS, WIDTH, PADDED = 5, 8, 128
SOURCES = torch.tensor([0, 2, 2, 0, 3, 2, 0, 3])


def inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(ROWS, TOKENS, WIDTH, generator=generator).to(dtype).requires_grad_()
    head = torch.randn(PADDED, WIDTH, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(0, VOCAB - 20, (ROWS, TOKENS), generator=generator)
    labels[0] = IGNORE_INDEX
    labels[2, 4:9] = IGNORE_INDEX
    return hidden, head, labels


def gradients(loss, hidden, head, labels, **more):
    """What is given, and the gradients of its first number."""
    hidden.grad = head.grad = None
    found = loss(hidden, head, labels, vocab_size=VOCAB - 20, **more)
    found.reshape(-1)[0].backward()
    return found.detach(), hidden.grad.clone(), head.grad.clone()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("row_weights", [None, torch.ones(ROWS)])
def test_without_weights_and_with_weights_of_one_every_bit_is_what_it_was(loss, row_weights):
    hidden, head, labels = inputs()
    nll, *before = gradients(loss, hidden, head, labels)
    found, *after = gradients(loss.by_row, hidden, head, labels, row_weights=row_weights)
    assert found.shape == (1 + ROWS,) and torch.equal(found[0], nll)
    assert all(torch.equal(one, other) for one, other in zip(after, before, strict=True))


@pytest.mark.parametrize("loss", LOSSES)
def test_rows_are_told_apart(loss):
    hidden, head, labels = inputs()
    with torch.no_grad():
        found = loss.by_row(hidden, head, labels, vocab_size=VOCAB - 20)
        logits = hidden @ head[: VOCAB - 20].T
        each = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORE_INDEX, reduction="none")
        torch.testing.assert_close(found[1:], each.sum(1), rtol=1e-5, atol=1e-5)
        assert found[1] == 0
        torch.testing.assert_close(loss.by_row_from_logits(logits, labels), found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_weights_are_those_of_plain_weighted_cross_entropy(loss):
    """Against autograd in fp64, z-loss included: gradients within 1e-6 of the largest, no value changes."""
    row_weights = torch.tensor([1.0, 0.25, 3.0, 0.0, 1.5])
    hidden, head, labels = inputs(torch.float64)
    logits = hidden @ head[: VOCAB - 20].T
    each = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORE_INDEX, reduction="none")
    z_loss = logits.logsumexp(-1).square().where(labels != IGNORE_INDEX, 0) * loss.z_loss_weight
    ((each + z_loss) * row_weights[:, None]).sum().backward()
    expected = [hidden.grad, head.grad]
    plain = inputs()
    nll, *_ = gradients(loss, *plain)
    found, *after = gradients(loss.by_row, *plain, row_weights=row_weights)
    assert found[0] == nll
    for one, other in zip(after, expected, strict=True):
        assert (one.double() - other).abs().max() < 1e-6 * other.abs().max()
    of_logits = logits.detach().float().requires_grad_()
    loss.by_row_from_logits(of_logits, labels, row_weights)[0].backward()
    torch.testing.assert_close((of_logits.grad.double() @ head[: VOCAB - 20]), expected[0], rtol=1e-4, atol=1e-5)


def test_the_traced_form_is_the_eager_one():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, PADDED, generator=generator)
    labels = torch.tensor([3, 99, IGNORE_INDEX, 0, 7, 7])
    factors = torch.rand(6, generator=generator)
    traced, each, each_traced = logits.clone(), torch.empty(6), torch.empty(6)
    compiled = torch.compile(nll_and_gradient, dynamic=False, backend="aot_eager")
    found = compiled(traced, labels, 100, IGNORE_INDEX, 1e-2, factors, each_traced)
    assert found.item() == pytest.approx(
        nll_and_gradient(logits, labels, 100, IGNORE_INDEX, 1e-2, factors, each).item(), rel=1e-6
    )
    torch.testing.assert_close(traced, logits, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(each_traced, each)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_finds_nothing_wrong_with_the_operator(dtype):
    hidden, head, labels = inputs(dtype)
    tokens = hidden.detach().flatten(0, 1).requires_grad_()
    factors = torch.rand(len(tokens), generator=torch.Generator().manual_seed(0))
    arguments = (tokens, head, labels.flatten(), VOCAB - 20, 24, IGNORE_INDEX, True, False, 1e-2, factors, True)
    torch.library.opcheck(chunked_nll, arguments)


def with_sources(whole, row_weights=None):
    return Batch(whole.input_ids, whole.labels, sources=SOURCES, row_weights=row_weights)


def cut(whole, rows):
    fields = [torch.Tensor.split(tensor, rows) for tensor in vars(whole).values() if tensor is not None]
    names = [name for name, tensor in vars(whole).items() if tensor is not None]
    return [Batch(**dict(zip(names, own, strict=True))) for own in zip(*fields, strict=True)]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("rows", [8, 4, 1])
def test_an_update_says_the_loss_of_each_source_and_is_what_it_was(loss, rows):
    plain, split = tiny(), tiny()
    before = [train_step(plain, loss, adamw(plain), pieces(batch(0), rows)) for _ in range(2)]
    after = [train_step(split, loss, adamw(split), cut(with_sources(batch(0)), rows), sources=4) for _ in range(2)]
    assert torch.equal(weights(plain), weights(split))
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one.loss, other.loss) and torch.equal(one.grad_norm, other.grad_norm)
    model, whole = tiny(), batch(0)
    logits = model(whole)
    each = F.cross_entropy(logits.transpose(1, 2), whole.labels, ignore_index=IGNORE_INDEX, reduction="none").sum(1)
    nll, tokens = after[0].by_source.tolist()
    assert nll == pytest.approx([each[number == SOURCES].sum().item() for number in range(4)], rel=1e-5)
    assert tokens == [3 * TOKENS - 3, 0, 3 * TOKENS, 2 * TOKENS]


def test_sums_of_other_ranks_are_added():
    class Twice(_TwoThatAverage):
        def sum(self, tensor):
            return 2 * tensor

    model = tiny()
    found = train_step(
        model, MaskedCrossEntropy(), adamw(model), [with_sources(batch(0))], sources=4, ranks=Twice(1)
    ).by_source
    assert found[1].tolist() == [2 * (3 * TOKENS - 3), 0, 4 * 3 * TOKENS / 2, 4 * TOKENS]


def test_weights_of_rows_act_on_the_update():
    """A row of weight 0 is as good as not there, but for the number of tokens that the sum is divided by."""
    whole, kept = batch(0), SOURCES != 2
    found, alone = tiny(), tiny()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (found, alone)]
    tokens = (whole.labels != IGNORE_INDEX).sum()
    part = Batch(whole.input_ids[kept], whole.labels[kept])
    share = tokens / (part.labels != IGNORE_INDEX).sum()
    loss = ChunkedCrossEntropy(chunk_tokens=16)
    train_step(found, loss, optimizers[0], [with_sources(whole, kept * share)], sources=4, max_norm=None)
    train_step(alone, loss, optimizers[1], [part], max_norm=None)
    torch.testing.assert_close(weights(found), weights(alone), rtol=1e-5, atol=1e-6)


def test_what_is_not_finite_stays_with_its_source():
    sums = SourceSums(4, torch.device("cpu"))
    sums.add(with_sources(batch(0)), torch.tensor([1.0, float("nan"), 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]))
    nll, tokens = sums.totals.tolist()
    assert (nll[0], nll[1], nll[3]) == (10, 0, 11) and nll[2] != nll[2] and sum(tokens) == 8 * TOKENS - 3


def test_which_losses_can_tell():
    assert tells_rows(MaskedCrossEntropy()) and tells_rows(ChunkedCrossEntropy())
    assert not tells_rows(LogitsLoss(torch.nn.CrossEntropyLoss()))
    assert ByRow(MaskedCrossEntropy(), None).from_logits(torch.zeros(2, 3, 5), torch.zeros(2, 3).long()).shape == (3,)
