"""preprocess shuffle in stages: tasks in any order, repeated, by processes that know nothing of each other, make the
folder that one run makes, byte for byte."""

import gzip
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from automodel_cli.config.schema.shuffle import ShuffleConfig
from automodel_cli.corpus.documents import parts
from automodel_cli.corpus.jobs.job import TaskReport
from automodel_cli.corpus.shuffle import scatter, scatter_stages, shuffle_job
from automodel_cli.corpus.shuffle.shuffle_job import ShuffleJob
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.recipes.preprocess import shuffle


@pytest.fixture(autouse=True)
def tiny_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few kilobytes are many parts, and each of them many units."""
    monkeypatch.setattr(parts, "PART_BYTES", 1200)
    for module in (scatter_stages, shuffle_job, scatter):
        monkeypatch.setattr(module, "BYTES_PER_DOCUMENT", 16)
    monkeypatch.setattr(parts, "BYTES_PER_DOCUMENT", 16)
    monkeypatch.setattr(scatter, "_LEAST_BLOCK_BYTES", 64)


def rows_of(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    rows = []
    for k in range(count):
        text = f"text {rng.randrange(1 + count // 2)} " + "é漢 " * rng.randrange(9)
        rows.append(json.dumps({"id": k, "text": text}, ensure_ascii=k % 2 == 0))
    return rows


def write_jsonl(folder: Path) -> None:
    for name, count in (("a", 60), ("b", 1), ("c", 90)):
        rows = rows_of(count, count)
        lines = [*rows[:5], "", "not a row", *rows[5:], '{"id": 5, "text": null}']
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n" * (name != "c"))


def write_packed(folder: Path) -> None:
    write_jsonl(folder)
    for path in sorted(folder.iterdir())[1:]:
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()


def write_parquet(folder: Path) -> None:
    for name, count in (("a", 70), ("b", 40)):
        rows = [json.loads(row) for row in rows_of(count, count)]
        columns: dict[str, list[Any]] = {"id": [row["id"] for row in rows], "text": [row["text"] for row in rows]}
        columns["text"][7] = None
        pq.write_table(pa.table(columns), folder / f"{name}.parquet", row_group_size=6)


def write_texts(folder: Path) -> None:
    for k in range(40):
        (folder / f"{k:02d}.txt").write_text(f"text {k % 30}\n" * (k % 7))
    (folder / "zz.txt").write_bytes(b"\xff no text")


def write_mixed(folder: Path) -> None:
    write_jsonl(folder)
    write_texts(folder)
    write_parquet(folder)


SOURCES = {
    "jsonl": write_jsonl,
    "packed": write_packed,
    "parquet": write_parquet,
    "texts": write_texts,
    "mixed": write_mixed,
}


def prepare(folder: Path, out: Path, **options: Any) -> Any:
    """The settings and the build."""
    cfg = ShuffleConfig(dataset=str(folder), output_dir=str(out), **{"memory": 4000, "name": "x", **options})
    return shuffle._prepare(cfg, lambda _: None, lambda _: None)


def run_local(folder: Path, out: Path, **options: Any) -> shuffle.ShuffleResult:
    return prepare(folder, out, num_workers=1, **options).run()


def run_job(folder: Path, out: Path, at_random: int = 0, **options: Any) -> shuffle.ShuffleResult:
    """Every task by a job opened anew, in random order, some of them again."""
    rng = random.Random(at_random)
    out.mkdir(exist_ok=True)

    def open_job() -> ShuffleJob:
        job = prepare(folder, out, **{**options, "memory": rng.choice([2000, 6000, 10**6])}).job()
        assert isinstance(job, ShuffleJob)
        return job

    open_job().begin()
    for stage in open_job().stages:
        tasks = list(range(open_job().tasks(stage))) * 2
        rng.shuffle(tasks)
        for task in tasks:
            job = open_job()
            if not job.is_done(stage, task):
                job.run_task(stage, task, lambda _: None)
            assert open_job().is_done(stage, task)
    result: shuffle.ShuffleResult = open_job().finish()
    return result


def content(folder: Path) -> dict[str, bytes]:
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    found.pop(".lock", None)
    return found


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("jsonl", {}),
        ("jsonl", {"val_documents": 11, "chunks": 3}),
        ("jsonl", {"val_fraction": 0.2, "dedup": True}),
        ("jsonl", {"chunk_size": 900, "check": True, "val_documents": 2}),
        ("jsonl", {"chunk_size": 10, "dedup": True, "seed": 3}),
        ("packed", {"chunks": 2, "dedup": True}),
        ("parquet", {"keep_columns": ["all"], "val_fraction": 0.1, "chunks": 2}),
        ("parquet", {"dedup": True, "chunk_size": 1000}),
        ("texts", {"chunks": 2, "dedup": True}),
        ("texts", {"document": "line", "val_documents": 3}),
        ("mixed", {"check": True, "val_fraction": 0.3, "chunks": 4}),
        ("mixed", {"document": "\\n", "dedup": True}),
    ],
)
def test_the_folder_is_that_of_a_local_run(tmp_path: Path, source: str, options: dict[str, Any]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    SOURCES[source](folder)
    local = run_local(folder, tmp_path / "local", **options)
    job = run_job(folder, tmp_path / "job", at_random=len(source), **options)
    assert content(tmp_path / "job") == content(tmp_path / "local")
    assert job.bad_rows == local.bad_rows
    assert job.manifest == local.manifest.__class__(**{**vars(local.manifest), "folder": tmp_path / "job"})


def test_many_parts_and_buckets_were_really_made(tmp_path: Path) -> None:
    """What the tests above rest on."""
    folder = tmp_path / "in"
    folder.mkdir()
    write_jsonl(folder)
    (tmp_path / "out").mkdir()
    job = prepare(folder, tmp_path / "out", dedup=True).job()
    job.begin()
    assert job.stages == ("count", "scatter", "duplicates", "join", "divide", "assemble")
    assert job.tasks("scatter") > 4 and job.tasks("join") > 3 and job.tasks("duplicates") > 1
    needed = [not job.is_done("count", task) for task in range(job.tasks("count"))]
    assert any(needed) and not all(needed)


def test_reports_add_up(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_jsonl(folder)
    (tmp_path / "out").mkdir()
    job = prepare(folder, tmp_path / "out").job()
    job.begin()
    for task in range(job.tasks("count")):
        job.run_task("count", task, lambda _: None)
    reports = []
    for task in range(job.tasks("scatter")):
        of_task: list[TaskReport] = []
        job.run_task("scatter", task, of_task.append)
        reports.append(of_task[-1])
    assert sum(report.text_bytes for report in reports) == sum(p.stat().st_size for p in folder.iterdir())
    assert sum(report.bad_rows for report in reports) == 3
    assert sum(report.documents for report in reports) == 60 + 1 + 90 + 3  # a null is JSON, too


def test_a_job_of_other_settings_or_other_input_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_jsonl(folder)
    (tmp_path / "out").mkdir()
    prepare(folder, tmp_path / "out").job().begin()
    with pytest.raises(ConfigError, match="interrupted shuffle made in another way: seed 42 -> 7"):
        prepare(folder, tmp_path / "out", seed=7).job().begin()
    (folder / "b.jsonl").write_text('{"text": "changed"}\n')
    with pytest.raises(ConfigError, match="identity"):
        prepare(folder, tmp_path / "out").job().run_task("count", 0, lambda _: None)


def test_a_local_run_leaves_a_job_alone_and_a_job_clears_what_a_local_run_left(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    write_jsonl(folder)
    run_local(folder, tmp_path / "local", chunks=2)
    out.mkdir()
    job = prepare(folder, out, chunks=2).job()
    job.begin()
    for stage in ("count", "scatter"):
        for task in range(job.tasks(stage)):
            job.run_task(stage, task, lambda _: None)
    with pytest.raises(ConfigError, match="unfinished shuffle in tasks"):
        run_local(folder, out, chunks=2)
    run_local(folder, out, chunks=2, overwrite=True)
    assert content(out) == content(tmp_path / "local")
    again = tmp_path / "again"
    again.mkdir()
    (again / ".shuffle" / "buckets-x").mkdir(parents=True)
    (again / ".shuffle" / "begun").touch()
    (again / ".shuffle" / "buckets-x" / "0000.1.rows").write_bytes(b"what a killed run left")
    run_job(folder, again, chunks=2)
    assert content(again) == content(tmp_path / "local")


def test_a_bad_row_ends_a_strict_job_by_its_line(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_jsonl(folder)
    with pytest.raises(DataError, match=r"bad row a\.jsonl:7: not a JSON object"):
        run_local(folder, tmp_path / "local", strict=True)
    (tmp_path / "out").mkdir()
    job = prepare(folder, tmp_path / "out", strict=True).job()
    job.begin()
    errors = []
    for stage in ("count", "scatter"):
        for task in range(job.tasks(stage)):
            try:
                job.run_task(stage, task, lambda _: None)
            except DataError as error:
                errors.append(error.message)
    assert errors[0] == "bad row a.jsonl:7: not a JSON object"
    assert errors[1:] == ["bad row b.jsonl:3: not a JSON object"]
    left = [path.name for path in (tmp_path / "out/.shuffle/job/scatter").iterdir()]
    assert not any(name.endswith(".tmp") for name in left)


def test_too_few_documents(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "only one"}\n')
    with pytest.raises(DataError, match="1 documents are too few for 2 chunks"):
        run_job(folder, tmp_path / "out", chunks=2)
    (folder / "a.jsonl").write_text("\n\nno row\n")
    with pytest.raises(DataError, match=r"holds no documents \(1 bad rows; first: a.jsonl:3: not a JSON object\)"):
        run_job(folder, tmp_path / "none")


def test_temporary_files_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_jsonl(folder)
    run_local(folder, tmp_path / "local")
    run_job(folder, tmp_path / "out", temp_dir=str(tmp_path / "temp"))
    assert content(tmp_path / "out") == content(tmp_path / "local")
    assert not any(path.is_file() for path in (tmp_path / "temp").rglob("*"))


def test_temporary_files_of_a_folder_that_is_gone_are_not_used(tmp_path: Path) -> None:
    folder, options = tmp_path / "in", {"temp_dir": str(tmp_path / "temp")}
    folder.mkdir()
    write_jsonl(folder)
    (tmp_path / "out").mkdir()
    job = prepare(folder, tmp_path / "out", seed=3, **options).job()
    job.begin()
    job.run_task("count", 0, lambda _: None)
    shutil.rmtree(tmp_path / "out")
    run_local(folder, tmp_path / "local")
    run_job(folder, tmp_path / "out", **options)
    assert content(tmp_path / "out") == content(tmp_path / "local")
