"""A sample of rows goes through every stage; the arithmetic of the forecast is checked with a clock of our own."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from automodel_cli.config.schema.dedup import DedupConfig
from automodel_cli.config.schema.shuffle import ShuffleConfig
from automodel_cli.corpus.build import rehearsal, run
from automodel_cli.corpus.build.rehearsal import Rehearsal, in_words, rehearse
from automodel_cli.corpus.documents.source import FileSource
from automodel_cli.corpus.documents.units import ReadOptions
from automodel_cli.corpus.shuffle.rows import RowOptions, RowReader
from automodel_cli.recipes.preprocess import dedup, shuffle

ROWS = [json.dumps({"id": number, "text": f"document {number} " + "and so on " * 40}) + "\n" for number in range(6000)]
READ = ReadOptions()


class Ticks:
    """A clock that goes on by what work says it takes."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Job:
    """One stage takes a microsecond a byte and a second in any case; another stays the same."""

    name, stages = "a job", ("read", "end")

    def __init__(self, clock: Ticks, sample: Path, folder: Path, seen: list[bytes]) -> None:
        assert list(folder.iterdir()) == []
        self.clock, self.sample, self.seen = clock, sample, seen

    def begin(self) -> None:
        self.seen.append(self.sample.read_bytes())

    def tasks(self, stage: str) -> int:
        return 2

    def run_task(self, stage: str, task: int, report: object) -> None:
        size = self.sample.stat().st_size if stage == "read" else 0
        self.clock.now += 0.5 + size / 2e6


@pytest.fixture
def text(tmp_path):
    (folder := tmp_path / "in").mkdir()
    (folder / "a.jsonl").write_text("".join(ROWS[:3000]))
    (folder / "b.jsonl").write_text("".join(ROWS[3000:]))
    return folder


def rehearsed(path, **options):
    clock, seen = Ticks(), []
    source = FileSource(str(path), READ)
    found = rehearse(
        source, RowReader(RowOptions(READ)), lambda at, out: Job(clock, at, out, seen), clock=clock, **options
    )
    return found, seen


def test_what_grows_with_the_text_is_told_from_what_does_not(text, monkeypatch):
    monkeypatch.setattr(rehearsal, "_LEAST_BYTES", 100_000)
    monkeypatch.setattr(rehearsal, "_UNIT_DOCUMENTS", 1)
    found, seen = rehearsed(text)
    size = sum(path.stat().st_size for path in text.iterdir())
    assert found.text_bytes == size and 100_000 <= found.bytes < size / 2 and found.read_s == 0
    assert found.core_seconds(frozenset({"read"})) == pytest.approx(size / 1e6, rel=1e-6)
    assert found.stage_s["end"] == 0
    beginning, again, sample = seen
    assert beginning == again and sample.startswith(beginning) and 0 < len(beginning) < len(sample) / 8
    numbers = [json.loads(line)["id"] for line in sample.splitlines()]
    assert numbers == sorted(set(numbers)) and min(numbers) == 0 and max(numbers) > 5700  # from all places
    assert [row for row in sample.decode().splitlines(keepends=True) if row not in ROWS] == []
    assert rehearsed(text, without=frozenset({"read"}))[0].stage_s.keys() == {"end"}


def test_compressed_text_and_a_source_without_documents(tmp_path):
    (tmp_path / "z.jsonl.gz").write_bytes(gzip.compress("".join(ROWS).encode()))
    _, seen = rehearsed(tmp_path / "z.jsonl.gz")
    assert seen[2].startswith("".join(ROWS[:100]).encode())
    (tmp_path / "bad.jsonl").write_text("nothing\n" * 100)
    assert rehearsed(tmp_path / "bad.jsonl")[0] is None


def test_time_is_divided_among_those_that_work_at_once():
    found = Rehearsal(100_000_000, 1_000_000, 24, read_s=0.1, stage_s={"read": 0.4, "join": 0.2, "write": 0.1})
    reading = frozenset({"read", "write"})
    assert found.core_seconds(reading) == pytest.approx(100 * 0.9)
    assert found.seconds(reading, {}) == pytest.approx(100 * 0.9)
    assert found.seconds(reading, {"read": 5, "write": 1, "join": 0}) == pytest.approx(100 * (0.1 + 0.2 + 0.2))
    said = list(in_words(found, reading, {"read": 5}, compares=True))
    expected = "plan: about 0m50s, 1.5 core minutes (1.0 MB from 24 places went through all stages: 1.1 MB/s a core)"
    assert said == [expected, "plan: a source that repeats itself more than its sample takes longer"]
    assert next(in_words(found, reading, None, compares=False)).startswith("plan: 1.5 core minutes (")


@pytest.mark.parametrize(
    ("recipe", "schema", "options"),
    [
        (dedup, DedupConfig, {}),
        (dedup, DedupConfig, {"near": 0.8, "min_words": 3}),
        (shuffle, ShuffleConfig, {}),
        (shuffle, ShuffleConfig, {"dedup": True, "val_documents": 500, "chunks": 3}),
    ],
)
def test_a_dry_run_says_it_and_writes_nothing(text, tmp_path, monkeypatch, recipe, schema, options):
    monkeypatch.chdir(tmp_path)
    for small in (True, False):
        if not small:
            monkeypatch.setattr(f"{recipe.__name__}.WORTH_FORECAST_BYTES", 1)
        said: list[str] = []
        cfg = schema(dataset=str(text), dry_run=True, num_workers=0, **options)
        assert recipe.run(cfg, progress=lambda event: None, say=said.append).manifest is None
        plan = [line for line in said if line.startswith("plan: about ")]
        assert len(plan) == (0 if small else 1), said
        assert small or "places went through all stages: " in plan[0]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("tasks", "workers", "said"),
    [(1, 4, "1 task for 4 workers to begin with: 1 compressed file cannot be cut"), (4, 4, None), (2, None, None)],
)
def test_workers_that_a_compressed_file_leaves_without_work(tmp_path, tasks, workers, said):
    (tmp_path / "z.jsonl.gz").write_bytes(gzip.compress(ROWS[0].encode()))
    job = SimpleNamespace(stages=("read",), tasks=lambda stage: tasks)
    found = run.uncut_in_words(FileSource(str(tmp_path), READ), job, workers)
    assert (found is None) if said is None else found.startswith(said)


def test_a_run_of_a_compressed_file_says_so(tmp_path):
    (tmp_path / "z.jsonl.gz").write_bytes(gzip.compress("".join(ROWS[:50]).encode()))
    said: list[str] = []
    cfg = DedupConfig(dataset=str(tmp_path / "z.jsonl.gz"), output_dir=str(tmp_path / "out"), num_workers=2)
    dedup.run(cfg, progress=lambda event: None, say=said.append)
    assert any(line.startswith("1 task for 2 workers to begin with: 1 compressed file") for line in said), said
