"""A dry run refuses what the run refuses: the same exit code, the same first line, and nothing changed on the disk."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import nursery
from tests.conftest import TinyTraining

from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.hf import export as hf_export
from automodel_cli.cli import app
from automodel_cli.models.gpt2 import build_gpt2_model

FEW = ("--step_scheduler.max_steps", "4")


@dataclass(frozen=True)
class Place:
    """Where a mistake is made: the run's folder, a finished run of two kinds, weights of another shape."""

    training: TinyTraining
    trained: Path
    wide: Path

    @property
    def run(self) -> Path:
        return self.training.run

    def take_up(self) -> None:
        """Let the run folder hold the finished run."""
        shutil.copytree(self.trained, self.run)


@dataclass(frozen=True)
class Mistake:
    words: str
    said: str
    arrange: Callable[[Place], Any] = lambda place: None
    sections: tuple[tuple[str, Any], ...] = ()

    def with_sections(self, **sections: Any) -> Mistake:
        return replace(self, sections=tuple(sections.items()))


def _cut(place: Place) -> None:
    place.take_up()
    (shard,) = (place.run / "step_00000004" / "optim").glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-8])


def _damaged_pointer(place: Place) -> None:
    place.take_up()
    (place.run / "LATEST").write_text("step_00000004 xxh3:0000000000000000\n")


def _own_config(place: Place) -> None:
    place.run.mkdir()
    (place.run / "config.yaml").write_text("model: mine\n")


def _run_in_profile(place: Place) -> None:
    place.take_up()
    shutil.copytree(place.trained, place.run / "profile" / "other")


@contextlib.contextmanager
def _busy(place: Place) -> Iterator[None]:
    with layout.run_lock(place.run):
        yield


@contextlib.contextmanager
def _full(place: Place) -> Iterator[None]:
    usage = shutil._ntuple_diskusage(10**9, 10**9, 1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout.shutil, "disk_usage", lambda path: usage)
        yield


def _take_up(place: Place) -> None:
    place.take_up()


SGD = "torch.optim.SGD"
MISTAKES = {
    # values of the optimizer and the schedule
    "negative rate": Mistake("--optimizer.lr -1", "a number from 0 up, found -1"),
    "one beta": Mistake("--optimizer.betas [0.9]", "betas: expected a list of 2 (a number each)"),
    "beta of one": Mistake("--optimizer.betas [0.9,1.0]", "below 1"),
    "misspelt argument": Mistake("--optimizer.lrr 1", "did you mean lr?"),
    "two kernels": Mistake("--optimizer.foreach true --optimizer.fused true", "AdamW refuses its arguments"),
    "nesterov alone": Mistake("", "Nesterov momentum requires").with_sections(
        optimizer={"_target_": SGD, "lr": 0.1, "nesterov": True}
    ),
    "muon of vectors": Mistake("", "Muon").with_sections(optimizer={"_target_": "torch.optim.Muon", "lr": 0.1}),
    "lbfgs of groups": Mistake("", "LBFGS").with_sections(optimizer={"_target_": "torch.optim.LBFGS", "lr": 0.1}),
    "decay inside the warm-up": Mistake("--lr_scheduler.lr_decay_steps 1", "lr_warmup_steps 2 leaves nothing"),
    "wsd longer than the run": Mistake(
        "--lr_scheduler.lr_decay_style WSD --lr_scheduler.wsd_decay_steps 100", "wsd_decay_steps is 100"
    ),
    "pattern of parameters": Mistake("", "param_group_overrides").with_sections(
        param_group_overrides=[{"pattern": "wte("}]
    ),
    # weights to start from
    "init_from nowhere": Mistake("--init_from ./absent", "absent is not a folder here"),
    "init_from an empty folder": Mistake("--init_from {run}", "has no config.json", lambda place: place.run.mkdir()),
    "init_from another shape": Mistake(
        "--init_from {trained} --model.n_embd 16 --init_from_any_function", "is stored as"
    ),
    "init_from another function": Mistake("--init_from {trained} --model.n_head 4", "compute another function"),
    "init_from another folder's shape": Mistake("--init_from {wide} --init_from_any_function", "do not fit the model"),
    "init_from pickles": Mistake(
        "--init_from {wide}", "only pickles",
        lambda place: next(place.wide.glob("*.safetensors")).rename(place.wide / "pytorch_model.bin"),
    ),
    "init_from ids of others": Mistake(
        "--init_from {wide} --tokenizer byte --model.vocab_size 1000", "with a vocabulary of 1,000"
    ),
    # the run folder
    "another model there": Mistake("--model.n_layer 3", "belongs to another run: the model section", _take_up),
    "other data there": Mistake("--dataset.seq_len 16", "seq_len", _take_up),
    "another order there": Mistake("--seed 7", "plan.seed: 42 -> 7", _take_up),
    "another optimizer there": Mistake("", "the optimizer", _take_up).with_sections(
        optimizer={"_target_": SGD, "lr": 0.1}
    ),
    "state that was not kept": Mistake("--optimizer.amsgrad true", "max_exp_avg_sq", _take_up),
    "no such step": Mistake("--checkpoint.restore_from step_00000099", "no complete checkpoint", _take_up),
    "restore from what is moved": Mistake(
        "--fresh --checkpoint.restore_from step_00000004", "--fresh moves", _take_up
    ),
    "damaged pointer": Mistake("", "LATEST is damaged", _damaged_pointer),
    "cut file": Mistake("", "the manifest says", _cut),
    "another process there": Mistake("", "another process is writing to", _busy),
    "a file in the way": Mistake("", "run is a file", lambda place: place.run.write_text("")),
    "a folder below a file": Mistake(
        "--checkpoint.checkpoint_dir {run}/inner", "run is a file", lambda place: place.run.write_text("")
    ),
    "a full disk": Mistake("", "MiB free", _full),
    "somebody's own config.yaml": Mistake("", "was not written by a run", _own_config),
    "a run inside of what would move": Mistake("--fresh", "is a run of its own", _run_in_profile),
    # data
    "no such file": Mistake("--dataset.file_pattern ./absent/*.bin", "absent"),
    "no such validation file": Mistake("--validation_dataset.file_pattern ./absent.bin", "absent"),
    "ids beyond the vocabulary": Mistake("--model.vocab_size 32", "vocab"),
    "rows beyond the context": Mistake("--dataset.seq_len 64", "longer than the model's context"),
    "less than one batch": Mistake(
        "--step_scheduler.global_batch_size 4000 --step_scheduler.num_epochs 1", "less than one global batch"
    ),
    "no such tokenizer": Mistake("--tokenizer ./absent", "absent"),
    "tasks without a tokenizer": Mistake("", "without a tokenizer").with_sections(
        evaluation={"tasks": ["core"], "every_steps": 2}
    ),
    # sizes, processes, devices
    "batch that does not divide": Mistake("--step_scheduler.local_batch_size 3", "is not a multiple"),
    "heads that do not divide": Mistake("--model.n_head 3", "n_head"),
    "mesh without processes": Mistake("--distributed.tp_size 2", "this run has 1 process"),
    "pipeline": Mistake("--distributed.pp_size 2", "no such parallelism"),
    "processes that do not divide the batch": Mistake("--nproc-per-node 3", "is not a multiple"),
    "processes that do not fit the mesh": Mistake("--nproc-per-node 2 --distributed.tp_size 3", "a multiple of 3"),
    "one process asked for": Mistake("--nproc-per-node 2", "trains in one process").with_sections(
        distributed={"strategy": "none"}
    ),
    "machines that meet nowhere": Mistake("--nnodes 2", "nothing says where they meet"),
    "fp8 in fp32": Mistake("--fp8 true --precision fp32", "fp8"),
    "peak of no device": Mistake("--mfu.device abacus", "abacus"),
}  # fmt: skip
if not torch.cuda.is_available():
    MISTAKES["no GPU"] = Mistake("--device cuda", "cuda")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_tokens) -> Path:
    training = TinyTraining(tmp_path_factory.mktemp("trained"), tiny_tokens)
    training.recipe(*FEW, "--checkpoint.save_consolidated", "false").run_train_validation_loop()
    return training.run


@pytest.fixture
def place(tiny_training, trained, monkeypatch) -> Place:
    monkeypatch.chdir(tiny_training.folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    wide = tiny_training.folder / "wide"
    model = build_gpt2_model(vocab_size=64, n_positions=32, n_embd=64, n_layer=2, n_head=2, is_meta_device=True)
    model.materialize("cpu", seed=1)
    hf_export.save_hf(model, wide)
    return Place(tiny_training, trained, wide)


def _arranged(mistake: Mistake, place: Place) -> contextlib.AbstractContextManager[Any]:
    made = mistake.arrange(place)
    return made if isinstance(made, contextlib.AbstractContextManager) else contextlib.nullcontext()


def _words(mistake: Mistake, place: Place) -> list[str]:
    paths: dict[str, Path] = {"run": place.run, "trained": place.trained, "wide": place.wide}
    config = place.training.config(**dict(mistake.sections))
    return ["pretrain", "llm", "-c", str(config), *mistake.words.format(**paths).split()]


def _tree(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_dry_run_says_what_the_run_says(name, place, capsys):
    mistake = MISTAKES[name]
    words = _words(mistake, place)
    with _arranged(mistake, place):
        before = _tree(place.training.folder)
        dry = (app.run([*words, "--dry-run"]), capsys.readouterr().err)
        assert _tree(place.training.folder) == before
        real = (app.run(words), capsys.readouterr().err)
    assert dry[0] in (1, 2), dry[1]
    assert (dry[0], dry[1].splitlines()[:1]) == (real[0], real[1].splitlines()[:1])
    assert mistake.said in dry[1] and "bug in automodel" not in dry[1]
    assert not (place.run / "metrics.jsonl").exists() or (place.run / "LATEST").exists()


def test_a_dry_run_of_what_is_right_ends_with_zero_and_leaves_nothing(place, capsys):
    words = ["pretrain", "llm", "-c", str(place.training.config()), "--dry-run"]
    before = _tree(place.training.folder)
    for more in ((), ("--fresh",), ("--nproc-per-node", "2"), ("--init_from", str(place.trained))):
        assert app.run([*words, *more]) == 0, capsys.readouterr().err
    assert _tree(place.training.folder) == before
    assert "2: fsdp2, dp_shard 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "--nproc-per-node 2 --distributed.tp_size 2 --model.n_head 1",
            "tp_size 2 does not divide the model's 1 attention heads",
        ),
        ("--init_from {wide} --init_from_any_function", "do not fit the model"),
    ],
)
def test_as_commands(words, said, place):
    mistake = Mistake(words, said)
    for more in ([], ["--dry-run"]):
        command = [sys.executable, "-m", "automodel_cli", *_words(mistake, place), *more]
        done = nursery.run(command, capture_output=True, text=True, timeout=200)
        first, error = done.stderr.splitlines()[:2]
        assert first.startswith("pretrain llm: loading PyTorch")
        assert done.returncode in (1, 2) and said in error, done.stderr
