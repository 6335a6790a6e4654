"""Shuffled documents as a source: the order of `preprocess shuffle`, bad rows once, going on from any cursor."""

import json
from pathlib import Path

import numpy as np
import pytest

from automodel_cli.corpus.build.pipeline import BadRows
from automodel_cli.corpus.documents.readers import read_unit
from automodel_cli.corpus.documents.source import FileSource
from automodel_cli.corpus.documents.units import ReadOptions
from automodel_cli.corpus.shuffle.shuffled_source import ShuffledSource
from automodel_cli.corpus.shuffle.splitting import place_of, shuffle_keys
from automodel_cli.errors import DataError

BAD = {3: "{", 50: '{"text": 1}'}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for name in "ab":
        rows = [BAD.get(k, json.dumps({"text": f"{name} {k} " * (k % 9), "more": ["x", "y"]})) for k in range(80)]
        (tmp_path / f"in/{name}.jsonl").write_text("\n".join(rows) + "\n")
    return tmp_path / "in"


def expected() -> list[str]:
    keyed = []
    for file, name in enumerate("ab"):
        for k in range(80):
            if k not in BAD:
                keyed.append((shuffle_keys(5, place_of(file, np.array([k])))[0], f"{name} {k} " * (k % 9)))
    return [text for _, text in sorted(keyed)]


def plain_texts(folder: Path) -> list[str]:
    source = FileSource(str(folder), ReadOptions())
    return [text for unit in source.units(None, 100) for text in read_unit(unit, source.options).texts]


def make(folder: Path, memory: int = 10**6, workers: int = 1, **options: object) -> ShuffledSource:
    source = FileSource(str(folder), ReadOptions(**options))  # type: ignore[arg-type]
    work = folder.parent / ".shuffle"
    return ShuffledSource(source, work, seed=5, memory_bytes=memory, num_workers=workers)


@pytest.mark.parametrize(("memory", "workers"), [(10**6, 1), (3000, 1), (10**5, 2)])
def test_order_and_bad_rows(folder: Path, memory: int, workers: int) -> None:
    source = make(folder, memory, workers)
    bad_rows = BadRows()
    told: list[tuple[int, int]] = []
    source.gather(bad_rows, lambda event: told.append((event.documents, event.text_bytes)))
    assert bad_rows.count == 4 and bad_rows.first[0] == "a.jsonl:4: malformed JSON"
    assert told[-1] == (156, source.total_bytes)
    units = list(source.units(None, 1))
    found = [read_unit(unit, source.options) for unit in units]
    assert [text for some in found for text in some.texts] == expected()
    ordinals = [number for unit in units for number in unit.ordinals.tolist()]  # type: ignore[union-attr]
    in_source = [text for _, text in sorted(zip(ordinals, expected(), strict=True))]
    assert sorted(ordinals) == list(range(156)) and in_source == plain_texts(folder)
    assert not any(some.bad for some in found)
    source.remove()
    assert not (folder.parent / ".shuffle").exists()
    with pytest.raises(DataError, match="no buckets"):
        next(source.units(None, 1))


def test_going_on_in_another_process(folder: Path) -> None:
    make(folder).gather(BadRows(), lambda *_: None)
    units = list(make(folder, 3000).units(None, 1))
    texts = [read_unit(unit, ReadOptions()).texts for unit in units]
    for k in (1, len(units) // 2, len(units) - 1):
        rest = [
            text for unit in make(folder).units(units[k].cursor, 1) for text in read_unit(unit, ReadOptions()).texts
        ]
        assert rest == [text for some in texts[k:] for text in some]


def test_several_fields(folder: Path) -> None:
    source = make(folder, more_keys=("more",), lists=True)
    source.gather(bad_rows := BadRows(), lambda *_: None)
    found = [document for unit in source.units(None, 1) for document in read_unit(unit, source.options).texts]
    assert found == [(text, ["x", "y"]) for text in expected()] and bad_rows.count == 4


def test_it_says_what_its_source_says(folder: Path) -> None:
    source, plain = make(folder), FileSource(str(folder), ReadOptions())
    assert (source.describe(), source.identity(), source.name) == (
        plain.describe(),
        plain.identity(),
        plain.name,
    )
