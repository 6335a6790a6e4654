"""preprocess nanogpt in tasks: the folder is that of a run in one process, byte for byte."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.recipes.preprocess.job_runs import run_job, run_stage, small_parts, written
from tests.recipes.preprocess.small_sources import BAD, rows, sources

from automodel_cli.config.schema.preprocess import PreprocessNanogptConfig
from automodel_cli.corpus.jobs.job import Job
from automodel_cli.corpus.tokenizer import ByteTokenizer
from automodel_cli.errors import AutomodelError, ConfigError, DataError
from automodel_cli.recipes.preprocess import nanogpt


def settings(folder: Path, name: str, **options: Any) -> PreprocessNanogptConfig:
    known = {"tokenizer": "byte", "num_workers": 1, "output_dir": str(folder / name), "chunk_size": 3}
    return PreprocessNanogptConfig(**{**known, **options})


def here(folder: Path, name: str = "here", **options: Any) -> tuple[Any, list[str]]:
    said: list[str] = []
    cfg = settings(folder, name, **options)
    return nanogpt.run(cfg, progress=lambda event: None, say=said.append), said


def in_tasks(
    folder: Path, name: str = "tasks", order: int = 0, least_parts: int = 1, **options: Any
) -> tuple[Any, list[str]]:
    said: list[str] = []
    return run_job(opener(folder, said, name, **options), order, least_parts), said


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


def test_same_folder_from_any_source_with_any_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each source with two of the options, and each option with two sources."""
    several_parts = {"plain", "several", "row groups", "text files", "lines", "json lines"}
    small_parts(monkeypatch, 1500)
    known_sources, names = list(sources(tmp_path).items()), list(OPTIONS)
    for seed in range(2 * len(known_sources)):
        what, known = known_sources[seed % len(known_sources)]
        name = names[seed % len(names)]
        options = OPTIONS[name]
        asked = {**known, **options}
        local, said = here(tmp_path, f"here {seed}", **asked)
        result, said_by_job = in_tasks(tmp_path, f"tasks {seed}", seed, 1 + 2 * (what in several_parts), **asked)
        assert written(tmp_path / f"tasks {seed}") == written(tmp_path / f"here {seed}"), (what, name)
        assert result.manifest.body() == local.manifest.body() and result.bad_rows == local.bad_rows
        assert [line for line in said if "ended" in line] == [line for line in said_by_job if "ended" in line]


def random_settings(folder: Path, rng: random.Random, number: int) -> dict[str, Any]:
    """A source and options that nobody chose."""
    lines = []
    for k in range(rng.randrange(1, 60)):
        text = "".join(rng.choice(("word ", "é", "\n", "漢字 ", "")) for _ in range(rng.randrange(60)))
        lines.append(rng.choice(BAD) if rng.random() < 0.1 else json.dumps({"text": f"{k} {text}"}).encode())
    (folder / f"{number}.jsonl").write_bytes(b"\n".join(lines))
    most = rng.choice([None, rng.randrange(1, 4000)])
    val = rng.choice([{}, {"val_fraction": rng.uniform(0.1, 0.9)}, {"val_tokens": rng.randrange(1, 300)}])
    return {
        "dataset": str(folder / f"{number}.jsonl"),
        "max_tokens": most,
        "shard_tokens": rng.choice([64, 500, 10**6]),
        "format": rng.choice(["bin", "raw"]),
        "eot": rng.choice([None, "append", "prepend", "none"]),
        "tokenizer": rng.choice(["byte", "byte", "char"]),
        "seed": rng.randrange(100),
        "chunk_size": rng.choice([1, 4]),
        **val,
    }


def outcome(run: Callable[..., tuple[Any, list[str]]], folder: Path, name: str, **options: Any) -> Any:
    """The files of a run, or its error."""
    try:
        run(folder, name, **options)
    except AutomodelError as error:
        return type(error), str(error)
    return written(folder / name)


def test_random_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = 0
    for number in range(20):
        rng = random.Random(number)
        options = random_settings(tmp_path, rng, number)
        small_parts(monkeypatch, rng.choice([1, 300, 1000]), rng.choice([7, 64]))
        local = outcome(here, tmp_path, f"here {number}", **options)
        assert outcome(in_tasks, tmp_path, f"tasks {number}", **options) == local, options
        refused += not isinstance(local, dict)
    assert 0 < refused < 12


def start(folder: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, **options: Any) -> Callable[[], Job]:
    """A job of many parts that has begun."""
    (folder / "rows.jsonl").write_bytes(data)
    small_parts(monkeypatch, 500)
    open_job = opener(folder, [], dataset=str(folder / "rows.jsonl"), **options)
    open_job().begin()
    assert open_job().tasks("tokenize") > 8
    return open_job


def finish(open_job: Callable[[], Job]) -> Any:
    for stage in open_job().stages:
        run_stage(open_job, stage, random.Random(0))
    return open_job().finish()


@pytest.mark.parametrize("options", [{"max_tokens": 1500}, {"max_tokens": 1500, "val_tokens": 400}])
def test_parts_that_are_not_needed_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    open_job = start(tmp_path, monkeypatch, rows(), **options)
    total = open_job().tasks("tokenize")
    for task in range(total):
        if not open_job().is_done("tokenize", task):
            open_job().run_task("tokenize", task, lambda report: None)
    made = list((tmp_path / "tasks/.work/first").glob("part_??????.json"))
    assert 2 <= len(made) < total and open_job().tasks("tokenize") == len(made)
    finish(open_job)
    here(tmp_path, dataset=str(tmp_path / "rows.jsonl"), **options)
    assert written(tmp_path / "tasks") == written(tmp_path / "here")


def test_strict_stops_at_the_first_bad_row_whoever_finds_another_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_job = start(tmp_path, monkeypatch, rows(), strict=True)
    with pytest.raises(DataError) as local:
        here(tmp_path, dataset=str(tmp_path / "rows.jsonl"), strict=True)
    total = open_job().tasks("tokenize")
    open_job().run_task("tokenize", total - 1, lambda report: None)
    for task in range(total):
        if not open_job().is_done("tokenize", task):
            open_job().run_task("tokenize", task, lambda report: None)
    assert len(list((tmp_path / "tasks/.work/first").glob("part_??????.json"))) < total
    with pytest.raises(DataError) as of_job:
        finish(open_job)
    assert str(of_job.value) == str(local.value) and "rows.jsonl:11" in str(local.value)


class WrongNowAndThen:
    """Right about the first text that it is asked for, so that it passes the probe and the first comparison."""

    name = "quick"

    def __init__(self) -> None:
        self.seen = 0

    def encode(self, text: str) -> np.ndarray:
        self.seen += 1
        if "document 43" in text:
            raise RuntimeError("stack overflow")
        ids = np.frombuffer(text.encode(), np.uint8)
        return ids if self.seen <= 1001 else ids[::-1]


def test_nothing_of_a_wrong_engine_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ByteTokenizer, "_fast_engine", lambda self: WrongNowAndThen())
    open_job = start(tmp_path, monkeypatch, rows(), shard_tokens=1000)
    total = open_job().tasks("tokenize")
    for task in range(4):
        open_job().run_task("tokenize", task, lambda report: None)
    assert open_job().is_done("tokenize", 3)
    for task in range(total - 1, 3, -1):
        open_job().run_task("tokenize", task, lambda report: None)
    assert not open_job().is_done("tokenize", 3) and open_job().is_done("tokenize", 4)
    with pytest.raises(AutomodelError, match="part_000000"):
        open_job().run_task("arrange", 0, lambda report: None)
    said: list[str] = []
    small = opener(tmp_path, said, dataset=str(tmp_path / "rows.jsonl"), shard_tokens=1000)
    finish(small)
    assert any("stack overflow" in line and "reference engine" in line for line in said)
    monkeypatch.undo()
    here(tmp_path, dataset=str(tmp_path / "rows.jsonl"), shard_tokens=1000)
    assert written(tmp_path / "tasks") == written(tmp_path / "here")


def test_what_is_counted_once_is_not_counted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The characters, the tokens of a small source, and the characters of a single text."""
    options = {"char": {"tokenizer": "char", "val_fraction": 0.2}, "tokens": {"val_tokens": 300}, "text": {}}
    for name, more in options.items():
        data = tmp_path / f"{name}.{'txt' if name == 'text' else 'jsonl'}"
        data.write_bytes(rows(bad=False))
        asked = {"dataset": str(data), "val_fraction": 0.2 if name == "text" else None, **more}
        open_job = opener(tmp_path, [], name, **asked)
        open_job().begin()
        with monkeypatch.context() as patched:
            for path in (
                "automodel_cli.recipes.preprocess.nanogpt._read_characters",
                "automodel_cli.recipes.preprocess.nanogpt._count_tokens",
                "automodel_cli.corpus.documents.source.count_characters",
            ):
                patched.setattr(path, None)
            finish(open_job)
        here(tmp_path, f"here {name}", **asked)
        assert written(tmp_path / name) == written(tmp_path / f"here {name}")


def test_a_run_of_one_machine_and_a_job_are_never_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_job = start(tmp_path, monkeypatch, rows(), shard_tokens=600)
    open_job().run_task("tokenize", 0, lambda report: None)
    asked = {"dataset": str(tmp_path / "rows.jsonl"), "shard_tokens": 600}
    with pytest.raises(ConfigError, match="go on with its --runner"):
        here(tmp_path, "tasks", **asked)
    with pytest.raises(ConfigError, match="shard_tokens 600 -> 700"):
        opener(tmp_path, [], **{**asked, "shard_tokens": 700})().begin()
    here(tmp_path, "tasks", overwrite=True, **asked)
    assert not (tmp_path / "tasks/.work").exists()
    with pytest.raises(AutomodelError, match="nobody has begun"):  # a worker that nobody told
        open_job().run_task("tokenize", 1, lambda report: None)
    assert not (tmp_path / "tasks/.work").exists()

    stop_at_manifest = monkeypatch.context()
    with stop_at_manifest as patched:
        patched.setattr("automodel_cli.corpus.build.nanogpt_output.NanogptOutput.publish_manifest", None)
        patched.setattr("automodel_cli.corpus.build.pipeline.EVERY_TOKENS", 1)
        with pytest.raises(TypeError):
            here(tmp_path, "cut", **asked)
    with pytest.raises(ConfigError, match="go on without --runner"):
        opener(tmp_path, [], "cut", **asked)().begin()
    here(tmp_path, "cut", **asked)


def test_another_source_on_another_machine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_job = start(tmp_path, monkeypatch, rows())
    (tmp_path / "rows.jsonl").write_bytes(rows(50))
    with pytest.raises(ConfigError, match="sees another source"):
        open_job().run_task("tokenize", 0, lambda report: None)


@pytest.mark.parametrize("ending", ["tokens", "chunks", "json"])
def test_a_damaged_part_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    open_job = start(tmp_path, monkeypatch, rows())
    run_stage(open_job, "tokenize", random.Random(0))
    path = next((tmp_path / "tasks/.work/first").glob(f"part_000002.????????????????.{ending}"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(AutomodelError, match=r"part_000002.*(damaged|not what its header says)"):
        finish(open_job)
    assert not (tmp_path / "tasks/manifest.json").exists()


def test_finishing_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"shard_tokens": 300, "val_fraction": 0.3}
    open_job = start(tmp_path, monkeypatch, rows(), **asked)
    for stage in open_job().stages:
        run_stage(open_job, stage, random.Random(0))
    mark = tmp_path / "tasks/progress.json"
    mark.unlink()
    open_job().begin()  # by who goes on; without the mark files would not be known for ours
    assert mark.exists()
    calls = 0

    def die_at_the_fifth(source: Path, target: Path, size: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        source.replace(target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("automodel_cli.corpus.jobs.token_job._move", die_at_the_fifth)
        open_job().finish()
    open_job().finish()
    with pytest.raises(AutomodelError, match="the job is finished"):  # a process that was started too late
        open_job().begin()
    here(tmp_path, dataset=str(tmp_path / "rows.jsonl"), **asked)
    assert written(tmp_path / "tasks") == written(tmp_path / "here")
