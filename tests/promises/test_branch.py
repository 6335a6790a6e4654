"""A branch is the run that had been configured so from the beginning, bit for bit; the trunk stays as it is."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from tests import nursery
from tests.conftest import KILL_AT, TinyTraining
from tests.token_files import write_megatron_file

from automodel_cli.checkpoint import lineage
from automodel_cli.cli import app

pytestmark = pytest.mark.usefixtures("one_thread")

WSD = {"lr_decay_style": "WSD", "wsd_decay_steps": 2, "lr_wsd_decay_style": "minus_sqrt"}
EVERY = {"ckpt_every_steps": 4, "val_every_steps": 4, "max_steps": 12}


def automodel(*words: object, kill: tuple[str, int] | None = None) -> int:
    """A command in a child of the nursery, with one thread as the trunk."""
    front = ["-m", "automodel_cli"] if kill is None else [str(KILL_AT), kill[0], str(kill[1])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    done = nursery.run(
        [sys.executable, *front, *map(str, words)], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def trained(tiny: TinyTraining, **sections: object) -> TinyTraining:
    tiny.recipe(**{"lr_scheduler": WSD, "step_scheduler": EVERY, **sections}).run_train_validation_loop()
    return tiny


@pytest.fixture(scope="module")
def trunk(tmp_path_factory, tiny_tokens) -> TinyTraining:
    """A WSD run of 12 updates with dropout, that decays from update 10 on."""
    return trained(TinyTraining(tmp_path_factory.mktemp("trunk"), tiny_tokens))


def from_zero(branch: TinyTraining, folder: Path, *more: str) -> TinyTraining:
    """The run that the branch's configuration is, from its first update on."""
    zero = TinyTraining(folder, branch.data)
    config = branch.run / "config.yaml"
    assert app.run(["pretrain", "llm", "-c", str(config), f"checkpoint.checkpoint_dir={zero.run}", *more]) == 0
    return zero


def step_files(tiny: TinyTraining, step: int) -> dict[str, bytes]:
    """All that a checkpoint says of weights, optimizer, counters and data."""
    folder = tiny.run / f"step_{step:08d}"
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.*"))}
    kept = ("model/", "optim/", "state.json", "loader.json")
    return {name: content for name, content in found.items() if name.startswith(kept)}


def assert_same_from(branch: TinyTraining, zero: TinyTraining, fork: int, last: int) -> None:
    later = {step: loss for step, loss in zero.losses().items() if step > fork}
    assert branch.losses() == later and max(later) == last
    validation = [
        [(one["step"], one["loss"]) for one in run.records("val") if one["step"] > fork] for run in (zero, branch)
    ]
    assert validation[0] == validation[1] != []
    assert step_files(branch, last) == step_files(zero, last)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_cooldown_is_the_shorter_run_and_the_trunk_stays(trunk, tmp_path):
    before = contents(trunk.run)
    branch = TinyTraining(tmp_path / "branch", trunk.data)
    words = ["branch", f"{trunk.run}@8", "--into", str(branch.run), "--cooldown", "0.4", "--shape", "linear"]
    assert app.run(words) == 0
    zero = from_zero(branch, tmp_path / "zero")
    assert_same_from(branch, zero, 8, 14)  # 0.4 = 6 / 14
    assert branch.records()[-1]["lr"] < trunk.records()[7]["lr"] / 4  # it did cool down
    assert contents(trunk.run) == before


def test_a_branch_of_a_branch_and_a_longer_schedule(trunk, tmp_path):
    first, second = (TinyTraining(tmp_path / name, trunk.data) for name in ("first", "second"))
    assert app.run(["branch", f"{trunk.run}@4", "--into", str(first.run), "--step_scheduler.max_steps", "18"]) == 0
    assert app.run(["branch", f"{first.run}@12", "--into", str(second.run), "--cooldown-steps", "3"]) == 0
    zero = from_zero(second, tmp_path / "zero")
    assert_same_from(second, zero, 12, 15)
    found = lineage.read(second.run)
    assert [(fork.run, fork.step) for fork in (found.parent, *found.ancestors)] == [("run", 12), ("run", 4)]
    assert (second.run / found.ancestors[0].path).resolve() == trunk.run.resolve()


def mixture(tiny: TinyTraining, stages: list[dict]) -> dict:
    sources = {name: {"file_pattern": str(tiny.data / f"{name}.bin"), "weight": 1} for name in ("train", "val")}
    return {"_target_": "Mixture", "seq_len": 32, "sources": sources, "stages": stages}


def test_stages_of_a_mixture_stay_where_they_were(tiny_training, tmp_path):
    """Shares of the trunk's length are no shares of the branch's: the past would be another one."""
    stages = [
        {"until": 0.5},
        {"until": 0.75, "weights": {"train": 1}, "ramp": True},
        {"until": 1.0, "weights": {"val": 1}},
    ]
    trained(tiny_training, dataset=mixture(tiny_training, stages))
    branch = TinyTraining(tmp_path / "branch", tiny_training.data)
    assert app.run(["branch", f"{tiny_training.run}@8", "--into", str(branch.run), "--cooldown-steps", "7"]) == 0
    assert_same_from(branch, from_zero(branch, tmp_path / "zero"), 8, 15)
    assert branch.losses()[9] == tiny_training.losses()[9]  # before either decays


def test_another_mixture_is_a_run_with_a_stage_there(tiny_training, tmp_path, capsys):
    trained(tiny_training, dataset=mixture(tiny_training, [{}]))
    branch = TinyTraining(tmp_path / "branch", tiny_training.data)
    more = tmp_path / "more.yaml"
    more.write_text("dataset: {sources: {train: {weight: 1}, val: {weight: 7}}}\n")
    words = ["branch", f"{tiny_training.run}@8", "--into", str(branch.run), "--cooldown", "0.2", "-c", str(more)]
    assert app.run(words) == 0
    assert "goes on" in capsys.readouterr().out  # the table of what changes
    zero = TinyTraining(tmp_path / "zero", tiny_training.data)
    staged = mixture(zero, [{"until_step": 8}, {"weights": {"train": 1, "val": 7}}])
    lr_scheduler = {**WSD, "lr_warmup_steps": 1, "lr_decay_steps": 10}
    zero.folder.mkdir()
    trained(zero, dataset=staged, lr_scheduler=lr_scheduler, step_scheduler={**EVERY, "max_steps": 10})
    assert branch.losses() == {step: loss for step, loss in zero.losses().items() if step > 8}
    assert branch.weights(10) == zero.weights(10)


def test_killed_anywhere_and_repeated(trunk, tmp_path):
    """While the folder is made, before the first save, and after one: the same command goes on."""
    branch = TinyTraining(tmp_path / "branch", trunk.data)
    words = ["branch", f"{trunk.run}@8", "--into", branch.run, "--cooldown", "0.4"]
    for kill in (("fsync", 3), ("rename", 4), ("step", 3), ("step", 5)):
        assert automodel(*words, kill=kill) == -signal.SIGKILL, kill
        assert kill[0] == "step" or not branch.run.exists()
    assert automodel(*words) == 0
    assert_same_from(branch, from_zero(branch, tmp_path / "zero"), 8, 14)
    assert sorted(path.name for path in branch.folder.iterdir()) == ["run"]  # nothing is left of the killed attempts


def test_two_ranks(tiny_training, tmp_path):
    two = ["--nproc-per-node", "2"]
    config = tiny_training.config(lr_scheduler=WSD, step_scheduler=EVERY)
    assert automodel("pretrain", "llm", "-c", config, *two) == 0
    branch, zero = (TinyTraining(tmp_path / name, tiny_training.data) for name in ("branch", "zero"))
    assert automodel("branch", f"{tiny_training.run}@8", "--into", branch.run, "--cooldown", "0.2", *two) == 0
    into = f"checkpoint.checkpoint_dir={zero.run}"
    assert automodel("pretrain", "llm", "-c", branch.run / "config.yaml", into, *two) == 0
    assert_same_from(branch, zero, 8, 10)


def test_megatron_samples_are_those_of_the_trunks_length(tiny_training, tmp_path, capsys):
    """Their order depends on how many there are; a longer branch has none."""
    random = np.random.default_rng(0)
    documents = [[np.append(np.cumsum(random.integers(0, 3, length)) % 63, 63)] for length in range(20, 120)]
    write_megatron_file(tmp_path / "text_document", documents, dtype="uint16")
    dataset = {"_target_": "MegatronPretraining", "paths": str(tmp_path / "text_document"), "seq_length": 32}
    dataset |= {"splits_to_build": "train", "split": "1, 0, 0", "index_mapping_dir": str(tmp_path / "index")}
    trained(tiny_training, dataset=dataset)
    branch = TinyTraining(tmp_path / "branch", tiny_training.data)
    words = ["branch", f"{tiny_training.run}@8", "--into", str(branch.run), "--cooldown-steps"]
    assert app.run([*words, "5"]) == 2
    assert "were drawn for 12 updates, and the branch has 13" in capsys.readouterr().err
    assert app.run([*words, "3"]) == 0
    assert_same_from(branch, from_zero(branch, tmp_path / "zero"), 8, 11)


def test_sizes_that_change_at_shares_of_the_trunk_stay_where_they_changed(tiny_tokens, tmp_path):
    """Of the trunk's length, not the branch's; and so does a stage of the mixture that ends at a share."""
    sources = {name: {"file_pattern": str(tiny_tokens / f"{name}.bin"), "weight": 1} for name in ("train", "val")}
    stages = [{"until": 0.3}, {"weights": {"train": 3, "val": 1}}]
    changing = {
        **EVERY,
        "global_batch_size": [{"until": 0.2, "size": 4}, {"size": 8}],
        "seq_len_schedule": [{"until": 0.25, "seq_len": 8}],
    }
    mixture = {"_target_": "Mixture", "seq_len": 32, "sources": sources, "stages": stages}
    (tmp_path / "trunk").mkdir()
    trunk = trained(TinyTraining(tmp_path / "trunk", tiny_tokens), dataset=mixture, step_scheduler=changing)
    branch = TinyTraining(tmp_path / "branch", tiny_tokens)
    automodel("branch", f"{trunk.run}@8", "--into", branch.run, "--cooldown", "0.2")
    (tmp_path / "zero").mkdir()
    zero = from_zero(branch, tmp_path / "zero")
    assert_same_from(branch, zero, 8, 10)
    assert {key: record for key, record in trunk.losses().items() if key <= 8}.items() <= zero.losses().items()
