"""preprocess megatron in tasks: the files are those of a run in one process, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.recipes.preprocess.job_runs import run_job, small_parts, written
from tests.recipes.preprocess.small_runs import empty_sentence_model
from tests.recipes.preprocess.small_sources import TEXTS, sources

from automodel_cli.config.schema.megatron import PreprocessMegatronConfig
from automodel_cli.corpus.jobs.job import Job
from automodel_cli.errors import DataError
from automodel_cli.recipes.preprocess import megatron


def settings(folder: Path, **options: Any) -> PreprocessMegatronConfig:
    known = {"tokenizer": "byte", "workers": 1, "output_prefix": "made", "output_path": str(folder), "chunk_size": 3}
    return PreprocessMegatronConfig(**{**known, **options})


def here(folder: Path, **options: Any) -> tuple[Any, list[str]]:
    said: list[str] = []
    return megatron.run(settings(folder, **options), progress=lambda event: None, say=said.append), said


def in_tasks(folder: Path, **options: Any) -> tuple[Any, list[str]]:
    cfg, said = settings(folder, **options), list[str]()
    folder.mkdir(exist_ok=True)

    def open_job() -> Job:
        return megatron.open_job(cfg, progress=lambda event: None, say=said.append)

    return run_job(open_job), said


def check_same(folder: Path, **options: Any) -> None:
    local, said = here(folder / "here", **options)
    result, said_by_job = in_tasks(folder / "tasks", **options)
    assert written(folder / "tasks") == written(folder / "here"), options
    assert result.manifest.body() == local.manifest.body() and result.bad_rows == local.bad_rows
    ends = ("ended", "no text in")
    assert [line for line in said if any(word in line for word in ends)] == [
        line for line in said_by_job if any(word in line for word in ends)
    ]


@pytest.mark.parametrize("source", ["plain", "several", "row groups", "text files", "one text", "array"])
@pytest.mark.parametrize(
    "options",
    [
        {"append_eod": True},
        {"append_eod": True, "shard_tokens": 900},
        {"shards": 4, "skip_empty": True},
        {"append_eod": True, "max_tokens": 4321},
    ],
    ids=" ".join,
)
def test_same_files_from_any_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, options: dict[str, Any]
) -> None:
    known = sources(tmp_path)[source]
    small_parts(monkeypatch, 500)
    if source == "one text":
        options = {name: value for name, value in options.items() if name != "shards"}  # one document is not divided
    check_same(tmp_path, input=known["dataset"], **options)


def several_keys(folder: Path) -> str:
    """Rows of two fields: texts, lists of texts, empty ones, and some that lack one."""
    lines = []
    for k, text in enumerate(TEXTS):
        row: dict[str, Any] = {
            "text": f"{text}. Two. Three." if k % 7 else "",
            "title": [f"title {k}", "", "more " * (k % 4)],
        }
        if k % 11 == 5:
            del row["title"]
        lines.append(json.dumps(row))
    for number in range(2):
        (folder / f"keys_{number}.jsonl").write_text("\n".join(lines[30 * number :][:30]) + "\n")
    (folder / "keys_2.jsonl").write_text('{"text": "", "title": "x"}\n')
    return str(folder / "keys_*.jsonl")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"skip_empty": True, "append_eod": True},
        {"max_tokens": 3000},
        {"shards": 5},
        {"shards": 3, "skip_empty": True, "max_tokens": 5000},
        {"shard_tokens": 1000, "append_eod": True},
        {"split_sentences": True, "append_eod": True},
        {"split_sentences": True, "shards": 2},
    ],
    ids=lambda options: " ".join(options) or "plain",
)
def test_several_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    data = several_keys(tmp_path)
    if options.get("split_sentences"):
        pytest.importorskip("nltk", reason="nltk is not installed")
        empty_sentence_model(tmp_path, monkeypatch)
    small_parts(monkeypatch, 700)
    check_same(tmp_path, input=data, json_keys=["text", "title"], **options)


def test_what_cannot_be_divided_is_refused_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = several_keys(tmp_path)
    small_parts(monkeypatch, 700)
    with pytest.raises(DataError) as local:
        here(tmp_path / "here", input=data, shards=100)
    with pytest.raises(DataError) as of_job:
        in_tasks(tmp_path / "tasks", input=data, shards=100)
    assert str(of_job.value) == str(local.value) and "100 shards" in str(local.value)
