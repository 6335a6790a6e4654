"""What runs a grid is made of, and that a folder's name stands for its settings."""

from __future__ import annotations

import pytest
import yaml

from automodel_cli.assembly.sweeps.plan import plan_run, plan_sweep
from automodel_cli.config.schema.sweep import SweepRunConfig
from automodel_cli.errors import ConfigError

BASE = {
    "model": {"depth": 2, "aspect_ratio": 16, "head_dim": 16, "vocab_size": 64},
    "dataset": {
        "_target_": "automodel_cli.data.nanogpt_dataset.NanogptDataset",
        "file_pattern": "train.bin",
        "seq_len": 32,
    },
    "validation_dataset": {
        "_target_": "automodel_cli.data.nanogpt_dataset.NanogptDataset",
        "file_pattern": "val.bin",
        "seq_len": 32,
    },
    "step_scheduler": {"global_batch_size": 8, "local_batch_size": 8, "max_steps": 10},
}


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump(BASE))
    return path


def sweep(base, **grid):
    return plan_sweep(SweepRunConfig(base=str(base), output_dir=str(base.parent / "sweep"), **grid))


def test_every_combination_is_a_run_cheap_budgets_first(base):
    runs = sweep(base, depths=[2, 3], budgets=[1e9, 2e9], grid={"optimizer.lr": [0.1, 0.2]}, seeds=[1])
    assert len(runs) == 8 and [run.budget for run in runs] == [1e9] * 4 + [2e9] * 4
    assert runs[0].settings == {
        "model.depth": 2, "step_scheduler.target_flops": 1e9, "optimizer.lr": 0.1, "rng.seed": 1,
    }  # fmt: skip
    assert runs[0].id.startswith("d2_f1e+09_s1_lr0.1_") and runs[0].depth == 2 and runs[0].seed == 1
    for run in runs:
        assert 0.8 * run.budget < run.flops <= run.budget
        assert run.params["scaling"] == 12 * run.depth * (16 * run.depth) ** 2 + 64 * 16 * run.depth


def test_a_corner_of_the_grid_can_be_left_out(base):
    whole = sweep(base, depths=[2, 3], budgets=[1e9, 4e9])
    ratios = sorted(run.tokens / run.params["scaling"] for run in whole)
    kept = sweep(base, depths=[2, 3], budgets=[1e9, 4e9], ratios=ratios[1:3])
    assert [run.id for run in kept] == [run.id for run in whole if run.tokens / run.params["scaling"] in ratios[1:3]]


def test_an_id_stands_for_content(base):
    def run_id(fixed=None):
        return plan_run(base, {"model.depth": 2}, base.parent, fixed=fixed).id

    before = run_id()
    base.write_text("# a comment\n" + yaml.safe_dump(BASE, sort_keys=False))
    assert run_id() == before
    assert run_id({"optimizer.lr": 0.1}) != before
    base.write_text(yaml.safe_dump({**BASE, "seed": 3}))
    assert run_id() != before


def test_what_all_runs_have_in_common_is_their_recipe(base):
    one, other = sweep(base, depths=[2, 3])
    assert one.recipe == other.recipe != one.id.rpartition("_")[2]
    assert sweep(base, depths=[4])[0].recipe == one.recipe
    assert sweep(base, depths=[2], set={"optimizer.lr": 0.1})[0].recipe != one.recipe
    base.write_text(yaml.safe_dump({**BASE, "seed": 3}))
    assert sweep(base, depths=[2])[0].recipe != one.recipe


def test_a_grid_is_of_any_keys_and_values(base):
    adamw = {"_target_": "torch.optim.AdamW", "lr": 0.1}
    values = {
        "clip_grad_norm": [None, 1.0],
        "optimizer": [adamw],
        "optimizer.betas": [[0.9, 0.95], [0.8, 0.9]],
        "dataset.file_pattern": ["ü.bin"],
    }
    runs = sweep(base, grid=values, set={"compile.enabled": False})
    assert len({run.id for run in runs}) == 4 and all(len(run.id) < 200 for run in runs)
    assert [run.cfg.clip_grad_norm.max_norm for run in runs] == [None, None, 1.0, 1.0]
    assert [run.cfg.optimizer.arguments["betas"] for run in runs] == 2 * [[0.9, 0.95], [0.8, 0.9]]
    assert {run.cfg.dataset.arguments["file_pattern"] for run in runs} == {"ü.bin"}
    with pytest.raises(ConfigError, match=r"optimizer replaces all of its section, optimizer.lr too"):
        sweep(base, grid={"optimizer.lr": [0.1], "optimizer": [adamw]})


def test_the_command_is_one_that_a_user_could_type(base):
    run = plan_run(base, {"model.depth": 3}, base.parent, fixed={"optimizer.betas": [0.9, 0.99]})
    folder = f'checkpoint.checkpoint_dir="{base.parent / run.id}"'
    changes = ["optimizer.betas=[0.9, 0.99]", "model.depth=3", folder]
    assert run.arguments == ["pretrain", "llm", "-c", str(base), *changes]


@pytest.mark.parametrize(
    ("grid", "text"),
    [
        ({}, "the grid is empty"),
        ({"depths": [2], "grid": {"optimizer.lrr": [1]}}, "lrr"),
        ({"depths": [2, 30], "budgets": [1e9]}, r"1 of 2 runs cannot be:\n  d30_f1e\+09: .*less than one update"),
        ({"depths": [2, 2]}, "twice"),
        ({"depths": [2], "grid": {"model.depth": [3]}}, "model.depth twice: under grid, and as a list of its own"),
        ({"depths": [2], "grid": {"optimizer.lr": []}}, "optimizer.lr has no values"),
        ({"depths": [2], "set": {"model.depth": 3}}, r"model.depth is changed in all runs \(set\), and varied"),
        ({"depths": [2], "set": {"checkpoint.checkpoint_dir": "x"}}, "each run has a folder of its own"),
        ({"grid": {"checkpoint.checkpoint_dir": ["x", "y"]}}, "each run has a folder of its own"),
        ({"depths": [2], "set": {"validation_dataset": None}}, "no validation_dataset"),
        ({"depths": [2], "set": {"checkpoint.enabled": False}}, "checkpoint.enabled"),
        ({"depths": [2], "set": {"checkpoint.push_to_hub": "me/x"}}, "same repository"),
        ({"depths": [2], "set": {"step_scheduler.val_every_steps": None}}, "val_every_steps"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(base, grid, text):
    with pytest.raises(ConfigError, match=text):
        sweep(base, **grid)
