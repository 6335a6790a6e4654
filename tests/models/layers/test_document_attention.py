"""Documents that share a row against the same documents alone, with dense masks and with FlexAttention's blocks.

FlexAttention has kernels for CUDA only (tests/gpu); here its reference formula runs, whose gradients torch refuses to
give on a CPU only because it has no kernel for them.
"""

from __future__ import annotations

import pytest
import torch
import transformers
from torch._dynamo.utils import counters
from torch.nn.attention import flex_attention as torch_flex

from automodel_cli.batch import IGNORE_INDEX, Batch
from automodel_cli.distributed.recompute import recompute
from automodel_cli.errors import ConfigError
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.hf import from_config
from automodel_cli.models.huggingface.model import DIRECT_HEADS
from automodel_cli.models.layers import document_attention
from automodel_cli.models.layers.document_attention import (
    attend_blocks,
    block_mask,
    dense_mask,
    document_mask,
)
from automodel_cli.models.layers.shared import attend_sdpa
from automodel_cli.models.llama import build_llama_model
from automodel_cli.train.losses import MaskedCrossEntropy

VOCAB, TOKENS = 61, 300
ROWS = [[150, 37, 1, 112], [TOKENS], [5, 290, 5]]  # lengths of the documents in each row
LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
LLAMA |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": TOKENS}
HF_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": TOKENS}
HF_GPT2 |= {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
MODELS = ["gpt2", "llama", "hf gpt2", "hf llama", "hf llama, eager"]


def build(name, **changes):
    if name == "gpt2":
        model = build_gpt2_model(vocab_size=VOCAB, n_positions=TOKENS, n_embd=32, n_layer=2, n_head=2, **changes)
    elif name == "llama":
        model = build_llama_model(vocab_size=VOCAB, **LLAMA, **changes)
    else:
        kind, _, attention = name.removeprefix("hf ").partition(", ")
        sizes = {**(HF_GPT2 if kind == "gpt2" else LLAMA), **changes}
        special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
        config = transformers.AutoConfig.for_model(kind, vocab_size=VOCAB, **special, **sizes)
        model = from_config(config, attn_implementation=attention or None)
    model.materialize("cpu", seed=1)
    with torch.no_grad():  # far from the nearly uniform attention of initial weights: mistakes should be large
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= 5
    return model


@pytest.fixture
def flex(monkeypatch):
    """FlexAttention on a CPU: uncompiled, with gradients."""
    monkeypatch.setattr(document_attention, "_has_flex_attention", lambda device: True)
    monkeypatch.setattr(document_attention, "_compiled_flex_attention", lambda: torch_flex.flex_attention)
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *tensors: None)


@pytest.fixture(params=["dense", "blocks"])
def form(request):
    if request.param == "blocks":
        request.getfixturevalue("flex")
    return request.param


def packed(rows=ROWS, seed=0):
    """Rows of documents; the last token of a document has no label."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCAB, (len(rows), TOKENS), generator=generator)
    labels = torch.randint(0, VOCAB, (len(rows), TOKENS), generator=generator)
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in rows])
    segments = torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in rows])
    labels[segments.diff(dim=1, append=segments[:, -1:] + 1) != 0] = IGNORE_INDEX
    return Batch(ids, labels, position_ids=positions, segment_ids=segments)


def alone(batch, rows=ROWS):
    """Each document as a batch of its own."""
    for row, lengths in enumerate(rows):
        pieces = zip(batch.input_ids[row].split(lengths), batch.labels[row].split(lengths), strict=True)
        for ids, labels in pieces:
            yield Batch(ids[None], labels[None])


def loss_and_gradients(model, batches):
    model.zero_grad()
    total = sum(model(batch, head_loss=MaskedCrossEntropy()) for batch in batches) / (len(ROWS) * TOKENS)
    total.backward()
    return total.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def check_same(found, expected):
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("name", MODELS)
def test_a_row_is_its_documents(name, form):
    model, batch = build(name), packed()
    with torch.no_grad():
        logits = torch.cat([model(one)[0] for one in alone(batch)])
        torch.testing.assert_close(model(batch).flatten(0, 1), logits, atol=1e-5, rtol=1e-5)
        without = model(Batch(batch.input_ids, position_ids=batch.position_ids)).flatten(0, 1)
        assert (without - logits).abs().max() > 0.1  # the mask does make a difference
    expected = loss_and_gradients(model, list(alone(batch)))
    check_same(loss_and_gradients(model, [batch]), expected)


@pytest.mark.parametrize("name", MODELS)
def test_one_document_is_plain_causal(name, form):
    model, batch = build(name), packed([[TOKENS]] * 3)
    plain = loss_and_gradients(model, [Batch(batch.input_ids, batch.labels)])
    check_same(loss_and_gradients(model, [batch]), plain)


@pytest.mark.parametrize("name", MODELS)
def test_padding_behind_the_last_document_changes_nothing(name, form):
    """Collated rows end in padding with segment 0, the id of their first document."""
    model, batch = build(name), packed()
    other = Batch(*(None if tensor is None else tensor.clone() for tensor in vars(batch).values()))
    batch.labels[:, 280:] = IGNORE_INDEX
    other.input_ids[:, 280:] = other.position_ids[:, 280:] = other.segment_ids[:, 280:] = 0
    other.labels[:, 280:] = IGNORE_INDEX
    check_same(loss_and_gradients(model, [other]), loss_and_gradients(model, [batch]))


@pytest.mark.parametrize("family", sorted(DIRECT_HEADS))
def test_every_listed_family_hands_blocks_through(family, flex):
    model, batch = build(f"hf {family}"), packed()
    with torch.no_grad():
        dense = torch.cat([model(one)[0] for one in alone(batch)])
        torch.testing.assert_close(model(batch).flatten(0, 1), dense, atol=1e-5, rtol=1e-5)


def test_positions_alone_keep_nothing_apart():
    """transformers would guess documents from positions that begin anew; ``reset_position_ids`` asks for none."""
    model, batch = build("hf llama"), packed()
    batch.segment_ids = None
    changed = batch.input_ids.clone()
    changed[0, 3] = (changed[0, 3] + 1) % VOCAB
    with torch.no_grad():
        one, other = model(batch), model(Batch(changed, position_ids=batch.position_ids))
    assert (one[0, 200:] - other[0, 200:]).abs().max() > 1e-3


def test_what_cannot_be_combined_is_refused():
    windowed = build("hf mistral", sliding_window=100)
    with pytest.raises(ConfigError, match=r"looks back 100 tokens \(sliding_window\).*rows of 300"):
        windowed(packed())
    windowed.hf.config.sliding_window = TOKENS
    windowed(packed())
    windowed.attn_implementation = "flash_attention_2"
    with pytest.raises(ConfigError, match="cannot be kept apart with attn_implementation 'flash_attention_2'"):
        windowed(packed())


def some_segments():
    generator = torch.Generator().manual_seed(0)
    for tokens in (129, 256, 300, 1000):
        for share in (0.1, 0.003):
            begins = torch.rand(3, tokens, generator=generator) < share
            yield begins.cumsum(1), True
        yield torch.randint(0, 3, (3, tokens), generator=generator), False


def test_blocks_are_those_of_the_dense_mask():
    for segments, in_order in some_segments():
        rows, tokens = segments.shape
        mask, dense = block_mask(segments), dense_mask(segments)
        assert torch.equal(torch_flex.create_mask(mask.mask_mod, rows, None, tokens, tokens, "cpu"), dense)
        expected = torch_flex.create_block_mask(mask.mask_mod, rows, None, tokens, tokens, device="cpu")
        assert mask.shape == expected.shape
        if in_order:
            for ours, theirs in zip(mask.as_tuple(), expected.as_tuple(), strict=True):
                assert not isinstance(theirs, torch.Tensor) or torch.equal(ours, theirs)
        else:  # listed is at least what is seen
            assert (mask.to_dense() >= expected.to_dense()).all()


@pytest.mark.parametrize("window", [1, 100, 128, 129, 257, 2000])
def test_blocks_within_a_window_are_those_of_the_dense_mask(window):
    for segments, _ in some_segments():
        rows, tokens = segments.shape
        mask, dense = block_mask(segments, window), dense_mask(segments, window)
        assert torch.equal(torch_flex.create_mask(mask.mask_mod, rows, None, tokens, tokens, "cpu"), dense)
        places = torch.arange(tokens)
        assert torch.equal(dense, dense_mask(segments) & (places[:, None] - places < window))
        expected = torch_flex.create_block_mask(mask.mask_mod, rows, None, tokens, tokens, device="cpu")
        listed = mask.to_dense()
        assert (listed >= expected.to_dense()).all()
        whole = mask.full_kv_num_blocks
        assert whole.sum() <= expected.full_kv_num_blocks.sum()  # none is taken for full that is not
        if segments.max() == 0:
            assert torch.equal(listed, expected.to_dense()) and torch.equal(whole, expected.full_kv_num_blocks)


def test_blocks_cost_no_square_of_the_row(monkeypatch):
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            nonlocal largest
            made = function(*arguments, **(keywords or {}))
            for tensor in made if isinstance(made, tuple | list) else [made]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return made

    with Watch():
        block_mask(torch.arange(2 * 4096).view(2, 4096) // 500)
    assert largest <= 2 * 4096


@pytest.mark.parametrize(("heads", "groups", "width"), [(4, 4, 16), (4, 2, 32), (2, 1, 8)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_blocks_attend_as_the_dense_mask(heads, groups, width, dtype, tolerance):
    segments = packed().segment_ids
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(3, heads, TOKENS, width, generator=generator)
    keys, values = (torch.randn(3, groups, TOKENS, width, generator=generator).to(dtype) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(document_attention, "_compiled_flex_attention", lambda: torch_flex.flex_attention)
        found = attend_blocks(queries, keys, values, mask=block_mask(segments))
    keys, values = (one.repeat_interleave(heads // groups, dim=1) for one in (keys, values))
    expected = attend_sdpa(queries.to(dtype), keys, values, mask=dense_mask(segments), dropout=0.0)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def test_which_form(monkeypatch):
    segments = packed().segment_ids
    assert isinstance(document_mask(segments), torch.Tensor)  # a CPU
    monkeypatch.setattr(document_attention, "_has_flex_attention", lambda device: True)
    assert isinstance(document_mask(segments), torch_flex.BlockMask)
    assert isinstance(document_mask(segments, dropout=0.1), torch.Tensor)
    assert isinstance(document_mask(segments[:, :128]), torch.Tensor)
    with pytest.raises(ConfigError, match=r"no dropout \(0\.1 is set\)"):
        attend_blocks(*[torch.zeros(3, 1, TOKENS, 16)] * 3, mask=block_mask(segments), dropout=0.1)


@pytest.mark.parametrize("name", ["gpt2", "hf gpt2"])
def test_dropout_in_training_takes_the_dense_mask(name, flex):
    changes = {"dropout": 0.5} if name == "gpt2" else {"attn_pdrop": 0.5}
    model, batch = build(name, **changes), packed()
    torch.manual_seed(0)
    model.train()(batch)
    expected = build(name).eval()(batch)
    torch.testing.assert_close(model.eval()(batch), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "compiled", "how"),
    [
        ("gpt2", "model", "selective"),
        ("gpt2", "blocks", None),
        ("gpt2", "attention", "full"),
        ("llama", "model", None),
        ("hf llama", "model", None),
    ],
)
def test_compiled_once_for_all_boundaries(name, compiled, how, flex, monkeypatch):
    """No breaks and no second graph for other documents, compiled as a whole, by block, or attention alone."""
    torch._dynamo.reset()
    counters.clear()
    only = torch.compile(torch_flex.flex_attention, dynamic=False, backend="aot_eager")
    monkeypatch.setattr(document_attention, "_compiled_flex_attention", lambda: only)
    model, reference = (
        build(name),
        build(name),
    )  # the second one's attention is compiled already, or compiles itself
    if how is not None:
        for block in model.blocks():
            recompute(block, how, random=False)
    for part in {"model": [model], "blocks": model.blocks(), "attention": []}[compiled]:
        part.compile(dynamic=False, backend="aot_eager")
    for seed, lengths in enumerate(([100, 200], [300], [7, 40, 253])):
        rows = [lengths, lengths[::-1], [TOKENS]]
        batch = packed(rows, seed)
        expected = loss_and_gradients(reference, [batch])
        with torch._dynamo.config.patch(error_on_recompile=True):
            found = loss_and_gradients(model, [batch])
        check_same(found, expected)
    assert not counters["graph_break"]
