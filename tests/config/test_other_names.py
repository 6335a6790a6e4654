"""Names of nanoGPT and Megatron-LM: every one is answered, with keys that are there, and as the guides say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from automodel_cli.config.explain import all_keys
from automodel_cli.config.load import load_config
from automodel_cli.config.other_names import MEGATRON, NANOGPT, NEMO, counterpart, suggestion
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.targets.instantiate import check_foreign
from automodel_cli.config.targets.roles import ROLES
from automodel_cli.config.targets.signatures import declared
from automodel_cli.errors import ConfigError

GUIDES = Path(__file__).parents[2] / "docs/guides"
CONFIGS = Path(__file__).parents[2] / "configs"
# nanoGPT's train.py at 3adf61e: every variable that its configurator lets one set.
TRAIN_PY = (
    "out_dir", "eval_interval", "log_interval", "eval_iters", "eval_only", "always_save_checkpoint",
    "init_from", "wandb_log", "wandb_project", "wandb_run_name", "dataset",
    "gradient_accumulation_steps", "batch_size", "block_size", "n_layer", "n_head", "n_embd", "dropout",
    "bias", "learning_rate", "max_iters", "weight_decay", "beta1", "beta2", "grad_clip", "decay_lr",
    "warmup_iters", "lr_decay_iters", "min_lr", "backend", "device", "dtype", "compile",
)  # fmt: skip
ADAMW = ("lr", "betas", "eps", "weight_decay")


def keys_there() -> set[str]:
    """Every key of closed sections, and the arguments of our own targets."""
    found = {*all_keys(PretrainConfig), *(f"optimizer.{name}" for name in ADAMW), "model._target_"}
    for section in ("model", "dataset"):
        for schema in ROLES[section].ours.values():
            found |= {f"{section}.{argument}" for argument in declared(schema).parameters}
    return found | {f"validation_{key}" for key in found if key.startswith("dataset.")}


def keys_in(text: str) -> set[str]:
    """The dotted keys that a text names."""
    return set(re.findall(r"\b[a-z_]+\.[a-z_]\w*\b", text)) - {"metrics.jsonl", "pretrain_gpt.py"}


def rows(page: str, heading: str) -> dict[str, str]:
    """A guide's table: each name of its left column, and the right cell."""
    text = (GUIDES / page).read_text(encoding="utf-8").split(heading)[1].split("\n\n")[0]
    cells = [line.strip("| ").split(" | ") for line in text.splitlines()]
    return {
        name.replace("-", "_"): cell
        for names, cell in cells
        for name in re.findall(r"`(?:--)?([\w-]+)(?: = [^`]*)?`", names)
    }


@pytest.mark.parametrize("name", TRAIN_PY)
def test_every_variable_of_train_py_is_answered(name):
    assert name in PretrainConfig.model_fields or counterpart(name).startswith("nanoGPT's name, here: ")


@pytest.mark.parametrize("table", [NANOGPT, MEGATRON, NEMO])
def test_the_keys_are_there(table: Mapping[str, str]):
    there = keys_there()
    for name, text in table.items():
        assert keys_in(text) - {"automodel_cli.models", "llama.build_llama_model"} <= there, name
        assert "\n" not in text


def test_the_guides_say_the_same():
    shown = rows("from_nanogpt.md", "| `train.py` | YAML |\n|---|---|\n")
    assert set(NANOGPT) <= set(shown)
    for name, text in NANOGPT.items():
        assert keys_in(text) <= keys_in(shown[name].replace(": ", ":")), name
    flags = rows("megatron.md", "| `pretrain_gpt.py` | here |\n|---|---|\n")
    assert {name: cell.replace("`", "") for name, cell in flags.items()} == MEGATRON


def problems_of(*tokens: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_foreign(load_config(PretrainConfig, CONFIGS / "shakespeare_char.yaml", tokens))
    return [line.strip() for line in str(caught.value).splitlines()]


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("learning_rate=1e-3", "learning_rate: nanoGPT's name, here: optimizer.lr"),
        ("--block_size=8", "block_size: nanoGPT's name, here: dataset.seq_len and model.n_positions"),
        ("--micro-batch-size=8", "micro-batch-size: Megatron-LM's name, here: step_scheduler.local_batch_size"),
        ("--step_scheduler.max_iters=8", "step_scheduler.max_iters: nanoGPT's name, here: step_scheduler.max_steps"),
        ("step_scheduler.grad_acc_steps=8", "NeMo's name, here: step_scheduler.global_batch_size"),
        ("optimizer.learning_rate=1", "AdamW takes no such argument; nanoGPT's name, here: optimizer.lr"),
        ("model.block_size=8", "build_gpt2_model takes no such argument; nanoGPT's name, here: dataset.seq_len"),
        ("dataset.seq_length=8", "NanogptDataset takes no such argument, did you mean seq_len?"),
        ("dataset=openwebtext", "dataset: expected a mapping with _target_, found the text 'openwebtext'; nanoGPT's"),
        ("init_from=resume", "init_from: 'resume' is a value of nanoGPT's; leave it out: a run found in checkpoint."),
        ("init_from=scratch", "init_from: 'scratch' is a value of nanoGPT's; leave it out: weights are random"),
        ("step_scheduler.global-batch-size=8", "did you mean step_scheduler.global_batch_size?"),
    ],
)  # fmt: skip
def test_what_is_said(token: str, said: str):
    assert any(said in line for line in problems_of(token)), problems_of(token)


def test_a_folder_called_resume_is_taken(tmp_path, monkeypatch):
    (tmp_path / "resume").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_config(PretrainConfig, CONFIGS / "gpt2_124m.yaml", ["init_from=resume"]).init_from == "resume"


def test_near_names_where_nobody_else_has_them():
    assert suggestion("dept", ["width", "depth"]) == ", did you mean depth?"
    assert suggestion("n_layers", ["n_layer"]) == ", did you mean n_layer?"


@pytest.mark.parametrize(("token", "other"), [("--seed=3", "rng: {seed: 7}"), ("--rng.seed=3", "seed: 7")])
def test_a_seed_on_the_command_line_wins_by_either_name(tmp_path, token: str, other: str):
    text = (CONFIGS / "gpt2_124m.yaml").read_text(encoding="utf-8").replace("rng:\n  seed: 1337", other)
    (tmp_path / "cfg.yaml").write_text(text, encoding="utf-8")
    assert load_config(PretrainConfig, tmp_path / "cfg.yaml", [token]).rng_seed == 3
