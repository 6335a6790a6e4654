"""--shuffle of preprocess nanogpt and megatron in tasks: the folder is that of a run in one process, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.recipes.preprocess.job_runs import run_job, small_parts, written
from tests.recipes.preprocess.small_sources import rows, sources
from tests.recipes.preprocess.test_nanogpt_job import here, opener

from automodel_cli.config.schema.megatron import PreprocessMegatronConfig
from automodel_cli.corpus.shuffle import scatter
from automodel_cli.errors import DataError
from automodel_cli.recipes.preprocess import megatron

ALL = {"shuffle": True, "seed": 5}
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("plain", {"val_fraction": 0.2, "shard_tokens": 900}),
    ("plain", {"max_tokens": 3000, "val_tokens": 500}),
    ("plain", {"max_tokens": 1000, "shuffle_memory": 10**6}),
    ("several", {"val_tokens": 700}),
    ("row groups", {"tokenizer": "char", "val_fraction": 0.1}),
    ("text files", {"format": "raw", "max_tokens": 4000}),
    ("delimited", {"val_fraction": 0.3}),
]


@pytest.fixture(autouse=True)
def tiny_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    small_parts(monkeypatch, 900)
    monkeypatch.setattr(scatter, "_LEAST_BLOCK_BYTES", 300)
    for module in ("scatter", "scatter_stages", "shuffled_parts"):
        monkeypatch.setattr(f"automodel_cli.corpus.shuffle.{module}.BYTES_PER_DOCUMENT", 37)


@pytest.mark.parametrize("case", range(len(OPTIONS)))
def test_same_folder(tmp_path: Path, case: int) -> None:
    source, options = OPTIONS[case]
    asked = {**ALL, "shuffle_memory": 4000, **sources(tmp_path)[source], **options}
    local, said = here(tmp_path, **asked)
    said_by_job: list[str] = []
    result = run_job(opener(tmp_path, said_by_job, **asked), case)
    assert written(tmp_path / "tasks") == written(tmp_path / "here")
    assert result.manifest.body() == local.manifest.body() and result.bad_rows == local.bad_rows
    assert [line for line in said if "ended" in line] == [line for line in said_by_job if "ended" in line]
    assert not (tmp_path / "tasks/.shuffle").exists() and not (tmp_path / "tasks/.work").exists()


def test_the_source_and_its_keys_are_really_cut(tmp_path: Path) -> None:
    """What the test above rests on; and with enough tokens the other buckets are not wanted."""
    asked = {**ALL, "shuffle_memory": 4000, **sources(tmp_path)["plain"], "max_tokens": 1000}
    open_job = opener(tmp_path, [], **asked)
    job = open_job()
    job.begin()
    assert job.stages == ("count", "scatter", "tokenize", "arrange", "assemble")
    assert job.tasks("scatter") > 4
    for stage in ("count", "scatter"):
        for task in range(job.tasks(stage)):
            job.run_task(stage, task, lambda _: None)
    assert (buckets := open_job().tasks("tokenize")) > 2
    open_job().run_task("tokenize", 0, lambda _: None)
    assert open_job().tasks("tokenize") < buckets


def test_a_bad_row_ends_a_strict_run_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(rows())
    asked = {**ALL, "dataset": str(tmp_path / "a.jsonl"), "strict": True}
    message = r"bad row a\.jsonl:11: malformed JSON"
    with pytest.raises(DataError, match=message):
        here(tmp_path, **asked)
    job = opener(tmp_path, [], **asked)()
    job.begin()
    with pytest.raises(DataError, match=message):
        for stage in ("count", "scatter"):
            for task in range(job.tasks(stage)):
                job.run_task(stage, task, lambda _: None)


@pytest.mark.parametrize("options", [{"shards": 3}, {"max_tokens": 2000, "shuffle_memory": 10**6}])
def test_same_pairs(tmp_path: Path, options: dict[str, Any]) -> None:
    lines = [json.dumps({"text": f"text {k} " * (k % 9), "code": [f"x = {k}", "y"] * (k % 3)}) for k in range(80)]
    lines[20] = "no row"
    (tmp_path / "a.jsonl").write_text("\n".join(lines))

    def settings(name: str) -> PreprocessMegatronConfig:
        (tmp_path / name).mkdir()
        known = {"tokenizer": "byte", "num_workers": 1, "chunk_size": 3, "json_keys": ["text", "code"]}
        place = {"input": str(tmp_path / "a.jsonl"), "output_prefix": str(tmp_path / name / "x")}
        return PreprocessMegatronConfig(**{**known, **place, **ALL, "shuffle_memory": 4000, **options})

    quiet: dict[str, Any] = {"progress": lambda _: None, "say": lambda _: None}
    local = megatron.run(settings("here"), **quiet)
    cfg = settings("tasks")
    result = run_job(lambda: megatron.open_job(cfg, **quiet), 1)
    assert written(tmp_path / "tasks") == written(tmp_path / "here")
    assert result.manifest.body() == local.manifest.body() and result.bad_rows == local.bad_rows
