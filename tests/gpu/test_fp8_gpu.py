"""fp8 on matrix units: against its emulation and against bf16; compiled whole; without waiting for the device."""

import pytest
import torch
from torch import nn

from automodel_cli.batch import Batch
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.layers.fp8 import Fp8Linear, convert
from automodel_cli.train.losses import ChunkedCrossEntropy, MaskedCrossEntropy
from automodel_cli.train.optimizers import build_adamw
from automodel_cli.train.step import train_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9),
        reason="needs a CUDA device with fp8 matrix units",
    ),
]
VOCAB, TOKENS = 1000, 256
# Matrix units add up outputs in fewer bits than fp32 has (use_fast_accum): entries of a product of random matrices with
# 4,096 inputs are off by up to 2% (DeepSeek-V3, arXiv 2412.19437, section 3.3.2). Here it bounds the error's norm.
ADDING = 0.02
# Relative errors of a matrix's gradient, as in tests/models/layers/test_fp8.py; a layer more.
BF16_ERROR, FP8_ERROR = 0.02, 0.15


def model(kind=None):
    made = build_gpt2_model(vocab_size=VOCAB, n_positions=TOKENS, n_embd=256, n_layer=3, n_head=4, is_meta_device=True)
    made.materialize("cuda", seed=0)
    if kind is not None:
        assert len(convert(made, emulate=kind == "emulated")) == 12
    return made.train()


def batch():
    ids = torch.randint(0, VOCAB, (8, TOKENS + 1), generator=torch.Generator().manual_seed(0))
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()).to("cuda")


def gradients(made, call=None, dtype=torch.bfloat16):
    """Loss of a token, and the gradient of every matrix in the blocks."""
    with torch.autocast("cuda", dtype=dtype, enabled=dtype is not None):
        loss = (made if call is None else call)(batch(), head_loss=MaskedCrossEntropy())
    loss.backward()
    roles = made.param_roles()
    found = {name: p.grad for name, p in made.named_parameters() if roles[name] == "matrix"}
    return loss.item() / (8 * TOKENS), found


def errors(found, expected):
    return [((found[name] - expected[name]).norm() / expected[name].norm()).item() for name in expected]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4096, 768, 3072), (16, 16, 16), (2048, 1600, 4800)])
def test_a_product_is_its_emulation(shape, dtype):
    tokens, inputs, outputs = shape
    torch.manual_seed(0)
    start = torch.randn(1, tokens, inputs, device="cuda", dtype=dtype)
    gradient = torch.randn(1, tokens, outputs, device="cuda", dtype=torch.bfloat16) * 1e-6
    linear = nn.Linear(inputs, outputs, device="cuda")
    linear.__class__ = Fp8Linear
    results = []
    for linear.emulate in (True, False):
        linear.zero_grad()
        x = start.clone().requires_grad_()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            y = linear(x)
        y.backward(gradient)
        results.append([y.detach(), x.grad, linear.weight.grad, linear.bias.grad])
        assert [one.dtype for one in results[-1]] == [torch.bfloat16, dtype, torch.float32, torch.float32]
    for emulated, native in zip(*results, strict=True):
        difference = (native.float() - emulated.float()).norm() / emulated.float().norm()
        assert difference < ADDING


@pytest.mark.parametrize("kind", ["native", "emulated"])
def test_gradients_are_those_of_bf16_up_to_fp8_rounding(kind):
    _, exact = gradients(model(), dtype=None)
    _, bf16 = gradients(model())
    loss, found = gradients(model(kind))
    assert max(errors(bf16, exact)) < BF16_ERROR
    assert 0.05 < max(errors(found, exact)) < FP8_ERROR
    assert loss == pytest.approx(gradients(model(), dtype=None)[0], abs=5e-3)


@pytest.mark.parametrize("kind", ["native", "emulated"])
def test_compiled_in_one_graph(kind):
    """Other kernels round elsewhere, and a value on the other side of a step of fp8 is a step away."""
    torch._dynamo.reset()
    _, exact = gradients(model(), dtype=None)
    expected, eager = gradients(model(kind))
    made = model(kind)
    found, compiled = gradients(made, torch.compile(made, fullgraph=True, dynamic=False))
    assert found == pytest.approx(expected, abs=5e-3)
    assert max(errors(compiled, exact)) < 1.1 * max(errors(eager, exact)) + 0.01


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_not_finite_stays_so(bad, compiled):
    torch._dynamo.reset()
    linear = nn.Linear(64, 96, device="cuda")
    linear.__class__ = Fp8Linear
    call = torch.compile(linear, dynamic=False) if compiled else linear
    x = torch.ones(16, 64, device="cuda")
    x[3, 5] = bad
    assert not call(x)[3].isfinite().any()
    y = call(torch.ones(16, 64, device="cuda"))
    gradient = torch.ones_like(y)
    gradient[3, 5] = bad
    y.backward(gradient)
    assert not linear.weight.grad[5].isfinite().any()


def test_a_step_waits_for_nothing():
    made = model("native")
    optimizer = build_adamw(made.parameters(), lr=1e-3, device="cuda")
    data = [batch()]
    train_step(made, ChunkedCrossEntropy(), optimizer, data, autocast_dtype=torch.bfloat16)
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(made, ChunkedCrossEntropy(), optimizer, data, autocast_dtype=torch.bfloat16)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_training_follows_bf16():
    losses = []
    for kind in (None, "native"):
        made = model(kind)
        optimizer = build_adamw(made.parameters(), lr=1e-3, device="cuda")
        data = [batch()]
        steps = [
            train_step(made, MaskedCrossEntropy(), optimizer, data, autocast_dtype=torch.bfloat16).loss
            for _ in range(30)
        ]
        losses.append(torch.stack(steps).tolist())
    assert losses[1][-1] < losses[1][0] - 1
    assert losses[1] == pytest.approx(losses[0], abs=0.1)
