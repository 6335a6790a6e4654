"""Every file in configs/ is valid, and says in YAML what its comments say in words."""

from pathlib import Path

import pytest
import yaml

from automodel_cli.config.load import load_config, to_yaml
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.targets.instantiate import check_foreign, instantiate
from automodel_cli.config.targets.target import Target
from automodel_cli.models.interface import count_parameters

ALL = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
RUNS = {"model", "dataset"}
CONFIGS = [path for path in ALL if yaml.safe_load(path.read_text(encoding="utf-8")).keys() >= RUNS]


def load(name: str) -> PretrainConfig:
    path = next(path for path in CONFIGS if path.stem == name)
    return load_config(PretrainConfig, path)


def test_the_configurations_we_promise_are_there():
    assert {path.stem for path in CONFIGS} >= {
        "nanogpt_pretrain",
        "megatron_pretrain_gpt2",
        "shakespeare_char",
        "quickstart",
        "gpt2_124m",
        "finetune_gpt2",
        "llama_1b",
        "midtrain_task_mixture",
        "midtrain_tiny",
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_is_valid(path, tmp_path):
    cfg = load_config(PretrainConfig, path)
    check_foreign(cfg)
    assert cfg.notes == []
    again = tmp_path / "effective.yaml"
    again.write_text(to_yaml(cfg), encoding="utf-8")
    cfg.derived.clear()  # what followed from a depth is written out
    assert load_config(PretrainConfig, again) == cfg


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_its_lines_carry_comments_with_reasons(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert text.count("#") >= 10
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_batches_and_windows_fit(path):
    cfg = yaml.safe_load(path.read_text(encoding="utf-8"))
    sizes = load_config(PretrainConfig, path).step_scheduler
    assert sizes.local_batch_size == "auto" or sizes.global_batch_size % sizes.local_rows == 0
    context = cfg["model"].get("n_positions", cfg["model"].get("max_position_embeddings", 1024))
    for section in ("dataset", "validation_dataset"):
        if section in cfg:
            length = next(cfg[section][key] for key in ("seq_len", "seq_length", "max_tokens") if key in cfg[section])
            assert length <= context


def test_gpt2_124m_has_the_numbers_of_the_reproduction():
    cfg = load("gpt2_124m")
    batch = cfg.step_scheduler.global_batch_size * cfg.dataset.arguments["seq_len"]
    assert batch == 524_288
    assert cfg.optimizer.arguments == {"lr": 6e-4, "betas": [0.9, 0.95], "weight_decay": 0.1}
    assert (cfg.lr_scheduler.lr_warmup_steps, cfg.lr_scheduler.min_lr) == (715, 6e-5)
    assert cfg.max_norm == 1.0


def test_finetune_gpt2_has_the_numbers_of_the_guide():
    cfg = load("finetune_gpt2")
    assert cfg.init_from == "gpt2"
    assert (cfg.optimizer.arguments["lr"], cfg.step_scheduler.max_steps) == (3e-5, 2000)
    assert cfg.lr_scheduler.lr_warmup_steps == 100
    assert cfg.model.arguments["dropout"] == 0.2


def test_shakespeare_char_follows_nanogpt_update_by_update():
    """nanoGPT: lr * (it + 1) / (warmup + 1) while warming up; ours is a line from init_lr to lr over the warm-up."""
    cfg = load("shakespeare_char")
    schedule, lr = cfg.lr_scheduler, cfg.optimizer.arguments["lr"]
    for it in range(schedule.lr_warmup_steps):
        ours = schedule.init_lr + (lr - schedule.init_lr) * it / schedule.lr_warmup_steps
        assert ours == pytest.approx(lr * (it + 1) / (schedule.lr_warmup_steps + 1), rel=1e-12)
    assert (schedule.lr_decay_steps, schedule.min_lr) == (5000, lr / 10)


def test_the_quickstart_model_is_small():
    cfg = load("quickstart")
    assert cfg.model.arguments["vocab_size"] == 4096
    model = instantiate(cfg.model, "model")
    assert 1e6 < sum(parameter.numel() for parameter in model.parameters()) < 5e6


def test_gpt2_of_the_configurations_has_124_million_parameters():
    """124,439,808 as in OpenAI's release; stored rows pad the vocabulary from 50,257 to 50,304."""
    arguments = {**load("gpt2_124m").model.arguments, "is_meta_device": True}
    model = instantiate(Target(load("gpt2_124m").model.name, arguments), "model")
    padding = (model.padded_vocab_size - model.vocab_size) * 768
    assert sum(parameter.numel() for parameter in model.parameters()) - padding == 124_439_808


def test_llama_1b_has_the_parameters_and_the_batch_it_says():
    cfg = load("llama_1b")
    arguments = {**cfg.model.arguments, "is_meta_device": True}
    model = instantiate(Target(cfg.model.name, arguments), "model")
    counts = count_parameters(model)
    assert (sum(counts.values()), counts["head"]) == (1_178_998_784, 102_926_336)
    assert cfg.step_scheduler.global_batch_size * cfg.dataset.arguments["seq_len"] == 524_288
    stored = 4 * sum(parameter.numel() for parameter in model.parameters()) / 2**30  # GiB of fp32
    assert (round(4 * stored), round(3 * stored)) == (18, 13)
