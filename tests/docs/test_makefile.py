"""The Makefile's targets for training: each variable arrives in the run's configuration, or is refused."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pretrain import PretrainConfig

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")


def made(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, timeout=60)


def commands(*words: str) -> list[list[str]]:
    """What stands behind ``automodel`` on each line that would be run."""
    done = made(*words)
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines() if "bin/automodel " in line]
    return [line[1:] for line in lines]


def configuration(words: list[str], monkeypatch) -> PretrainConfig:
    monkeypatch.chdir(ROOT)
    assert words[:3] == ["pretrain", "llm", "-c"]
    overrides = [word for word in words[4:] if "=" in word]
    return load_config(PretrainConfig, Path(words[3]), overrides)


@pytest.mark.parametrize("target", ["train", "ddp-train"])
def test_variables_arrive(target, monkeypatch):
    (words,) = commands(
        target, "NGPUS=8", "DEPTH=6", "TARGET_FLOPS=1e18", "BATCH_SIZE=32", "VAL_EVALS=false", "CORE_EVALS=true"
    )
    assert words[-2:] == ["--nproc-per-node", "8"]
    cfg = configuration(words, monkeypatch)
    assert cfg.model.arguments["num_hidden_layers"] == 6
    assert (cfg.step_scheduler.target_flops, cfg.step_scheduler.tokens_per_param) == (1e18, None)
    assert (cfg.step_scheduler.local_batch_size, cfg.step_scheduler.val_every_steps) == (32, None)
    assert cfg.evaluation is not None
    assert cfg.checkpoint.checkpoint_dir == "checkpoints/depth6_1e18"
    names = ("NGPUS", "MODE", "DEPTH", "TARGET_FLOPS", "BATCH_SIZE", "CHECKPOINT", "VAL_EVALS", "CORE_EVALS")
    (plain,) = commands(target, *(f"{name}=" for name in names))
    assert [plain] == commands(target)
    assert plain == ["pretrain", "llm", "-c", "configs/depth.yaml", "--nproc-per-node", "1"]


def test_modes(monkeypatch):
    (words,) = commands("train", "MODE=mid-training", "CHECKPOINT=checkpoints/depth", "DEPTH=12")
    cfg = configuration(words, monkeypatch)
    assert (cfg.init_from, cfg.checkpoint.checkpoint_dir) == ("checkpoints/depth", "checkpoints/depth_chat12")
    (words,) = commands("train", "MODE=all", "NGPUS=8", "DEPTH=20", "TARGET_FLOPS=1e19")
    assert shlex.join(words) == (
        "run configs/chat_depth.yaml --set depth=20 --set target_flops=1e19 --nproc-per-node 8"
    )


def test_depths_one_after_another_have_folders_of_their_own(monkeypatch):
    """As nanoGPT's README has them; in one folder the second would be refused as another run."""
    runs = [commands("ddp-train", f"DEPTH={depth}", "TARGET_FLOPS=1e18")[0] for depth in (6, 12, 20)]
    assert len({configuration(words, monkeypatch).checkpoint.checkpoint_dir for words in runs}) == 3
    _, chat = commands("train", "MODE=mid-training", "CHECKPOINT=x", "DEPTH=6", "CHATCORE_EVALS=true")
    assert chat[:2] == ["eval", "checkpoints/depth_chat6"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["MODE=sideways"], "MODE=sideways: pretraining, mid-training or all"),
        (["MODE=mid-training"], "needs CHECKPOINT="),
        (["VAL_EVALS=no"], "VAL_EVALS=no: true or false"),
        (["CORE_EVALS=1"], "CORE_EVALS=1: true or false"),
        (["MODE=all", "BATCH_SIZE=8"], "MODE=all takes no BATCH_SIZE"),
        (["MODE=all", "VAL_EVALS=false", "CORE_EVALS=true"], "MODE=all takes no VAL_EVALS CORE_EVALS"),
        (["CHATCORE_EVALS=true"], "CHATCORE_EVALS needs MODE=mid-training or all"),
    ],
)
def test_what_has_no_effect_is_refused(words, says):
    done = made("train", *words)
    assert done.returncode != 0 and says in done.stderr


def test_a_sweep_is_fitted_and_drawn_where_it_wrote(tmp_path):
    law = commands("run-scaling-law", "NGPUS=4")
    assert [words[:2] for words in law] == [["sweep", "run"], ["sweep", "fit"], ["sweep", "plot"]]
    assert [words[2] for words in law[1:]] == ["runs/scaling_law"] * 2
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: b.yaml\noutput_dir: elsewhere/of_mine   # here\ndepths: [2]\n")
    assert commands("run-scaling-law", f"SWEEP={mine}")[1][2] == "elsewhere/of_mine"
    assert "no such file, or no output_dir" in made("run-scaling-law", "SWEEP=nowhere.yaml").stderr


def test_gpu_status_runs_anywhere():
    done = subprocess.run(["make", "gpu-status"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout
