"""Linear layers in fp8: against torch's own fp8 product, against bf16, compiled; what is converted and what is not."""

import math

import pytest
import torch
import transformers
from torch import nn

from automodel_cli.batch import Batch
from automodel_cli.distributed.recompute import recompute
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.huggingface.model import HFCausalLM
from automodel_cli.models.layers.fp8 import E4M3, E5M2, Fp8Linear, convert, power_of_two_scale, suitable
from automodel_cli.train.losses import MaskedCrossEntropy

VOCAB, TOKENS = 256, 64
FEW = {"rows": 1, "tokens": 16}  # a CPU makes ten million products of fp8 in a second
# Relative errors of gradients, one matrix at a time. Measured on this model: 0.006 for bf16, 0.075 to 0.096 for fp8.
# Rounding to e5m2 alone is 0.07: two bits of mantissa.
BF16_ERROR, FP8_ERROR = 0.01, 0.12


def tiny(*, fp8: bool = False, emulate: bool = True):
    model = build_gpt2_model(vocab_size=VOCAB, n_positions=TOKENS, n_embd=64, n_layer=2, n_head=2)
    model.init_weights(0)
    if fp8:
        convert(model, emulate=emulate)
    return model.train()


def llama():
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=40,  # does not divide by 16
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
    )
    return HFCausalLM(transformers.LlamaForCausalLM(config))


def gradients(model, call=None, dtype=torch.bfloat16, *, rows=4, tokens=TOKENS):
    """Of one batch: loss of a token, and the gradient of every matrix in the blocks."""
    ids = torch.randint(0, VOCAB, (rows, tokens + 1), generator=torch.Generator().manual_seed(0))
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        loss = (model if call is None else call)(batch, head_loss=MaskedCrossEntropy())
    loss.backward()
    roles = model.param_roles()
    found = {name: p.grad for name, p in model.named_parameters() if roles[name] == "matrix"}
    return loss.item() / ids[:, 1:].numel(), found


def errors(found, expected):
    return [((found[name] - expected[name]).norm() / expected[name].norm()).item() for name in expected]


def layer(*, emulate=True, bias=True, inputs=64, outputs=96):
    torch.manual_seed(0)
    made = nn.Linear(inputs, outputs, bias=bias)
    made.__class__, made.emulate = Fp8Linear, emulate
    return made


# ------------------------------------------------------------------------------------------------ numbers


def test_gradients_and_loss_are_those_of_bf16_up_to_fp8_rounding():
    exact_loss, exact = gradients(tiny(), dtype=None)
    _, bf16 = gradients(tiny())
    fp8_loss, fp8 = gradients(tiny(fp8=True))
    assert max(errors(bf16, exact)) < BF16_ERROR
    assert 0.05 < max(errors(fp8, bf16)) < FP8_ERROR  # below: it did not run in fp8
    assert fp8_loss == pytest.approx(exact_loss, abs=2e-3)  # measured: 4e-4
    for name in exact:
        cosine = torch.nn.functional.cosine_similarity(fp8[name].flatten(), exact[name].flatten(), dim=0)
        assert cosine > 0.99, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_emulation_is_torchs_fp8_product(dtype):
    """On a CPU torch multiplies fp8 as well, slowly."""
    results = []
    for emulate in (True, False):
        linear = layer(emulate=emulate)
        x = torch.randn(4, 16, 64, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = linear(x)
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype) * 1e-7)
        assert y.dtype == torch.bfloat16
        assert x.grad.dtype == dtype
        assert linear.weight.grad.dtype == torch.float32
        results.append([y.detach(), x.grad, linear.weight.grad, linear.bias.grad])
    for emulated, native in zip(*results, strict=True):
        one_rounding = 2**-8 if emulated.dtype == torch.bfloat16 or emulated.dim() == 3 else 1e-5
        torch.testing.assert_close(emulated, native, rtol=one_rounding, atol=0.0)


def round_to(value: float, mantissa_bits: int, smallest_exponent: int) -> float:
    """``value`` as a number with so many bits after the point, ties to even; by hand."""
    if value == 0:
        return 0.0
    exponent = max(math.frexp(value)[1] - 1, smallest_exponent)
    unit = 2.0 ** (exponent - mantissa_bits)
    return round(value / unit) * unit


def by_hand(tensor, *, largest: float, mantissa_bits: int, smallest_exponent: int):
    """What fp8 leaves of a tensor, each value by itself."""
    scale = 2.0 ** math.floor(math.log2(largest / tensor.abs().max().item()))
    rows = tensor.tolist()
    return torch.tensor(
        [[round_to(value * scale, mantissa_bits, smallest_exponent) / scale for value in row] for row in rows]
    )


def test_products_are_those_of_operands_rounded_by_hand():
    linear = layer(bias=False, inputs=16, outputs=16)
    x = torch.randn(16, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    gradient = torch.randn(16, 16, generator=torch.Generator().manual_seed(2)).bfloat16()
    gradient[3] *= 2.0**-26  # small beside the others, and yet in the range of e5m2
    y = linear(x)
    y.backward(gradient)
    e4m3 = {"largest": 448, "mantissa_bits": 3, "smallest_exponent": -6}
    x8, w8 = by_hand(x.detach(), **e4m3), by_hand(linear.weight.detach(), **e4m3)
    g8 = by_hand(gradient.float(), largest=57344, mantissa_bits=2, smallest_exponent=-14)
    assert g8[3].any()
    for found, expected in ((y, x8 @ w8.T), (x.grad, g8 @ w8)):
        torch.testing.assert_close(found, expected.bfloat16(), rtol=2**-8, atol=0.0, check_dtype=False)
    torch.testing.assert_close(linear.weight.grad, g8.T @ x8, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("size", [1e-20, 3e-7, 1.0, 448.0, 464.0, 6e4, 1e20])
def test_a_scale_is_the_largest_power_of_two_that_fits(size, dtype):
    tensor = torch.tensor([[-size, size / 3]])
    scale = power_of_two_scale(tensor, dtype).item()
    largest = torch.finfo(dtype).max
    assert math.frexp(scale)[0] == 0.5
    assert largest / 2 < size * scale <= largest * (1 + 1e-6)
    assert (tensor * scale).to(dtype).float().isfinite().all()


def test_zeros_give_zeros():
    linear = layer(bias=False)
    x = torch.zeros(16, 64, requires_grad=True)
    y = linear(x)
    y.backward(torch.zeros_like(y))
    assert not y.any()
    assert not x.grad.any()
    assert not linear.weight.grad.any()


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_not_finite_stays_so(bad):
    """The training step skips such an update; a value clipped into range would be trained on."""
    linear = layer()
    x = torch.ones(16, 64)
    x[3, 5] = bad
    assert not linear(x)[3].isfinite().any()
    y = linear(torch.ones(16, 64))
    gradient = torch.ones_like(y)
    gradient[3, 5] = bad
    y.backward(gradient)
    assert not linear.weight.grad[5].isfinite().any()


# ---------------------------------------------------------------------------------------- layers and models


def test_names_and_evaluation_are_those_of_the_model_before():
    model = tiny()
    names, text = list(model.state_dict()), repr([p.shape for p in model.parameters()])
    x = Batch(torch.arange(16)[None])
    before = model.eval()(x)
    converted = convert(model, emulate=True)
    assert len(converted) == 8
    assert list(model.state_dict()) == names
    assert repr([p.shape for p in model.parameters()]) == text
    assert torch.equal(model(x), before)  # eval mode
    assert not torch.equal(model.train()(x), before)
    assert convert(model, emulate=True) == converted


def test_head_and_odd_sizes_and_names_given_are_left_out():
    model = llama()
    attention = [f"hf.model.layers.{n}.self_attn.{m}_proj" for n in (0, 1) for m in "qkvo"]
    assert suitable(model) == attention
    assert suitable(model, ["layers.0.", "o_proj"]) == attention[4:7]
    assert suitable(model, ["*.q_proj", "lm_head"]) == [name for name in attention if "q_proj" not in name]
    assert convert(model) == attention
    assert type(model.hf.lm_head) is nn.Linear
    assert type(model.hf.model.layers[0].mlp.up_proj) is nn.Linear
    assert type(model.hf.model.layers[0].self_attn.q_proj) is Fp8Linear


def test_transformers_gpt2_has_no_linear_layer():
    config = transformers.GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=1, n_head=2)
    assert convert(HFCausalLM(transformers.GPT2LMHeadModel(config))) == []


def test_a_number_of_tokens_that_does_not_fit_is_computed_plainly():
    x = torch.randn(15, 64)
    linear = layer()
    assert torch.equal(linear(x), nn.functional.linear(x, linear.weight, linear.bias))


@pytest.mark.parametrize("emulate", [True, False])
@pytest.mark.parametrize("how", ["full", "selective"])
def test_activations_computed_again_are_the_same(how, emulate):
    _, expected = gradients(tiny(fp8=True, emulate=emulate), **FEW)
    model = tiny(fp8=True, emulate=emulate)
    for block in model.blocks():
        recompute(block, how, random=False)
    _, found = gradients(model, **FEW)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


# ---------------------------------------------------------------------------------------------- compilation


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("emulate", [True, False])
def test_a_compiler_sees_one_graph_with_the_same_numbers(fresh_compiler, emulate):
    loss, expected = gradients(tiny(fp8=True, emulate=emulate), **FEW)
    model = tiny(fp8=True, emulate=emulate)
    call = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    found_loss, found = gradients(model, call, **FEW)
    assert found_loss == loss
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
