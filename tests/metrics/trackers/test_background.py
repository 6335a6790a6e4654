"""Trackers that hang, raise or are slow: training neither fails nor waits, and is told once."""

from __future__ import annotations

import threading
import time

import pytest

from automodel_cli.metrics.trackers.background import Background, Trackers
from automodel_cli.metrics.trackers.interface import Entry, Forgetful


class Listener(Forgetful):
    """A tracker that keeps what it gets; at ``odd`` (start, log, flush, close) it does ``what``."""

    def __init__(self, odd: str = "", what=lambda: None) -> None:
        self.odd, self.what = odd, what
        self.got: list[object] = []
        self._do("start")

    def _do(self, now: str) -> None:
        if now == self.odd:
            self.what()

    def log(self, entry: Entry) -> None:
        self._do("log")
        self.got.append((entry.prefix, entry.step))

    def rewind(self, step: int) -> None:
        self.got.append(step)

    def flush(self) -> None:
        self._do("flush")

    def close(self, *, ok: bool) -> None:
        self._do("close")
        self.got.append(ok)


def raises(error: BaseException):
    def fail() -> None:
        raise error

    return fail


def run(start, *, steps: int = 20, patience_s: float = 20.0, **options) -> tuple[list[str], float]:
    """What is said of a run of so many records, and how long training spent on them, in seconds."""
    said: list[str] = []
    trackers = Trackers([Background("Tool", start, said.append, **options)], patience_s=patience_s)
    began = time.perf_counter()
    for step in range(1, steps + 1):
        trackers.log("train", {"step": step})
    took = time.perf_counter() - began
    trackers.close()
    trackers.close()
    return said, took


def test_everything_arrives_in_order():
    tool = Listener()
    said: list[str] = []
    trackers = Trackers([Background("Tool", lambda: tool, said.append)])
    trackers.log("train", {"step": 1})
    trackers.rewind(0)
    trackers.log("val", {"step": 1})
    trackers.close(ok=False)
    assert tool.got == [("train", 1), 0, ("val", 1), False]
    assert said == []


def test_what_the_tool_missed_comes_first():
    tool = Listener()
    tool.last_step = 3
    missed = [Entry("train", {"step": step}, 0.0) for step in (4, 5)]
    asked: list[int] = []
    run(lambda: tool, steps=1, missed=lambda after: asked.append(after) or missed)
    assert asked == [3]
    assert tool.got == [("train", 4), ("train", 5), ("train", 1), True]


@pytest.mark.parametrize("odd", ["start", "log", "flush", "close"])
@pytest.mark.parametrize("error", [RuntimeError("no\nroute \x1b[31m to https://me:hunter2@host"), SystemExit(3)])
def test_one_that_raises_is_one_line(odd, error):
    said, _ = run(lambda: Listener(odd, raises(error)))
    assert len(said) == 1 and said[0].startswith("Tool ") and said[0].endswith("holds every record")
    assert "hunter2" not in said[0] and "\n" not in said[0] and "\x1b" not in said[0]
    assert ("did not start" in said[0]) == (odd == "start")


@pytest.mark.parametrize("odd", ["start", "log", "close"])
def test_one_that_hangs_is_left_behind(odd):
    freed = threading.Event()
    began = time.monotonic()
    said, took = run(lambda: Listener(odd, freed.wait), steps=500, patience_s=0.3, capacity=100)
    assert time.monotonic() - began < 5  # 0.3 s, on a busy machine
    assert took < 0.5
    (line,) = said
    assert "has not finished in time and is left behind" in line
    freed.set()


def test_what_is_left_out_is_counted_and_told_once():
    tool_may_go_on = threading.Event()
    tool = Listener("log", tool_may_go_on.wait)
    said: list[str] = []
    slow = Background("Tool", lambda: tool, said.append, capacity=10)
    trackers = Trackers([slow])
    for step in range(1, 1001):
        trackers.log("train", {"step": step})
    assert said == []
    tool_may_go_on.set()
    trackers.close()
    sent = sum(isinstance(one, tuple) for one in tool.got)
    assert 0 < sent <= 12
    assert said == [
        f"Tool was slower than the run: {1000 - sent:,} of 1,000 records were not sent; metrics.jsonl has them all"
    ]


def test_one_that_hangs_holds_up_no_other():
    freed, tool, said = threading.Event(), Listener(), []
    hanging = Background("Bad", lambda: Listener("log", freed.wait), said.append)
    trackers = Trackers([hanging, Background("Good", lambda: tool, said.append)], patience_s=0.3)
    for step in range(50):
        trackers.log("train", {"step": step})
    trackers.close()
    assert len(tool.got) == 51
    assert len(said) == 1 and said[0].startswith("Bad ")
    freed.set()
