"""Saves in the background: what was true when save() was called is what is stored, published when it is durable."""

from __future__ import annotations

import errno
import os
import threading
import time

import pytest
from tests.checkpoint import many_ranks

from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.checkpointer import Checkpointer
from automodel_cli.checkpoint.storage.step_files import StepWriter
from automodel_cli.distributed.world import World
from automodel_cli.errors import CheckpointError

ONE = World.single()


@pytest.fixture
def trained():
    model = many_ranks.make(ONE)
    optimizer = many_ranks.optimizer_of(model)
    many_ranks.update(model, optimizer)
    return model, optimizer


def arguments_of(model, **changes):
    return {
        "state": {"train": {"step": 2}},
        "loader_state": {"samples_consumed": 8},
        "config_yaml": "seed: 1\n",
        "facts": {"model": model.model_config(), "fast_path": {}},
        **changes,
    }


def contents(path):
    return {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture
def held(monkeypatch):
    """The first shard of a save is not written until the event is set."""
    go, original = threading.Event(), StepWriter.open

    def wait_and_open(self, name):
        assert go.wait(60)
        return original(self, name)

    monkeypatch.setattr(StepWriter, "open", wait_and_open)
    yield go
    go.set()


@pytest.mark.parametrize("save_format", ["safetensors", "torch_save"])
def test_the_same_bytes_as_a_save_that_training_waits_for(tmp_path, trained, save_format):
    model, optimizer = trained
    same = {"model": model, "optimizer": optimizer, "consolidate": True, **arguments_of(model)}
    waited = Checkpointer(tmp_path / "a", save_format=save_format).save(2, **same)
    checkpointer = Checkpointer(tmp_path / "b", save_format=save_format, is_async=True)
    path = checkpointer.save(2, **same)
    checkpointer.wait()
    assert contents(path) == contents(waited) and (path / "hf" / "model.safetensors").is_file()


def test_training_goes_on_and_changes_nothing_in_what_is_being_saved(tmp_path, trained, held):
    model, optimizer = trained
    before = many_ranks.whole_state(model, optimizer)
    before = {name: tensor.clone() for name, tensor in before.items()}
    state = {"train": {"step": 2}}
    lines: list[str] = []
    checkpointer = Checkpointer(tmp_path, is_async=True, say=lines.append)
    path = checkpointer.save(2, model=model, optimizer=optimizer, **arguments_of(model, state=state))
    many_ranks.update(model, optimizer, 3, seed=9)
    state["train"]["step"] = 5
    assert not path.exists() and not (tmp_path / "LATEST").exists()
    held.set()
    checkpointer.wait()
    assert (tmp_path / "LATEST").read_text().startswith(path.name)
    other = many_ranks.make(ONE, seed=4)
    others = many_ranks.optimizer_of(other)
    assert many_ranks.load(path, ONE, other, others).state == {"train": {"step": 2}}
    assert many_ranks.differing(before, many_ranks.whole_state(other, others)) == []
    assert "in the background; training waited" in lines[-1]


def test_one_save_is_under_way_at_most(tmp_path, trained, held):
    model, optimizer = trained
    checkpointer = Checkpointer(tmp_path, is_async=True, keep_last=1)
    first = checkpointer.save(2, model=model, optimizer=optimizer, **arguments_of(model))
    second = threading.Thread(
        target=checkpointer.save,
        args=(3,),
        kwargs=dict(model=model, optimizer=optimizer, proven=True, **arguments_of(model)),
    )
    second.start()
    second.join(0.3)
    assert second.is_alive() and not first.exists(), "the second save waits for the first"
    held.set()
    second.join()
    checkpointer.wait()
    assert layout.list_steps(tmp_path) == [3]
    many_ranks.load(tmp_path / "step_00000003", ONE, many_ranks.make(ONE), None)


def until(is_so, timeout_s: float = 60) -> bool:
    deadline = time.monotonic() + timeout_s
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.01)
    return is_so()


@pytest.mark.parametrize("told_by", ["wait", "save", "failed"])
def test_a_failure_in_the_background_comes_out_once_and_costs_nothing_older(tmp_path, trained, monkeypatch, told_by):
    model, optimizer = trained
    checkpointer = Checkpointer(tmp_path, is_async=True)
    same = {"model": model, "optimizer": optimizer, **arguments_of(model)}
    checkpointer.save(1, **same)
    checkpointer.wait()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        checkpointer.save(2, **same)
        with pytest.raises(CheckpointError, match=r"step_00000002.*model/shard-00001.*No space") as caught:
            {
                "wait": checkpointer.wait,
                "save": lambda: checkpointer.save(3, **same),
                "failed": lambda: until(lambda: checkpointer.failed) and checkpointer.wait(),
            }[told_by]()
    assert "step_00000001 is intact" in caught.value.hint
    assert layout.list_steps(tmp_path) == [1] and not list(tmp_path.glob("*.tmp"))
    checkpointer.save(3, **same)
    checkpointer.wait()
    assert layout.latest(tmp_path).name == "step_00000003"
