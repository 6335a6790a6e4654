"""Predicted memory of a step against what PyTorch keeps and allocates."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch
import transformers

from automodel_cli.batch import Batch
from automodel_cli.distributed.recompute import recompute
from automodel_cli.evaluation.likelihood import evaluate
from automodel_cli.models.families import shape_of
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.hf import from_config
from automodel_cli.models.llama import build_llama_model
from automodel_cli.sizing.memory import StepPlan, _Step, muon_bytes_of, peak_memory
from automodel_cli.sizing.shape import Shape
from automodel_cli.train.losses import ChunkedCrossEntropy, MaskedCrossEntropy
from automodel_cli.train.muon.rules import muon_adamw
from automodel_cli.train.optimizers import build_adamw, build_optimizer
from automodel_cli.train.step import train_step

ROWS, TOKENS, VOCAB, CHUNK = 4, 64, 512, 64


def gpt2(**changes):
    sizes = {"vocab_size": VOCAB, "n_positions": TOKENS, "n_embd": 64, "n_layer": 3, "n_head": 4}
    return build_gpt2_model(**{**sizes, **changes})


def llama(tied=False):
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=TOKENS,
        tie_word_embeddings=tied,
    )
    return from_config(config)


def own_llama():
    return build_llama_model(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=TOKENS,
        attn_implementation="sdpa",
    )


MODELS = {
    "gpt2": (gpt2, "auto"),
    "gpt2 eager attention": (lambda: gpt2(attn_implementation="eager"), "eager"),
    "gpt2 matmul attention": (lambda: gpt2(attn_implementation="matmul"), "matmul"),
    "llama": (llama, "linear"),
    "our llama": (own_llama, "linear"),
}


def plan(attention="linear", *, dtype=None, **changes):
    if attention == "auto":
        attention = "linear" if dtype is None else "matmul"
    keys = {
        "seq_len": TOKENS,
        "local_batch_size": ROWS,
        "precision": "fp32" if dtype is None else "bf16",
        "chunk_tokens": CHUNK,
        "attention": attention,
        "device": "cpu",
    }
    return StepPlan(**{**keys, **changes})


def batch():
    ids = torch.randint(0, VOCAB, (ROWS, TOKENS + 1), generator=torch.Generator().manual_seed(0))
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())


def ready(model, how):
    model.init_weights(0)
    for block in model.blocks() if how else []:
        recompute(block, how, random=False)
    return model


def kept_bytes(model, dtype):
    """Distinct storages that autograd keeps of a forward pass, weights left out; and of them those of the loss."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept, alive = {}, []

    def keep(tensor):
        alive.append(tensor)  # a freed address would be given out again
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=dtype, enabled=dtype is not None),
    ):
        model(batch(), head_loss=MaskedCrossEntropy())
    return sum(size for address, size in kept.items() if address not in weights)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("how", [None, "full"])
@pytest.mark.parametrize("name", MODELS)
def test_what_autograd_keeps_is_foreseen(name, how, dtype):
    build, attention = MODELS[name]
    model = ready(build(), how)
    step = _Step(shape_of(model.model_config()), plan(attention, dtype=dtype, recompute=how))
    log_probabilities = 4 * ROWS * TOKENS * VOCAB
    foreseen = step.kept_by_blocks() + step.casts_kept() + step.kept_outside_blocks()
    foreseen += step.head_kept() + log_probabilities
    assert foreseen == pytest.approx(kept_bytes(model, dtype), rel=0.02)


def allocated_peak(model, *, dtype, loss, accumulation, folder):
    """Bytes at the highest of a later update: three states of the weights, and what the allocator is asked for."""
    optimizer = build_adamw(model.parameters())
    batches = [batch()] * accumulation
    train_step(model, loss, optimizer, batches, autocast_dtype=dtype)
    optimizer.zero_grad(set_to_none=True)
    highest = allocated(lambda: train_step(model, loss, optimizer, batches, autocast_dtype=dtype), folder)
    return highest + 3 * 4 * sum(parameter.numel() for parameter in model.parameters())


def allocated(work, folder):
    """The most bytes at once that ``work`` asks the allocator for."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        work()
    profile.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    return max(itertools.accumulate((change for _, change in changes), initial=0))


@pytest.mark.parametrize("head_loss", ["plain", "chunked"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("name", ["gpt2", "our llama"])
def test_the_peak_of_a_validation_is_within_a_tenth(name, dtype, head_loss, tmp_path):
    build, attention = MODELS[name]
    model = ready(build(), None)
    loss = ChunkedCrossEntropy(CHUNK) if head_loss == "chunked" else MaskedCrossEntropy()
    found = allocated(lambda: evaluate(model, [batch()] * 2, head_loss=loss, autocast_dtype=dtype), tmp_path)
    settings = plan(attention, dtype=dtype, head_loss=head_loss, validates=True)
    moments = {peak.moment: peak for peak in _Step(shape_of(model.model_config()), settings).moments()}
    peak = moments["validation"]
    assert peak.activations + peak.head + peak.workspace == pytest.approx(found, rel=0.1)


def test_slopes_of_capped_chunks_are_counted(tmp_path):
    hidden, weight = torch.randn(ROWS, TOKENS, 64).requires_grad_(), torch.randn(VOCAB, 64).requires_grad_()
    labels, loss = batch().labels, ChunkedCrossEntropy(CHUNK)

    def peak(softcap):
        return allocated(lambda: loss(hidden, weight, labels, vocab_size=VOCAB, softcap=softcap), tmp_path)

    shape = shape_of(own_llama().model_config())
    foreseen = [_Step(shape, plan(head_loss="chunked", softcap=capped)).loss_forward() for capped in (True, False)]
    assert peak(15.0) - peak(0.0) == foreseen[0] - foreseen[1] == 4 * CHUNK * VOCAB


def test_validation_and_tasks_are_the_peak_where_they_need_more():
    tiny = {"seq_len": 8, "local_batch_size": 1, "device": "cpu"}
    assert total(**tiny) < total(**tiny, validates=True)
    assert total(**tiny, validates=True) < total(**tiny, validates=True, task_tokens=8192, task_row=512)


def test_a_copy_that_is_written_in_the_background_counts():
    weights = 4 * GPT2_SMALL.stored_params
    assert total(device="cpu", staged=True) - total(device="cpu") == 3 * weights
    assert total(staged=True) == total()  # of a GPU's memory it takes none


CASES = [
    ("gpt2", None, None, "plain", 1),
    ("gpt2", torch.bfloat16, "selective", "chunked", 1),
    ("gpt2", torch.bfloat16, None, "chunked", 2),
    ("gpt2", None, "full", "chunked", 1),
    ("llama", torch.bfloat16, None, "plain", 1),
    ("llama", None, "selective", "chunked", 2),
    ("llama", torch.bfloat16, "full", "chunked", 1),
]


@pytest.mark.parametrize(("name", "dtype", "how", "head_loss", "accumulation"), CASES)
def test_the_peak_is_within_a_tenth_of_what_is_allocated(name, dtype, how, head_loss, accumulation, tmp_path):
    build, attention = MODELS[name]
    model = ready(build(), how)
    loss = ChunkedCrossEntropy(CHUNK) if head_loss == "chunked" else MaskedCrossEntropy()
    found = allocated_peak(model, dtype=dtype, loss=loss, accumulation=accumulation, folder=tmp_path)
    settings = plan(attention, dtype=dtype, recompute=how, head_loss=head_loss, accumulates=accumulation > 1)
    peak = peak_memory(shape_of(model.model_config()), settings)
    assert peak.total - peak.process == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize("tied", [False, True])
def test_parts_of_a_transformers_model(tied):
    model = llama(tied)
    shape = shape_of(model.model_config())
    assert shape.head_params == (0 if tied else VOCAB * 64)
    assert shape.table_params == VOCAB * 64
    assert shape.stored_params == shape.table_params + shape.head_params + shape.block_params + 64
    assert (shape.hidden, shape.heads, shape.key_width, shape.mlp_width) == (64, 4, 32, 160)
    assert shape.llama_like


def test_parts_of_gpt2():
    model = gpt2()
    shape = shape_of(model.model_config())
    blocks = sum(parameter.numel() for block in model.blocks() for parameter in block.parameters())
    assert shape.block_params == blocks


def test_a_shape_of_an_older_checkpoint_is_read_and_says_nothing():
    old = {"stored_params": 9, "matmul_params": 9, "layers": 1, "width": 8, "padded_vocab_size": 8}
    shape = shape_of({"family": "hf", "shape": old})
    assert shape == Shape(**old)
    assert peak_memory(shape, plan()) is None


GPT2_SMALL = shape_of(build_gpt2_model(is_meta_device=True).model_config())
ON_GPU = StepPlan(seq_len=1024, local_batch_size=16, head_loss="chunked", chunk_tokens=4096)


def total(**changes):
    return peak_memory(GPT2_SMALL, dataclasses.replace(ON_GPU, **changes)).total


def test_recomputation_and_smaller_batches_take_less():
    assert total(recompute="full") < total(recompute="selective") < total()
    assert total(local_batch_size=8) < total()
    assert total(head_loss="plain", compiled=True) < total(head_loss="plain")


def test_without_activations_the_optimizer_or_the_embedding_is_the_peak():
    small = peak_memory(GPT2_SMALL, dataclasses.replace(ON_GPU, local_batch_size=1, seq_len=8))
    assert small.moment in ("embedding", "optimizer")
    assert small.weights == 4 * GPT2_SMALL.stored_params
    assert small.moments == 2 * small.weights
    assert peak_memory(GPT2_SMALL, dataclasses.replace(ON_GPU, moments=0)).moments == 0


def test_ranks_divide_states_and_rows():
    one = peak_memory(GPT2_SMALL, ON_GPU)
    eight = peak_memory(GPT2_SMALL, dataclasses.replace(ON_GPU, strategy="fsdp2", shards=8))
    assert eight.moments == pytest.approx(one.moments / 8, rel=1e-6)
    copies = peak_memory(GPT2_SMALL, dataclasses.replace(ON_GPU, strategy="ddp"))
    assert copies.total == one.total + 4 * GPT2_SMALL.stored_params  # the buckets
    assert total(strategy="ddp", bucket_view=True) == one.total
    half = peak_memory(GPT2_SMALL, dataclasses.replace(ON_GPU, strategy="fsdp2", shards=2, cp=2))
    assert half.activations < 0.6 * one.activations
    assert total(strategy="fsdp2", tp=2) < total(strategy="fsdp2")
    assert total(strategy="fsdp2", shards=8, offload=True) < total(strategy="fsdp2", shards=8)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_muon_keeps_one_number_of_a_matrix_and_works_on_stacks(dtype, tmp_path):
    model = ready(gpt2(n_embd=128), None)
    optimizer = build_optimizer(model, muon_adamw(orthogonalization_dtype=dtype, normuon_beta2=0.95)(model))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    kept = sum(4 * value.numel() for state in optimizer.state.values() for value in state.values())
    settings = plan(muon_bytes=muon_bytes_of(dtype))
    step = _Step(shape_of(model.model_config()), settings)
    assert step.kept_by_optimizer() == pytest.approx(kept, rel=0.02)  # and NorMuon's averages
    assert step.update_of_muon() == pytest.approx(allocated(optimizer.step, tmp_path), rel=0.15)


def test_muon_divides_what_it_keeps_under_ddp_too():
    muon = dataclasses.replace(ON_GPU, muon_bytes=2)
    one = peak_memory(GPT2_SMALL, muon)
    copies = peak_memory(GPT2_SMALL, dataclasses.replace(muon, strategy="ddp", ranks=4))
    assert copies.moments == pytest.approx(one.moments / 4, rel=1e-6)
    assert one.moments == 4 * (2 * GPT2_SMALL.stored_params - GPT2_SMALL.block_params)
    assert total(muon_bytes=2) < total()
    small = {"local_batch_size": 1, "seq_len": 8}
    assert total(muon_bytes=2, **small) > total(muon_bytes=0, moments=1, **small)


def test_gradients_stay_whole_between_micro_batches_of_fsdp():
    spread = dataclasses.replace(ON_GPU, strategy="fsdp2", shards=8, accumulates=True)
    assert peak_memory(GPT2_SMALL, spread).gradients == pytest.approx(4 * GPT2_SMALL.stored_params, rel=1e-6)
