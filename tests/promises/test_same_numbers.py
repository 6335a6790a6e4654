"""One process = DDP = FSDP2 = HSDP = tensor parallel = context parallel = accumulation: the same rows at each step, the
same initial weights, and losses and gradient norms within 1e-5 over 20 updates (6 in a push) in fp32.

The other meshes of four ranks that a push needs are in ``test_mesh_features``."""

from operator import sub

import pytest
from tests.conftest import write_tokens
from tests.distributed.ranks import run_ranks
from tests.effort import in_a_push, without_contained
from tests.promises.spread_runs import GPT, GPT2, GPT_ALL, LLAMA, OWN, QWEN2, train

TOLERANCE, STEPS = 1e-5, in_a_push(6, of=20)
APART = {"windows": {"intra_document": True, "bos_token": 7}}  # one token in 61 is a 7
CHUNKED = "automodel_cli.train.losses.ChunkedCrossEntropy"
IN_CHUNKS = {"_target_": CHUNKED, "chunk_tokens": 7, "z_loss_weight": 1e-3}  # with the softcap of GPT's preset
ALONE = {
    "gpt2": {},
    "llama": {"model": LLAMA},
    "qwen2": {"model": QWEN2},
    "own": {"model": OWN},
    "gpt": {"model": GPT, "loss_fn": IN_CHUNKS},
    "gpt windows": {"model": GPT_ALL},
    "apart": APART,
    "qwen2 apart": {"model": QWEN2, **APART},
}
TWO_RANKS = {
    "fsdp2": {},
    "ddp": {"distributed": {"strategy": "ddp"}},
    "tp": {"distributed": {"tp_size": 2, "activation_checkpointing": "selective"}},
    "cp": {"distributed": {"cp_size": 2, "activation_checkpointing": True}},
    "ddp, cp": {"distributed": {"strategy": "ddp", "cp_size": 2}},
    "fsdp2, options": {
        "distributed": {
            "reshard_after_forward": True,
            "enable_fsdp2_prefetch": True,
            "activation_checkpointing": True,
            "offload_policy": {"pin_memory": False},
        }
    },
    "no accumulation": {"step_scheduler": {"local_batch_size": 4}},
    "llama, tp": {"model": LLAMA, "distributed": {"tp_size": 2, "activation_checkpointing": "selective"}},
    "llama, cp": {"model": LLAMA, "distributed": {"cp_size": 2, "activation_checkpointing": True}},
    "qwen2, fsdp2": {"model": QWEN2},
    "qwen2, tp": {"model": QWEN2, "distributed": {"tp_size": 2}},
    "own, fsdp2": {"model": OWN, "distributed": {"activation_checkpointing": True}},
    "own, ddp": {"model": OWN, "distributed": {"strategy": "ddp"}},
    "qwen2, cp": {"model": QWEN2, "distributed": {"cp_size": 2}},
    "gpt, tp": {"model": GPT, "loss_fn": IN_CHUNKS, "distributed": {"tp_size": 2}},
    "gpt, cp": {"model": GPT, "loss_fn": IN_CHUNKS, "distributed": {"cp_size": 2}},
    "gpt windows, fsdp2": {"model": GPT_ALL, "distributed": {"activation_checkpointing": True}},
}
EAGER = {"compile": {"enabled": True, "backend": "eager"}}  # what dynamo makes of hooks and exchanges
ROUGHLY = {
    "bf16, fsdp2": {"precision": "bf16"},
    "bf16, tp": {"precision": "bf16", "distributed": {"tp_size": 2}},
    "fp16, fsdp2": {"precision": "fp16"},
    "fp16, cp": {"precision": "fp16", "distributed": {"cp_size": 2}},
    "bf16, ddp": {"precision": "bf16", "distributed": {"strategy": "ddp"}},
    "compiled, fsdp2": EAGER,
    "compiled, ddp": {**EAGER, "distributed": {"strategy": "ddp"}},
    "compiled, cp": {**EAGER, "distributed": {"cp_size": 2, "activation_checkpointing": True}},
    "compiled, tp": {**EAGER, "distributed": {"tp_size": 2}},
}
APART_ON_TWO_RANKS = {
    "apart, fsdp2": {**APART, "distributed": {"activation_checkpointing": True}},
    "apart, tp": {**APART, "distributed": {"tp_size": 2, "activation_checkpointing": "selective"}},
    "apart, cp": {**APART, "distributed": {"cp_size": 2, "activation_checkpointing": True}},
    "qwen2 apart, tp": {"model": QWEN2, **APART, "distributed": {"tp_size": 2}},
    "apart, compiled cp": {**APART, **EAGER, "distributed": {"cp_size": 2, "activation_checkpointing": True}},
}
DROPOUT = {"model": {**GPT2, "dropout": 0.2}}
WITH_DROPOUT = {
    "dropout, fsdp2": DROPOUT,
    "dropout, tp": {**DROPOUT, "distributed": {"tp_size": 2, "activation_checkpointing": True}},
    "dropout, cp": {**DROPOUT, "distributed": {"cp_size": 2}, "rng": {"ranked": False}},
}
FOUR_RANKS = {
    "hsdp": {"distributed": {"dp_replicate_size": 2}},
    "dp, tp": {"distributed": {"tp_size": 2}},
    "dp, cp": {"distributed": {"cp_size": 2, "activation_checkpointing": True}},
    "hsdp, tp": {"distributed": {"tp_size": 2, "dp_replicate_size": 2, "activation_checkpointing": True}},
    "llama, cp, tp": {"model": LLAMA, "distributed": {"tp_size": 2, "cp_size": 2}},
    "qwen2, dp, tp": {"model": QWEN2, "distributed": {"tp_size": 2}},
    "qwen2, cp, tp": {"model": QWEN2, "distributed": {"tp_size": 2, "cp_size": 2}},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spread")
    write_tokens(folder / "train.bin", tokens=5_000, seed=0, vocab_size=61)
    write_tokens(folder / "val.bin", tokens=100, seed=1, vocab_size=61)
    return str(folder)


@pytest.fixture(scope="module")
def alone(data):
    (numbers,) = run_ranks(1, train, data, ALONE, STEPS)
    return numbers


def check_same(numbers, alone, name):
    model = name.partition(",")[0]
    reference = alone[model if model in alone else "gpt2"]
    assert numbers["rows"] == reference["rows"], name
    assert numbers["initial"] == reference["initial"], name
    assert numbers["tokens"] == reference["tokens"], name
    assert numbers["losses"] == pytest.approx(reference["losses"], abs=TOLERANCE), name
    assert numbers["norms"] == pytest.approx(reference["norms"], rel=TOLERANCE), name
    assert numbers["validation"] == pytest.approx(reference["validation"], abs=TOLERANCE), name


def check_all(results, alone):
    for name in results[0]:
        for rank in results:
            check_same(rank[name], alone, name)


def test_accumulation(data, alone):
    """Eight micro-batches of one row, four of two."""
    (numbers,) = run_ranks(1, train, data, {"gpt2": {"step_scheduler": {"local_batch_size": 1}}}, STEPS)
    check_same(numbers["gpt2"], alone, "gpt2")
    assert alone["gpt2"]["losses"][-1] < alone["gpt2"]["losses"][0] - 0.2  # it learns something


def test_two_ranks(data, alone):
    check_all(
        run_ranks(
            2,
            train,
            data,
            without_contained(
                TWO_RANKS,
                # in "apart, ...", and with other axes in those of four ranks
                ["tp", "cp", "ddp, cp", "llama, tp", "llama, cp", "qwen2, fsdp2", "qwen2, tp", "qwen2, cp"],
            ),
            STEPS,
            timeout_s=400,
        ),
        alone,
    )


def test_documents_apart_on_two_ranks(data, alone):
    check_all(run_ranks(2, train, data, APART_ON_TWO_RANKS, STEPS, timeout_s=400), alone)
    assert max(map(abs, map(sub, alone["apart"]["losses"], alone["gpt2"]["losses"]))) > 1e-3


def test_half_precision_and_compiled_blocks_are_near(data, alone):
    roughly = without_contained(ROUGHLY, ["bf16, ddp", "fp16, fsdp2", "compiled, fsdp2", "compiled, cp"])
    results = run_ranks(2, train, data, {**roughly, **WITH_DROPOUT}, STEPS, timeout_s=400)
    for rank in results:
        for name in roughly:
            assert rank[name]["rows"] == alone["gpt2"]["rows"], name
            assert rank[name]["losses"] == pytest.approx(alone["gpt2"]["losses"], abs=0.02), name
        for name in WITH_DROPOUT:
            assert rank[name]["initial"] == alone["gpt2"]["initial"]
            assert rank[name]["losses"] == pytest.approx(alone["gpt2"]["losses"], abs=0.5), name
            assert rank[name]["losses"] == results[0][name]["losses"]
            assert max(map(abs, map(sub, rank[name]["losses"], alone["gpt2"]["losses"]))) > 1e-3, name


def test_four_ranks(data, alone):
    check_all(
        run_ranks(
            4,
            train,
            data,
            without_contained(FOUR_RANKS, ["hsdp", "dp, tp", "dp, cp", "hsdp, tp", "qwen2, cp, tp"]),
            STEPS,
            timeout_s=500,
        ),
        alone,
    )
