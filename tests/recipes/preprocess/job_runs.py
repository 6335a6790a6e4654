"""A run in tasks as the least of all runners does it: in random order, some twice, the job opened anew for each."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.recipes.preprocess.small_runs import content

from automodel_cli.corpus.jobs.job import Job, TaskReport


def small_parts(monkeypatch: pytest.MonkeyPatch, part_bytes: int, bytes_per_document: int = 37) -> None:
    """Parts and units so small that a test's input has many."""
    for module in ("source", "parts"):
        monkeypatch.setattr(f"automodel_cli.corpus.documents.{module}.BYTES_PER_DOCUMENT", bytes_per_document)
    monkeypatch.setattr("automodel_cli.corpus.documents.parts.PART_BYTES", part_bytes)


def written(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` but the lock that who runs a job holds."""
    return {name: data for name, data in content(folder).items() if not name.endswith("lock")}


def run_stage(open_job: Callable[[], Job], stage: str, rng: random.Random) -> list[TaskReport]:
    """Every task at least once, until none is left; the job is opened anew for each."""
    reports: list[TaskReport] = []
    job = open_job()
    while left := [task for task in range(job.tasks(stage)) if not job.is_done(stage, task)]:
        tasks = left + rng.choices(left, k=len(left) // 3)
        rng.shuffle(tasks)
        for task in tasks:
            open_job().run_task(stage, task, reports.append)
            assert job.is_done(stage, task)
    return reports


def run_job(open_job: Callable[[], Job], order: int = 0, least_parts: int = 1) -> Any:
    """Begin, all stages, finish; the source has ``least_parts`` parts at least."""
    rng = random.Random(order)
    job = open_job()
    job.begin()
    assert job.tasks(job.stages[0]) >= least_parts
    for stage in job.stages:
        run_stage(open_job, stage, rng)
    return open_job().finish()
