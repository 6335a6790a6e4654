"""What ``automodel branch`` refuses before anything is made, and what it takes for the same branch."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conftest import TinyTraining

from automodel_cli.cli import app

pytestmark = pytest.mark.usefixtures("one_thread")
CONSTANT = {"lr_decay_style": "constant", "lr_warmup_steps": 0}
SCHEDULER = {"max_steps": 4, "ckpt_every_steps": 2, "val_every_steps": None}


@pytest.fixture(scope="module")
def trunk(tmp_path_factory, tiny_tokens) -> TinyTraining:
    tiny = TinyTraining(tmp_path_factory.mktemp("trunk"), tiny_tokens)
    tiny.recipe(lr_scheduler=CONSTANT, step_scheduler=SCHEDULER).run_train_validation_loop()
    return tiny


def branch(trunk: TinyTraining, into: Path, *words: str, at: str = "@2") -> int:
    return app.run(["branch", f"{trunk.run}{at}", "--into", str(into), *words])


def said(capsys) -> str:
    return " ".join("".join(capsys.readouterr()).split())


@pytest.mark.parametrize(
    ("at", "words", "code", "message"),
    [
        ("@2", [], 2, "nothing says what the branch does otherwise"),
        ("@3", ["--cooldown", "0.2"], 1, "no complete checkpoint '3'"),
        ("x", ["--cooldown", "0.2"], 1, "there is no run"),
        ("@2", ["--cooldown", "1.5"], 2, "expected a number between 0 and 1"),
        ("@2", ["--cooldown", "0.5", "--model.n_embd", "64"], 1, "n_embd: 32 -> 64"),
        ("@2", ["--cooldown", "0.5", "--rng.seed", "7"], 1, "seed: 42 -> 7"),
        ("@2", ["--cooldown", "0.5", "--optimizer._target_", "torch.optim.SGD"], 1, "class: AdamW -> SGD"),
        ("@2", ["--cooldown", "0.5", "--modelx.n_embd", "64"], 2, "modelx"),
        ("@2", ["--cooldown", "0.5", "-c", "missing.yaml"], 2, "there is no file missing.yaml"),
        ("@2", ["--cooldown", "0.5", "--nnodes", "2"], 2, "made by one process on one machine"),
    ],
)
def test_refused_and_nothing_is_made(trunk, tmp_path, capsys, at, words, code, message):
    assert branch(trunk, tmp_path / "branch", *words, at=at) == code
    assert message in said(capsys) and not list(tmp_path.iterdir())


def test_a_dry_run_makes_nothing(trunk, tmp_path, capsys):
    assert branch(trunk, tmp_path / "branch", "--cooldown", "0.5", "--dry-run") == 0
    assert "would resume" in said(capsys) and not list(tmp_path.iterdir())


def test_prepared_gone_on_with_and_told_from_others(trunk, tmp_path, capsys):
    into = tmp_path / "branch"
    assert branch(trunk, into, "--cooldown", "0.5", "--prepare", at="@latest") == 0
    assert sorted(path.name for path in into.iterdir() if path.name != ".lock") == [
        "BEST", "LATEST", "branch.json", "config.yaml", "step_00000004",
    ][not (trunk.run / "BEST").exists() :]  # fmt: skip
    capsys.readouterr()
    assert branch(trunk, into, "--cooldown", "0.4", at="") == 1
    assert "was begun with another cooldown: cooldown of 4 updates, exponential" in said(capsys)
    assert branch(trunk, into, "--cooldown", "0.5", at="@2") == 1
    assert "is a branch of" in said(capsys)
    assert branch(trunk, into, "--cooldown", "0.5", at="") == 0  # the newest step: of the branch as it was begun
    assert (into / "step_00000008").is_dir() and "step 8/8" in said(capsys)
    assert branch(trunk, into, "--cooldown", "0.5") == 1


def test_the_folder_of_another_run_is_refused(trunk, tmp_path, capsys):
    assert branch(trunk, trunk.run, "--cooldown", "0.5") == 1
    assert "is not empty, and holds no branch" in said(capsys)


def test_a_trunk_that_went_another_way_is_told(trunk, tmp_path, capsys):
    more = tmp_path / "more.yaml"
    more.write_text("lr_scheduler: {lr_decay_style: cosine, max_lr: 0.02}\nstep_scheduler: {max_steps: 6}\n")
    words = ["-c", str(more), "--prepare"]
    assert branch(trunk, tmp_path / "branch", *words) == branch(trunk, tmp_path / "branch", *words) == 0
    assert "the trunk's learning rate was not that of this schedule" in said(capsys)
    more.unlink()
    assert branch(trunk, tmp_path / "branch", *words) == 1
    assert "was begun with another config" in said(capsys)


def test_a_run_that_is_no_branch_says_nothing_of_lineage(trunk):
    assert '"lineage"' not in (trunk.run / "step_00000004" / "manifest.json").read_text()
