"""Each line of the start-up table beside the object that it describes, and what the checkpoint says of dtypes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tests.promises import packed_runs

from automodel_cli.assembly.reporter import Reporter
from automodel_cli.assembly.world import parallel_config
from automodel_cli.batch import Batch
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.distributed.world import MESH_AXES
from automodel_cli.models.layers.fp8 import Fp8Linear
from automodel_cli.recipes.pretraining.build import show_plan
from automodel_cli.recipes.pretraining.run import RunOptions
from automodel_cli.sizing.shape import flops_per_token
from automodel_cli.text import binary_size, plural
from automodel_cli.train.losses import MaskedCrossEntropy

BF16_MODEL = {
    "_target_": "automodel_cli.models.hf.from_config",
    "torch_dtype": "bfloat16",
    "config": {
        "_target_": "transformers.GPT2Config",
        "vocab_size": 64,
        "n_positions": 32,
        "n_embd": 32,
        "n_layer": 1,
        "n_head": 2,
    },
}


def table(tiny_training, *words, **sections):
    """The run, and its table."""
    recipe = tiny_training.recipe(*words, **sections)
    lines = (line.partition(": ") for line in recipe.said)
    return recipe.run, {name: value for name, _, value in lines if not name.startswith("note")}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_line_says_what_is_there(tiny_training, precision):
    run, rows = table(tiny_training, "--precision", precision, "--compile.enabled", "false")
    model, step = run.model, run.training_length
    padding = (model.padded_vocab_size - 64) * 32
    count = sum(parameter.numel() for parameter in model.parameters()) - padding
    assert rows["model"] == f"gpt2, {count:,} parameters"
    assert rows["vocabulary"] == f"64 (stored as {model.wte.weight.shape[0]:,})"
    assert rows["weights"] == f"random, seed {run.cfg.rng_seed}"
    tokens = len(np.memmap(tiny_training.data / "train.bin", np.uint16, offset=1024))
    assert rows["training data"].startswith(f"{tokens:,} tokens, 1 file, {len(run.dataset):,} sequences of 32")
    micro_batches = next(iter(run.loader))
    sizes = [tuple(batch.input_ids.shape) for batch in micro_batches]
    assert sizes == [(4, 32)] * 2
    assert rows["batch"] == "8 sequences = 256 tokens per update (4 at a time, 2 micro-batches)"
    assert rows["length"].startswith(f"{step.total_steps} updates (max_steps), {step.total_tokens / 1000:.1f}K")
    assert rows["learning rate"] == run.schedule.describe() and "0.01" in rows["learning rate"]
    assert rows["device"] == f"cpu ({plural(torch.get_num_threads(), 'thread')})"
    seen = dtypes_seen(run)
    assert rows["precision"].startswith(f"stored fp32, computed {precision}, reduced fp32 (")
    assert (seen["product"], seen["stored"]) == (run.fast_path.autocast_dtype or torch.float32, torch.float32)
    assert rows["residual"].startswith({torch.float32: "fp32", torch.bfloat16: "bf16"}[seen["residual"]])
    assert rows["compile"].startswith("off (") and model._compiled_call_impl is None
    assert rows["optimizer"].startswith("fused kernel") and run.optimizer.defaults["fused"]
    assert rows["loss"].startswith("plain") and type(run.head_loss) is MaskedCrossEntropy
    flops = flops_per_token(model.shape(), 32)
    assert f"{flops * step.total_tokens:.3g} in all" in rows["FLOPs"]
    assert rows["memory"].startswith(f"about {binary_size(run.peak.total)} at the peak")
    assert rows["run folder"] == str(tiny_training.run)
    run.claim.close()


def dtypes_seen(run):
    """What a forward pass computes in."""
    seen = {"stored": next(run.model.parameters()).dtype}
    block = run.model.blocks()[0]
    linear = next(module for module in block.modules() if isinstance(module, torch.nn.Linear))
    hooks = [
        linear.register_forward_hook(lambda module, given, out: seen.update(product=out.dtype)),
        block.register_forward_hook(lambda module, given, out: seen.update(residual=out.dtype)),
    ]
    dtype = run.fast_path.autocast_dtype
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        run.model(Batch(torch.zeros(1, 8, dtype=torch.int64)))
    for hook in hooks:
        hook.remove()
    return seen


def test_a_bf16_model_is_stored_in_bf16_and_says_so(tiny_training):
    recipe = tiny_training.recipe("--step_scheduler.max_steps", "1", "--compile.enabled=false", model=BF16_MODEL)
    assert {parameter.dtype for parameter in recipe.model.parameters()} == {torch.bfloat16}
    assert any(line.startswith("precision: stored bf16, computed ") for line in recipe.said)
    recipe.run_train_validation_loop()
    manifest = json.loads((tiny_training.run / "step_00000001" / "manifest.json").read_text())
    assert manifest["facts"]["precision"] == {
        "stored": "bfloat16",
        "compute": recipe.fast_path.precision if recipe.fast_path.autocast_dtype else "bf16",
        "reduce": "float32",
    }


@pytest.mark.parametrize(
    ("distributed", "reduced"),
    [
        ({}, "fp32"),
        ({"mp_policy": {"reduce_dtype": "bf16"}}, "bf16"),
        ({"mp_policy": {"reduce_dtype": "bfloat16"}, "strategy": "ddp"}, "fp32"),  # in that of the weights
    ],
)
def test_gradients_are_reduced_in_the_dtype_of_the_policy(tiny_training, distributed, reduced):
    _, rows = planned(tiny_training.config(distributed=distributed), processes=2)
    assert f", reduced {reduced} (" in rows["precision"]


def planned(config, *words, processes=1, trust=()):
    """The plan of a run that is not made, and its table."""
    rows = {}
    reporter = Reporter(table=lambda title, found: rows.update(found))
    cfg = load_config(PretrainConfig, config, list(words), trust=trust)
    return show_plan(cfg, reporter, RunOptions(trust=trust), processes=processes), rows


@pytest.mark.parametrize(
    ("distributed", "line"),
    [
        ({"dp_replicate_size": 2, "tp_size": 2}, "8: fsdp2, dp_replicate 2 x dp_shard 2 x tp 2"),
        ({"strategy": "ddp"}, "8: ddp, dp_replicate 8"),
        (
            {"cp_size": 4, "activation_checkpointing": "selective", "offload_policy": {}},
            "8: fsdp2, dp_shard 2 x cp 4, activations computed again (selective), weights kept in CPU memory",
        ),
    ],
)
def test_processes_are_those_of_the_mesh(tiny_training, distributed, line):
    config = tiny_training.config(distributed=distributed, step_scheduler={"local_batch_size": 1, "max_steps": 1})
    plan, rows = planned(config, processes=8)
    assert rows["processes"] == line
    for axis in MESH_AXES:
        size = plan.world.axis_size(axis)
        assert (f"{axis} {size}" in line) == (size > 1)
    parallel = parallel_config(plan.cfg, plan.model, plan.fast_path)
    assert (parallel.recompute or "") in line and parallel.offload == ("CPU memory" in line)
    assert f"on each of {plan.world.dp_world} ranks" in rows["batch"]
    assert "processes" not in planned(tiny_training.config())[1]


def test_fp8_counts_the_layers_that_run_in_it(tiny_training):
    fp8 = {"enabled": True, "force": True, "emulate": True, "filter_fqns": ["h.0.attn"]}
    plan, rows = planned(tiny_training.config(fp8=fp8), "--precision", "bf16")
    converted = [module for module in plan.model.modules() if isinstance(module, Fp8Linear)]
    assert rows["fp8"] == f"on (tensorwise, emulated, {len(converted)} of 8 linear layers of the blocks)"
    assert len(converted) == 6
    assert "fp8" not in planned(tiny_training.config())[1]


def test_packing_says_how_full_the_packs_are_that_come(tmp_path):
    epochs = {"step_scheduler": {"max_steps": None, "num_epochs": 1}}
    plan, rows = planned(packed_runs.configuration(tmp_path, "Rows", **epochs), trust=packed_runs.TRUST)
    updates = list(plan.loader)
    packs = sum(len(batch.input_ids) for update in updates for batch in update) + plan.loader.dropped_samples
    counted = plan.loader.counted
    assert counted.packs == packs and counted.rows == packed_runs.ROWS
    assert rows["packing"] == counted.in_words(plan.loader.packing)
    assert f"{packed_runs.ROWS} rows" in rows["packing"] and f"{packs} packs" in rows["packing"]
    assert plan.training_length.left_out == plan.loader.dropped_samples
    assert rows["length"].startswith(f"{len(updates)} updates (1 epoch")


def test_what_is_left_out_at_the_end_of_the_epochs_is_said(tiny_training):
    sizes = {"max_steps": None, "num_epochs": 1, "global_batch_size": 11, "local_batch_size": 11}
    plan, rows = planned(tiny_training.config(step_scheduler=sizes))
    left = len(plan.dataset) % 11
    assert left == plan.loader.dropped_samples > 1
    assert rows["length"].startswith(
        f"{len(plan.dataset) // 11} updates (1 epoch, {left} sequences left out at the end)"
    )
