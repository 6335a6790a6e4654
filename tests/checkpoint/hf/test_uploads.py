"""Uploads beside a training: nothing of what went wrong stays, and nobody waits for a thread that is gone."""

from __future__ import annotations

import time

import pytest
from tests.checkpoint.hf import hub_server

from automodel_cli.checkpoint.hf import hashes
from automodel_cli.checkpoint.hf.hub import Destination
from automodel_cli.checkpoint.hf.uploads import Uploads
from automodel_cli.checkpoint.storage.step_files import StepWriter


@pytest.fixture
def hub(monkeypatch):
    with hub_server.instead_of_the_hub(monkeypatch) as server:
        yield server


def finished_step(run, number):
    writer = StepWriter(run / f"step_{number:08d}")
    writer.write_text("hf/config.json", "{}")
    hashes.write_hashes(writer, "hf/")
    return writer.folder


def wait_for(uploads):
    deadline = time.monotonic() + 60
    while uploads.busy:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_step_that_cannot_be_put_aside_leaves_nothing_beside_it(tmp_path, hub):
    said = []
    uploads = Uploads(tmp_path, Destination("me/tiny"), more=lambda step: {}, say=said.append)
    step = finished_step(tmp_path, 1)
    (step / "hf" / "config.json").unlink()
    uploads.add(step)
    assert "step_00000001 was not uploaded to me/tiny: FileNotFoundError" in said[0] and not uploads.busy
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"] and not hub.requests


def test_a_thread_that_died_is_not_waited_for_and_has_a_successor(tmp_path, hub, monkeypatch):
    """Its last words found a closed pipe."""
    monkeypatch.setattr("threading.excepthook", lambda details: None)

    def nobody_reads(line):
        raise BrokenPipeError

    uploads = Uploads(tmp_path, Destination("me/tiny"), more=lambda step: {}, say=nobody_reads)
    for number in (1, 2):
        uploads.add(finished_step(tmp_path, number))
        wait_for(uploads)
    assert hub.repositories["me/tiny"].messages == ["automodel: step_00000001", "automodel: step_00000002"]
