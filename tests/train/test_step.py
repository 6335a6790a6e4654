"""One update: against a loop written out with torch's own parts, and what must hold of any update."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tests.effort import BACKEND

from automodel_cli.batch import IGNORE_INDEX, Batch
from automodel_cli.device import configure_process
from automodel_cli.distributed.grad_sync import GradSync
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.train.losses import ChunkedCrossEntropy, MaskedCrossEntropy
from automodel_cli.train.muon.rules import muon_adamw
from automodel_cli.train.optimizers import build_adamw, build_optimizer
from automodel_cli.train.param_groups import UpdateRule, same_rule
from automodel_cli.train.step import train_step

VOCAB, TOKENS = 128, 16


def tiny(n_layer=2, **changes):
    sizes = {"vocab_size": VOCAB, "n_positions": TOKENS, "n_embd": 32, "n_layer": n_layer, "n_head": 2}
    model = build_gpt2_model(**sizes, **changes)
    model.init_weights(0)
    return model


def adamw(model, lr=1e-2):
    return build_optimizer(model, same_rule(UpdateRule(build_adamw, lr, 0.1)))


def batch(index, rows=8):
    ids = torch.randint(0, VOCAB, (rows, TOKENS + 1), generator=torch.Generator().manual_seed(index))
    labels = ids[:, 1:].clone()
    labels[0, : index + 3] = IGNORE_INDEX  # uneven, so that a mean of means would be wrong
    return Batch(ids[:, :-1].contiguous(), labels)


def pieces(whole, rows):
    return [
        Batch(ids, labels) for ids, labels in zip(whole.input_ids.split(rows), whole.labels.split(rows), strict=True)
    ]


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def reference_loop(steps, z_loss_weight=0.0):
    """Mean cross-entropy and z-loss, torch's clipping and unfused AdamW."""
    model = tiny()
    build = partial(torch.optim.AdamW, betas=(0.9, 0.95), foreach=False)
    optimizer = build_optimizer(model, same_rule(UpdateRule(build, 1e-2, 0.1)))
    losses, norms = [], []
    for step in range(steps):
        data = batch(step)
        logits = model(data)
        loss = F.cross_entropy(logits.reshape(-1, VOCAB), data.labels.reshape(-1), ignore_index=IGNORE_INDEX)
        log_z = logits.logsumexp(-1)[data.labels != IGNORE_INDEX]
        optimizer.zero_grad()
        (loss + z_loss_weight * log_z.square().mean()).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        optimizer.step()
        losses.append(loss.item())
    return losses, norms, weights(model)


@pytest.mark.parametrize(
    "loss",
    [
        MaskedCrossEntropy(),
        ChunkedCrossEntropy(chunk_tokens=32),
        MaskedCrossEntropy(z_loss_weight=0.1),
        ChunkedCrossEntropy(chunk_tokens=32, z_loss_weight=0.1),
    ],
)
@pytest.mark.parametrize("rows", [8, 4, 1])
def test_any_accumulation_is_the_written_out_loop(loss, rows):
    model = tiny()
    optimizer = adamw(model)
    results = [train_step(model, loss, optimizer, pieces(batch(step), rows)) for step in range(4)]
    losses, norms, expected = reference_loop(4, loss.z_loss_weight)
    assert [result.loss.item() for result in results] == pytest.approx(losses, rel=1e-5)
    assert [result.grad_norm.item() for result in results] == pytest.approx(norms, rel=1e-4)
    torch.testing.assert_close(weights(model), expected, rtol=1e-3, atol=1e-4)
    assert results[2].num_label_tokens.item() == 8 * TOKENS - 5


class _TwoThatAverage(GradSync):
    """The sums of two ranks, of which the other one is not here."""

    grad_divisor = 2

    def __init__(self, num_label_tokens):
        self.num_label_tokens = num_label_tokens

    def sum(self, tensor):
        return self.num_label_tokens if tensor.dtype == torch.int64 else tensor


def test_two_ranks_that_average_their_gradients_are_one():
    """Rank 0 has 2 rows, rank 1 has 6: the sums are reduced, the gradients averaged, as DDP does."""
    whole, one = batch(0), tiny()
    alone = train_step(one, MaskedCrossEntropy(), torch.optim.SGD(one.parameters(), lr=0.0), [whole])
    parts = [Batch(whole.input_ids[:2], whole.labels[:2]), Batch(whole.input_ids[2:], whole.labels[2:])]
    total = (whole.labels != IGNORE_INDEX).sum()
    gradients = []
    for part in parts:
        model = tiny()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        result = train_step(
            model,
            MaskedCrossEntropy(),
            optimizer,
            [part],
            max_norm=None,
            ranks=_TwoThatAverage(total),
        )
        assert result.num_label_tokens == alone.num_label_tokens
        gradients.append(model.wte.weight.grad)
    reference = tiny()
    train_step(
        reference,
        MaskedCrossEntropy(),
        torch.optim.SGD(reference.parameters(), lr=0.0),
        [whole],
        max_norm=None,
    )
    torch.testing.assert_close((gradients[0] + gradients[1]) / 2, reference.wte.weight.grad)


def test_clipping_is_optional_and_the_norm_is_of_before():
    norms, gradients = [], []
    for max_norm in (None, 1e-3):
        model = tiny()
        result = train_step(
            model,
            MaskedCrossEntropy(),
            torch.optim.SGD(model.parameters(), lr=0.0),
            [batch(0)],
            max_norm=max_norm,
        )
        norms.append(result.grad_norm)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm())
    assert norms[0] == norms[1] == pytest.approx(gradients[0].item(), rel=1e-5)
    assert gradients[1] == pytest.approx(1e-3, rel=1e-3)


class BrokenAt:
    """A loss that is NaN, or whose gradient is infinite, in one micro-batch."""

    def __init__(self, value, gradient):
        self.value, self.gradient = value, gradient

    def __call__(self, hidden, weight, labels, *, vocab_size):
        nll = MaskedCrossEntropy()(hidden, weight, labels, vocab_size=vocab_size)
        if self.gradient:
            hidden.register_hook(lambda grad: grad * float("inf"))
        return nll * self.value


@pytest.mark.parametrize("broken", [BrokenAt(float("nan"), False), BrokenAt(float("inf"), False), BrokenAt(1.0, True)])
@pytest.mark.parametrize("kind", ["fused AdamW", "plain AdamW", "SGD", "muon_adamw"])
def test_a_step_that_is_not_finite_changes_nothing(broken, kind):
    model = tiny()
    optimizer = {
        "fused AdamW": adamw,
        "plain AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=False),
        "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9),
        "muon_adamw": lambda model: build_optimizer(model, muon_adamw(normuon_beta2=0.95)(model)),
    }[kind](model)
    assert not train_step(model, MaskedCrossEntropy(), optimizer, [batch(0)]).skipped
    before, moments = weights(model), copy.deepcopy(optimizer.state_dict()["state"])
    assert train_step(model, broken, optimizer, [batch(1), batch(2)]).skipped
    assert torch.equal(weights(model), before)
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(moments[index][name])), name
    after = train_step(model, MaskedCrossEntropy(), optimizer, [batch(1)])
    assert not after.skipped
    assert not torch.equal(weights(model), before)


def test_results_are_tensors_so_that_nothing_waits():
    model = tiny()
    result = train_step(model, MaskedCrossEntropy(), adamw(model), [batch(0)])
    for value in (result.num_label_tokens, result.grad_norm, result.skipped, result.loss):
        assert isinstance(value, torch.Tensor)
        assert value.shape == ()


def test_bf16_compute_follows_fp32():
    """Fifty updates on a learnable sequence: the losses of bf16 compute stay within 2e-2 of fp32's."""
    curves = []
    for dtype in (None, torch.bfloat16):
        model = tiny()
        optimizer = adamw(model, lr=3e-3)
        data = [batch(0)]
        curves.append(
            [train_step(model, ChunkedCrossEntropy(), optimizer, data, autocast_dtype=dtype).loss for _ in range(50)]
        )
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    fp32, bf16 = (torch.stack(curve) for curve in curves)
    assert fp32[-1] < 0.7 * fp32[0]
    assert (fp32 - bf16).abs().max() < 2e-2


@pytest.mark.parametrize("loss", [MaskedCrossEntropy(), ChunkedCrossEntropy(chunk_tokens=48)])
def test_fp16_with_a_scaler_backs_off_and_learns(loss):
    model = tiny()
    optimizer = adamw(model, lr=3e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=1000)
    results = [
        train_step(model, loss, optimizer, [batch(0)], autocast_dtype=torch.float16, scaler=scaler) for _ in range(40)
    ]
    skips = [result.skipped.item() for result in results]
    assert skips[0]
    assert not any(skips[30:])
    assert scaler.get_scale() < 2.0**40
    assert results[-1].loss < results[0].loss


# (compute dtype, compiled, dropout, loss)
PATHS = [
    (None, False, 0.0, MaskedCrossEntropy()),
    (torch.bfloat16, False, 0.1, ChunkedCrossEntropy(chunk_tokens=48)),
    (torch.bfloat16, True, 0.1, ChunkedCrossEntropy(chunk_tokens=48)),
]


@pytest.fixture
def settled():
    """Process settings as a run has them, with threads that could add up in any order; undone afterwards."""
    threads = torch.get_num_threads()
    configure_process(torch.device("cpu"), threads=2)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
    torch._dynamo.reset()


@pytest.mark.parametrize(("dtype", "compiled", "dropout", "loss"), PATHS)
def test_six_updates_are_three_and_a_resume_and_three_bitwise(dtype, compiled, dropout, loss, settled):
    def run(model, optimizer, steps):
        if compiled:
            model.compile(dynamic=False, backend=BACKEND)
        losses = []
        for step in steps:
            result = train_step(
                model,
                loss,
                optimizer,
                pieces(batch(step), 4),
                autocast_dtype=dtype,
                dropout_seed=step if dropout else None,
            )
            losses.append(result.loss.item())
        return losses

    n_layer = 1 if compiled else 2  # one block asks the same, and compiling takes most of the time
    model = tiny(n_layer, dropout=dropout)
    optimizer = adamw(model)
    undisturbed = run(model, optimizer, range(6))

    first = tiny(n_layer, dropout=dropout)
    first_optimizer = adamw(first)
    losses = run(first, first_optimizer, range(3))
    torch.manual_seed(99)  # a new process has another state of the global generator
    second = tiny(n_layer, dropout=dropout)
    second.load_state_dict(first.state_dict())
    second_optimizer = adamw(second)
    second_optimizer.load_state_dict(copy.deepcopy(first_optimizer.state_dict()))
    losses += run(second, second_optimizer, range(3, 6))
    assert losses == undisturbed
    assert torch.equal(weights(second), weights(model))
