"""What a sample of the text says about a run: amounts, times, and that it leaves nothing behind."""

import time

import numpy as np
import pytest

from automodel_cli.cli import app
from automodel_cli.corpus.build.forecast import Forecast, Sample, makespan, source_bytes, take_sample
from automodel_cli.corpus.build.pool import LocalExecutor
from automodel_cli.corpus.documents.source import FileSource
from automodel_cli.corpus.documents.units import FieldSequences, ReadOptions, TokenChunk

MB = 10**6


def sample(**changed) -> Sample:
    amounts = {"text_bytes": 4000 * MB, "bytes": 40 * MB, "tokens": 10 * MB, "sequences": 10**4, "places": 24}
    return Sample(**amounts | {"start_s": 2.0, "rate": 50.0 * MB, "write_rate": 500.0 * MB} | changed)


def by_brute_force(sizes, workers):
    """The same by small steps of time."""
    waiting, running, step = list(sizes), [], 0
    while True:
        running = [end for end in running if end > step]
        while waiting and len(running) < workers:
            running.append(step + waiting.pop(0))
        if not running:
            return step
        step += 1


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_tasks_begin_when_a_worker_is_free(workers):
    rng = np.random.default_rng(workers)
    for _ in range(20):
        sizes = rng.integers(1, 9, rng.integers(1, 12)).tolist()
        assert makespan(sizes, workers) == by_brute_force(sizes, workers)


def test_a_run_on_this_machine_goes_on_as_the_sample_did():
    forecast = Forecast(sample(), None, 2, workers=2, parts=None)
    assert forecast.seconds == 2 + 4000 / 50
    assert forecast.core_seconds == 2 * 4000 / 50
    assert Forecast(sample(), 100 * MB, 2, 2, None).seconds == 2 + 400 / 50  # a tenth of the tokens
    assert Forecast(sample(), 10**12, 2, 2, None).seconds == forecast.seconds  # there are not so many


def test_tasks_elsewhere_take_turns_and_the_ids_are_written_again():
    parts = [1000 * MB] * 4
    again = 1000 * MB * 2 / (500 * MB)
    assert Forecast(sample(), None, 2, 3, parts).seconds == 2 + 2 * 20 + again
    assert Forecast(sample(), None, 2, 4, parts).seconds == 2 + 20 + again
    assert Forecast(sample(), None, 2, 4, parts).core_seconds == 80 + again
    assert Forecast(sample(), None, 2, None, parts).seconds is None
    assert Forecast(sample(), 250 * MB, 2, 1, parts).seconds == 2 + 20 + again / 4  # one part gives them


def test_what_is_said():
    lines = list(Forecast(sample(), None, 2, 3, [1000 * MB] * 4).lines(0.5))
    assert lines == [
        "plan: 4 tasks of one core each, 3 at a time",
        "plan: about 0m46s, 1.4 core minutes, cost 0.01 (tokenized 40.0 MB from 24 places: 50.0 MB/s)",
    ]
    (line,) = Forecast(sample(text_bytes=10**12), None, 2, 1, None).lines(None)
    assert line.startswith("plan: about 5h33m, 5.6 core hours (tokenized")


class Task:
    """A tokenizer that makes a token of each byte, at a known speed."""

    seconds = 0.0

    def open(self):
        return self

    def __call__(self, unit):
        time.sleep(self.seconds)
        lengths = np.array([unit.size])
        tokens = np.zeros(unit.size, dtype=np.uint16)
        fields = [FieldSequences(unit.size, lengths, np.array([1]))]
        return TokenChunk(tokens, fields, file=0, rows=1, bad=[], text_bytes=unit.size)


class Sink:
    def __init__(self, folder):
        self.fed = []

    def feed(self, chunk):
        self.fed.append(len(chunk.tokens))
        return False


class Nothing:
    def save(self, folder):
        pass


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "in" / "a.jsonl"
    path.parent.mkdir()
    path.write_text('{"text": "one line of many"}\n' * 20_000)
    return path


def test_the_sample_is_from_all_over_the_source(text, tmp_path, monkeypatch):
    monkeypatch.setattr("automodel_cli.corpus.build.forecast._LEAST_BYTES", 100_000)
    monkeypatch.setattr("automodel_cli.corpus.build.forecast.replace", lambda task, **changed: task)
    source, cut = FileSource(str(text), ReadOptions("text")), []
    task, sink = Task(), Sink(None)

    class Executor(LocalExecutor):
        def map_ordered(self, task, units):
            return super().map_ordered(task, (cut.append(unit.start) or unit for unit in units))

    found = take_sample(
        source, task, Nothing(), Executor(1), lambda folder: sink, chunk_documents=1, near=tmp_path / "x" / "y"
    )
    size = text.stat().st_size
    assert source_bytes(source) == found.text_bytes == size
    assert found.places == 24 and 100_000 <= found.bytes <= 100_000 + 24 * 9000
    assert len({start * 24 // size for start in cut}) >= 23  # nearly every twenty-fourth of the file
    assert found.tokens == found.bytes == sum(sink.fed)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_dry_run_says_it_where_a_price_is_asked_for(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = ["preprocess", "nanogpt", "--dataset", "in", "--tokenizer", "byte", "--dry-run", "--output-dir", "out"]
    assert app.run(line) == 0
    assert "plan: " not in capsys.readouterr().out  # so little is not worth a sample
    assert app.run([*line, "--cost-per-hour", "0.05"]) == 0
    out = capsys.readouterr().out
    assert "would tokenize in 1 process\nplan: about 0m0" in out and "cost 0.00 (tokenized" in out
    assert " are free" in out and not (tmp_path / "out").exists()
    assert app.run([*line, "--cost-per-hour", "0.05", "--num-workers", "2"]) == 0
    assert "would tokenize in 2 processes\nplan: about 0m0" in capsys.readouterr().out
    assert app.run([*line, "--runner", "slurm", "--slurm-tasks", "3"]) == 0
    assert "plan: 1 task of one core each, 1 at a time" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
