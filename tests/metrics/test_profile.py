"""The profiler around a loop of our own."""

from __future__ import annotations

import gc
import gzip
import json
import time
import weakref
from pathlib import Path

import pytest
import torch

from automodel_cli.metrics import profile
from automodel_cli.metrics.profile import NoProfile, StepProfiler
from automodel_cli.metrics.trace import PHASES


class Said:
    """What a profiler says."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.tables: list[tuple] = []

    def columns(self, title, headings, rows) -> None:
        self.tables.append((title, headings, rows))


def profiler(folder: Path, updates: int, **arguments) -> tuple[StepProfiler, Said]:
    said = Said()
    return StepProfiler(updates, folder=folder, say=said.lines.append, columns=said.columns, **arguments), said


def loop(profiler: NoProfile, steps: int, *, first: int = 1) -> None:
    """A loop with every phase in it; a phase that lasts is one that sleeps."""
    with profiler:
        for step, _ in enumerate(profiler.each("data wait", range(steps)), start=first):
            with profiler.phase("forward"):
                torch.ones(50, 50) @ torch.ones(50, 50)
                time.sleep(0.01)
            for name in set(PHASES) - {"data wait", "forward"}:
                with profiler.phase(name):
                    torch.ones(3) + 1
            time.sleep(0.002)
            profiler.step(step)


def events_of(path: Path) -> list[dict]:
    return json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


def test_summary_and_trace(tmp_path):
    watched, said = profiler(tmp_path / "profile", 3, rank=2)
    loop(watched, 12)
    path = tmp_path / "profile/step_00000007_rank2.json.gz"
    assert list(path.parent.iterdir()) == [path]
    title, headings, rows = said.tables[0]
    assert title == "profile of 3 updates, 5 to 7"
    assert headings == ("phase", "median ms", "mean ms", "share")
    assert [row[0] for row in rows] == [*PHASES, "the rest", "an update"]
    means = {row[0]: float(row[2]) for row in rows}
    assert sum(means.values()) == pytest.approx(2 * means["an update"], abs=1)
    assert means["forward"] >= 10 and means["the rest"] >= 2
    assert sum(float(row[3][:-1]) for row in rows) == pytest.approx(200, abs=1)
    assert said.lines[-1] == f"trace: {path} (for https://ui.perfetto.dev or chrome://tracing)"
    ranges = [event["name"] for event in events_of(path) if event.get("cat") == "user_annotation"]
    assert {f"automodel: {name}" for name in PHASES} <= set(ranges)
    assert ranges.count("automodel: forward") == 3
    products = next(row for row in said.tables[1][2] if row[0] == "aten::mm")
    assert products[3] == "1"


def test_after_the_profile_nothing_is_left(tmp_path):
    watched, _ = profiler(tmp_path, 2)
    with watched:
        for step in range(1, 6):
            watched.step(step)
        assert watched._profiler is not None
        held = weakref.ref(watched._profiler)
        assert watched.phase("forward") is not profile._NOTHING
        watched.step(6)
        gc.collect()
        assert held() is None
        assert watched.phase("forward") is profile._NOTHING


def test_a_run_that_ends_early_shows_what_there_is(tmp_path):
    watched, said = profiler(tmp_path, 50)
    loop(watched, 7, first=101)
    assert (tmp_path / "step_00000107_rank0.json.gz").is_file()
    assert "the run ended after 3 of the 50 updates to profile" in said.lines


def test_an_update_in_which_the_loop_ended_counts(tmp_path):
    watched, said = profiler(tmp_path, 50)
    with watched:
        for step in range(1, 6):
            watched.step(step)
        with watched.phase("saving"):
            pass
    assert (tmp_path / "step_00000006_rank0.json.gz").is_file()
    assert "the run ended after 2 of the 50 updates to profile" in said.lines


@pytest.mark.parametrize("steps", [0, 1, 3, 4])
def test_a_run_within_the_warm_up_says_so(steps, tmp_path):
    watched, said = profiler(tmp_path, 5)
    loop(watched, steps)
    assert said.lines == ["profile: nothing to show, the run ended within the 4 updates of warm-up"]
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_loop_is_the_one_told(tmp_path):
    watched, said = profiler(tmp_path, 5)
    with pytest.raises(ZeroDivisionError), watched:
        for step in range(1, 7):
            watched.step(step)
        with watched.phase("forward"):
            raise ZeroDivisionError
    assert (watched._profiler, said.lines, list(tmp_path.iterdir())) == (None, [], [])


def test_a_trace_that_cannot_be_written_does_not_end_the_run(tmp_path):
    (tmp_path / "file").write_text("in the way")
    watched, said = profiler(tmp_path / "file", 2)
    loop(watched, 8)
    assert len(said.lines) == 1 and said.lines[0].startswith("profile: no trace was written: ")


def test_another_rank_writes_and_is_silent(tmp_path):
    watched, said = profiler(tmp_path, 2, rank=1, summarise=False)
    loop(watched, 6)
    assert (tmp_path / "step_00000006_rank1.json.gz").is_file()
    assert (said.lines, said.tables) == ([], [])


def test_no_profile_does_nothing(tmp_path):
    nothing, items = NoProfile(), [1, 2]
    assert nothing.each("data wait", items) is items
    assert nothing.phase("forward") is nothing.phase("backward")
    loop(nothing, 3)
