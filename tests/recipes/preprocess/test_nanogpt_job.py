"""preprocess nanogpt in tasks: the folder is that of a run in one process, byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.recipes.preprocess.job_runs import run_job, small_parts, written
from tests.recipes.preprocess.small_sources import sources

from automodel_cli.config.schema.preprocess import PreprocessNanogptConfig
from automodel_cli.corpus.jobs.job import Job
from automodel_cli.recipes.preprocess import nanogpt


def settings(folder: Path, name: str, **options: Any) -> PreprocessNanogptConfig:
    known = {"tokenizer": "byte", "num_workers": 1, "output_dir": str(folder / name), "chunk_size": 3}
    return PreprocessNanogptConfig(**{**known, **options})


def here(folder: Path, name: str = "here", **options: Any) -> tuple[Any, list[str]]:
    said: list[str] = []
    cfg = settings(folder, name, **options)
    return nanogpt.run(cfg, progress=lambda event: None, say=said.append), said


def in_tasks(folder: Path, name: str = "tasks", seed: int = 0, **options: Any) -> tuple[Any, list[str]]:
    said: list[str] = []
    return run_job(opener(folder, said, name, **options), seed), said


def opener(folder: Path, said: list[str], name: str = "tasks", **options: Any) -> Callable[[], Job]:
    cfg = settings(folder, name, **options)
    (folder / name).mkdir(exist_ok=True)

    def open_job() -> Job:
        return nanogpt.open_job(cfg, progress=lambda event: None, say=said.append)

    return open_job


OPTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "shards": {"shard_tokens": 900},
    "exact": {"max_tokens": 4321, "shard_tokens": 1000},
    "fraction": {"val_fraction": 0.2, "shard_tokens": 2000},
    "val tokens": {"val_tokens": 700},
    "exact, val tokens": {"val_tokens": 500, "max_tokens": 4000},
    "raw": {"format": "raw", "val_fraction": 0.3},
    "no separator": {"eot": "none", "max_tokens": 2000},
    "char": {"tokenizer": "char", "val_fraction": 0.1},
    "char, exact": {"tokenizer": "char", "val_tokens": 100, "max_tokens": 3000},
}


@pytest.mark.parametrize("source", list(range(11)))
def test_same_folder_from_any_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: int) -> None:
    what, known = list(sources(tmp_path).items())[source]
    small_parts(monkeypatch, 500)
    for seed, (name, options) in enumerate(OPTIONS.items()):
        asked = {**known, **options}
        local, said = here(tmp_path, f"here {name}", **asked)
        result, said_by_job = in_tasks(tmp_path, f"tasks {name}", seed, **asked)
        assert written(tmp_path / f"tasks {name}") == written(tmp_path / f"here {name}"), (what, name)
        assert result.manifest.body() == local.manifest.body() and result.bad_rows == local.bad_rows
        assert [line for line in said if "ended" in line] == [line for line in said_by_job if "ended" in line]
