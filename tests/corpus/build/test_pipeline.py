"""From units to a sink: line numbers across units and files, when a position is worth noting, what does not count."""

from pathlib import Path

import pytest

from automodel_cli.corpus.build.pipeline import BadRows, run_pipeline
from automodel_cli.corpus.build.tokenize import EncodeTask
from automodel_cli.corpus.documents.units import ReadOptions, TokenChunk, Unit
from automodel_cli.corpus.tokenizer import ByteTokenizer
from automodel_cli.errors import DataError

LINES = [b'{"text": "a"}\n', b"{\n", b'{"text": "bc"}\n', b"[]\n", b'{"text": "d"}\n', b'{"text": 1}\n']


class Count:
    """A sink that only counts."""

    full = False
    reached = 0

    def __init__(self) -> None:
        self.tokens = self.documents = 0

    def feed(self, chunk: TokenChunk) -> bool:
        self.tokens += len(chunk.tokens)
        self.documents += len(chunk.lengths) - chunk.continues
        return False

    def sync(self) -> dict:
        return {}

    def abandon(self) -> None: ...


def chunks(sizes: list[int], name: str = "x.jsonl", file: int = 0):
    encoder = EncodeTask(Path("none"), "auto", ReadOptions(), "<u2", before=(256,), tokenizer=ByteTokenizer()).open()
    at = 0
    for size in sizes:
        data = b"".join(LINES[at : at + size])
        unit = Unit("jsonl", name, file, {"file": file, "at": at}, payload=data, size=len(data), start=1)
        yield unit, encoder(unit)
        at += size


class Sink(Count):
    """Counts, says that something was published after every chunk, and is full at ``limit`` tokens."""

    def __init__(self, limit: int = 10**9) -> None:
        super().__init__()
        self.limit = limit

    @property
    def full(self) -> bool:  # type: ignore[override]
        return self.tokens >= self.limit

    def feed(self, chunk: TokenChunk) -> bool:
        starts = [int(chunk.lengths[:k].sum()) for k in range(len(chunk.lengths))]
        self.reached = sum(start < self.limit - self.tokens for start in starts)
        super().feed(chunk)
        return True


@pytest.mark.parametrize("sizes", [[6], [1, 1, 1, 1, 1, 1], [2, 4], [5, 1]])
def test_bad_rows_have_the_same_lines_for_any_units(sizes: list[int]) -> None:
    bad, told = BadRows(), []
    stream = [*chunks(sizes), *chunks(sizes, "y.jsonl", 1)]
    run_pipeline(iter(stream), Sink(), bad, note=lambda *_: None, on_progress=lambda *step: told.append(step))
    places = [f"{name}.jsonl:{line}" for name in "xy" for line in (2, 4, 6)]
    assert [text.split(": ")[0] for text in bad.first] == places and bad.count == 6
    assert sum(size for size, _ in told) == 2 * sum(map(len, LINES))
    assert told[-1] == (0, 1.0)  # the end, whatever the estimate was


@pytest.mark.parametrize("sizes", [[6], [1, 1, 1, 1, 1, 1], [3, 3]])
@pytest.mark.parametrize(("limit", "count"), [(1, 0), (2, 0), (3, 1), (5, 1), (6, 2), (7, 2), (8, 3)])
def test_rows_after_the_last_wanted_document_do_not_count(sizes: list[int], limit: int, count: int) -> None:
    bad = BadRows()
    run_pipeline(chunks(sizes), Sink(limit), bad, note=lambda *_: None, on_progress=lambda size, _: None)
    assert bad.count == count  # documents take 2, 3 and 2 tokens; the last bad row counts at the source's end


def test_a_position_is_noted_before_the_next_unit_only() -> None:
    noted = []
    run_pipeline(
        chunks([2, 2, 2]),
        Sink(),
        BadRows(),
        note=lambda *where: noted.append(where),
        on_progress=lambda size, _: None,
    )
    assert noted == [({"file": 0, "at": 2}, 2), ({"file": 0, "at": 4}, 4)]
    bad = BadRows()
    later = list(chunks([2, 2, 2]))[1:]
    run_pipeline(iter(later), Sink(), bad, rows=2, note=lambda *_: None, on_progress=lambda size, _: None)
    assert [text.split(": ")[0] for text in bad.first] == ["x.jsonl:4", "x.jsonl:6"]


def test_strict() -> None:
    with pytest.raises(DataError, match=r"bad row x\.jsonl:2: malformed JSON"):
        run_pipeline(chunks([6]), Sink(), BadRows(strict=True), note=lambda *_: None, on_progress=lambda size, _: None)


def test_only_the_first_are_named() -> None:
    bad = BadRows()
    many = [pair for k in range(9) for pair in chunks([6], file=k)]
    run_pipeline(iter(many), Sink(), bad, note=lambda *_: None, on_progress=lambda size, _: None)
    assert bad.count == 27 and len(bad.first) == 10
