"""Attention's kernels by name: the same function, the model that takes a preference, what is not here."""

import pytest
import torch

from automodel_cli.batch import Batch
from automodel_cli.errors import ConfigError
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.layers import attention_kernels
from automodel_cli.models.layers.attention_kernels import AttendWith, Probed
from automodel_cli.models.layers.shared import attend_by_name, attend_eager

SHAPE = {"vocab_size": 64, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2}


@pytest.mark.parametrize("kernel", ["cudnn", "flash", "efficient", "math"])
def test_a_preferred_kernel_computes_attention(kernel):
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (torch.randn(2, 3, 12, 8, generator=generator) for _ in range(3))
    found = AttendWith(kernel)(queries, keys, values, mask=None, dropout=0.0)
    expected = attend_eager(queries, keys, values, mask=None, dropout=0.0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_model_takes_a_preference_and_keeps_its_numbers():
    model = build_gpt2_model(**SHAPE)
    model.init_weights(0)
    batch = Batch(torch.arange(16)[None])
    expected = model(batch)
    assert model.attention_shape() == (2, 16)
    model.prefer_attention("flash")
    assert all(block.attn.attend.kernel == "flash" for block in model.h)
    torch.testing.assert_close(model(batch), expected, atol=1e-5, rtol=1e-5)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(batch), expected, atol=1e-5, rtol=1e-5)


def test_what_the_model_section_says_is_not_chosen():
    assert build_gpt2_model(**SHAPE, attn_implementation="sdpa").attention_shape() is None


def test_a_residual_stream_in_bf16_stays_close():
    model = build_gpt2_model(**SHAPE)
    model.init_weights(0)
    batch = Batch(torch.arange(16)[None])
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(batch).float()
        model.keep_residual_in(torch.bfloat16)
        seen = []
        model.h[1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
        found = model(batch).float()
    assert seen == [torch.bfloat16]
    assert (found - expected).norm() <= 2e-2 * expected.norm()


def test_a_package_that_is_not_here_is_named():
    with pytest.raises(ConfigError, match="fa3 is not available"):
        attend_by_name("fa3")


def test_the_reason_lists_the_fastest_first():
    probed = Probed("cudnn", {"flash": 1.5, "cudnn": 1.2, "efficient": None})
    assert probed.reason == "one layer, forward and backward: cudnn 1.20 ms, flash 1.50 ms"


def test_nothing_is_chosen_where_no_kernel_works(monkeypatch):
    monkeypatch.setattr(attention_kernels, "_time_ms", lambda *arguments: None)
    probed = attention_kernels.probe(torch.device("cpu"), rows=1, heads=1, tokens=8, head_width=8, dtype=torch.float32)
    assert probed is None


@pytest.mark.parametrize(
    ("times", "chosen"),
    [
        ({"cudnn": 1.0, "flash": 1.5, "efficient": 3.0}, "cudnn"),
        ({"cudnn": 0.99, "flash": 1.0, "efficient": 3.0}, "flash"),  # not worth other numbers
        ({"cudnn": None, "flash": None, "efficient": 3.0}, "efficient"),
    ],
)
def test_the_fastest_kernel_is_chosen(monkeypatch, times, chosen):
    monkeypatch.setattr(attention_kernels, "_time_ms", lambda name, *arguments: times[name])
    probed = attention_kernels.probe(torch.device("cpu"), rows=1, heads=1, tokens=8, head_width=8, dtype=torch.float32)
    assert probed.kernel == chosen
