"""Sources: which one a name means, what a manifest says of it, when it counts as changed."""

import os
from pathlib import Path

import pytest

from automodel_cli.corpus.documents.hub import HubSource
from automodel_cli.corpus.documents.source import FileSource, open_source, unescape
from automodel_cli.corpus.documents.units import ReadOptions
from automodel_cli.errors import DataError


def test_local_or_hub(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    assert isinstance(open_source(str(tmp_path), ReadOptions()), FileSource)
    assert isinstance(open_source("someone/something", ReadOptions()), HubSource)
    with pytest.raises(DataError, match="no file or folder"):
        open_source(str(tmp_path / "b.txt"), ReadOptions())


def test_description_travels_and_identity_notices(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "data").mkdir(parents=True)
        (tmp_path / name / "data/a.txt").write_text("hello")
    one, two = (FileSource(str(tmp_path / name), ReadOptions()) for name in ("one", "two"))
    assert one.describe() == {**two.describe(), "name": "one"}
    assert one.describe()["first_files"] == ["data/a.txt"] and str(tmp_path) not in str(one.describe())
    assert one.total_bytes == 5
    before = one.identity()
    os.utime(tmp_path / "one/data/a.txt", ns=(1, 1))
    assert FileSource(str(tmp_path / "one"), ReadOptions()).identity() != before


def test_single_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo")
    assert FileSource(str(tmp_path), ReadOptions()).single_document
    assert not FileSource(str(tmp_path), ReadOptions(document="line")).single_document
    (tmp_path / "b.txt").write_text("x")
    assert not FileSource(str(tmp_path), ReadOptions()).single_document


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (r"\n\n", "\n\n"),
        (r"a\tb", "a\tb"),
        (r"\\n", r"\n"),
        ("<|endoftext|>", "<|endoftext|>"),
        (r"\x", r"\x"),
    ],
)
def test_delimiters_as_typed(typed: str, meant: str) -> None:
    assert unescape(typed) == meant
