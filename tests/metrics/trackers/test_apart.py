"""A tracker in a process of its own: it fails, hangs or is killed, and training goes on."""

from __future__ import annotations

import importlib.util
import os
import signal
import time

import pytest

from automodel_cli.metrics.trackers.apart import Apart
from automodel_cli.metrics.trackers.background import Background, Trackers

pytestmark = pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")


def arguments(folder) -> dict:
    return {"settings": {}, "run_folder": str(folder), "config": {"a": 1}, "step": 0, "every_steps": 1}


def test_what_keeps_a_tool_from_starting_is_said(tmp_path):
    (tmp_path / "tensorboard").write_text("in the way of the folder")
    said: list[str] = []
    trackers = Trackers(
        [Background("TensorBoard", lambda: Apart("tensorboard", "TensorBoard", arguments(tmp_path)), said.append)]
    )
    trackers.log("train", {"step": 1})
    trackers.close()
    (line,) = said
    assert line.startswith("TensorBoard did not start (") and "tensorboard" in line and "goes on without it" in line


@pytest.mark.parametrize("records", [0, 1])
def test_a_killed_worker_is_said(tmp_path, records):
    worker = Apart("tensorboard", "TensorBoard", arguments(tmp_path))
    os.kill(worker._process.pid, signal.SIGKILL)
    worker._process.wait()
    said: list[str] = []
    trackers = Trackers([Background("TensorBoard", lambda: worker, said.append)])
    for step in range(records):
        trackers.log("train", {"step": step})
    trackers.close()
    (line,) = said
    assert line.startswith("TensorBoard failed while ") and "its process has ended with exit code -9" in line


def test_a_worker_that_stands_still_is_left_behind(tmp_path):
    worker = Apart("tensorboard", "TensorBoard", arguments(tmp_path))
    os.kill(worker._process.pid, signal.SIGSTOP)
    try:
        said: list[str] = []
        trackers = Trackers([Background("TensorBoard", lambda: worker, said.append)], patience_s=0.5)
        began = time.monotonic()
        for step in range(1, 2001):  # more than fits into a pipe
            trackers.log("train", {"step": step, "text": "x" * 100})
        assert time.monotonic() - began < 2
        trackers.close()
        assert time.monotonic() - began < 10
        assert len(said) == 1 and "is left behind" in said[0]
    finally:
        worker._process.kill()
