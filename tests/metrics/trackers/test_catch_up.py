"""What a tool has missed is read from ``metrics.jsonl``."""

from __future__ import annotations

import pytest

from automodel_cli.metrics.log import MetricsLog
from automodel_cli.metrics.trackers.catch_up import missed_entries


@pytest.fixture
def run_folder(tmp_path):
    log = MetricsLog(tmp_path)
    log.validation({"step": 0, "name": "default", "loss": 9.0})
    for step in range(1, 7):
        log.train({"step": step, "loss": step / 2})
        log.event("spike", {"step": step})
    log.validation({"step": 6, "name": "code", "loss": 1.0})
    log.close()
    return tmp_path


def found(run_folder, **limits) -> list[tuple[str, int]]:
    return [(entry.prefix, entry.step) for entry in missed_entries(run_folder, **limits)]


def test_records_between_two_steps(run_folder):
    assert found(run_folder, after=3, until=5, every_steps=1) == [("train", 4), ("train", 5)]
    assert found(run_folder, after=-1, until=6, every_steps=4) == [
        ("val", 0), ("train", 1), ("train", 4), ("val_code", 6),
    ]  # fmt: skip


def test_none_where_nothing_was_missed_or_the_run_begins(run_folder, tmp_path):
    assert found(run_folder, after=6, until=6, every_steps=1) == []
    assert found(run_folder, after=-1, until=0, every_steps=1) == []
    assert found(tmp_path / "none", after=-1, until=6, every_steps=1) == []


def test_entries_are_what_was_logged(run_folder):
    (entry,) = missed_entries(run_folder, after=3, until=4, every_steps=1)
    assert entry.numbers() == {"train/loss": 2.0}
    assert entry.time == pytest.approx((run_folder / "metrics.jsonl").stat().st_mtime, abs=60)
