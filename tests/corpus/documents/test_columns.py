"""Text columns of parquet: several, lists, dictionaries, bytes that are no UTF-8, sizes of row groups."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from automodel_cli.corpus.documents import columns
from automodel_cli.corpus.documents.units import ReadOptions, Unit
from automodel_cli.errors import DataError

BOTH = ReadOptions("text", more_keys=("title",), lists=True)


def not_utf8(values: list[bytes], kind: pa.DataType) -> pa.Array:
    """Strings that Arrow took without looking."""
    plain = pa.array(values, pa.large_binary() if pa.types.is_large_string(kind) else pa.binary())
    return plain.view(kind)


def test_several_columns_with_a_struct_between(tmp_path: Path) -> None:
    table = pa.table(
        {
            "meta": pa.array([{"a": 1, "b": "x"}] * 6),
            "title": ["t"] * 6,
            "text": pa.array([["one", "two"], [], ["x"], None, ["a", None], ["y"]]),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4, compression="none")
    groups = columns.inspect_parquet(str(tmp_path / "a.parquet"), "a.parquet", BOTH)
    alone = columns.inspect_parquet(str(tmp_path / "a.parquet"), "a.parquet", ReadOptions("title"))
    assert [group.rows for group in groups] == [4, 2]
    assert all(both.text_bytes > title.text_bytes > 0 for both, title in zip(groups, alone, strict=True))
    unit = Unit("parquet", "a.parquet", 0, {}, path=str(tmp_path / "a.parquet"), start=0, stop=2)
    found = columns.documents_of(columns.read_row_groups(unit, BOTH), BOTH)
    assert found.texts == [(["one", "two"], "t"), ([], "t"), (["x"], "t"), (["y"], "t")]
    assert [(bad.row, bad.reason) for bad in found.bad] == [
        (3, "text is null in 'text'"),
        (4, "text is null in a list in 'text'"),
    ]
    sliced = columns.iter_row_group(str(tmp_path / "a.parquet"), "a.parquet", BOTH, 0, 3)
    assert [len(part) for part in sliced] == [3, 1]


def test_the_way_to_a_worker_and_back() -> None:
    tables = [
        pa.table({"text": [["a"], ["b"]], "title": ["x", "y"]}),
        pa.table({"text": [["c"]], "title": ["z"]}),
    ]
    joined = columns.unpack(columns.pack(columns.join(tables)))
    assert columns.documents_of(joined, BOTH).texts == [(["a"], "x"), (["b"], "y"), (["c"], "z")]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_bytes_that_are_no_text(kind: pa.DataType) -> None:
    values = not_utf8([b"good", b"\xff", b"fine"], kind)
    plain = columns.documents_of(pa.table({"text": values}), ReadOptions())
    assert plain.texts == ["good", "fine"] and plain.bad[0].reason == "not UTF-8"
    lists = pa.ListArray.from_arrays([0, 1, 3], values)
    found = columns.documents_of(pa.table({"text": lists}), ReadOptions(lists=True))
    assert found.texts == [(["good"],)] and [(bad.row, bad.reason) for bad in found.bad] == [(1, "not UTF-8")]


def test_dictionaries_and_bytes() -> None:
    table = pa.table({"text": pa.array(["a", "b", "a"]).dictionary_encode(), "title": [b"x", b"y", b"\xff"]})
    found = columns.documents_of(table, BOTH)
    assert found.texts == [("a", "x"), ("b", "y")] and found.bad[0].row == 2


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"text": pa.string()}, "has no column 'title'"),
        ({"text": pa.int64(), "title": pa.string()}, "holds int64, not text"),
        ({"text": pa.list_(pa.int8()), "title": pa.string()}, "holds list<.*int8>, not text"),
    ],
)
def test_columns_that_do_not_do(schema: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        columns.check_columns(pa.schema(schema), BOTH, "a.parquet")


@pytest.mark.parametrize(
    "kind",
    [pa.large_binary(), pa.string_view(), pa.binary_view(), pa.dictionary(pa.int8(), pa.large_string())],
)
def test_all_types_of_text(tmp_path: Path, kind: pa.DataType) -> None:
    texts = ["one", None, "zwei é", "one"]
    pq.write_table(pa.table({"text": pa.array(texts).cast(kind)}), tmp_path / "a.parquet")
    columns.inspect_parquet(str(tmp_path / "a.parquet"), "a.parquet", ReadOptions())
    unit = Unit("parquet", "a.parquet", 0, {}, path=str(tmp_path / "a.parquet"), start=0, stop=1)
    table = columns.read_row_groups(unit, ReadOptions())
    found = columns.documents_of(columns.unpack(columns.pack(table)), ReadOptions())
    assert found.texts == ["one", "zwei é", "one"] and found.bad[0].reason == "text is null"
    assert columns.row_bytes(table, ("text",)).tolist() == [3, 0, 7, 3]


def test_views_that_are_no_utf8() -> None:
    values = pa.array([b"good", b"\xff"], pa.binary_view()).view(pa.string_view())
    found = columns.documents_of(pa.table({"text": values}), ReadOptions())
    assert found.texts == ["good"] and found.bad[0].reason == "not UTF-8"


def test_a_column_of_nothing_but_null(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.nulls(3)}), tmp_path / "a.parquet")
    (group,) = columns.inspect_parquet(str(tmp_path / "a.parquet"), "a.parquet", ReadOptions())
    assert group.rows == 3
    found = columns.documents_of(pa.table({"text": pa.nulls(3)}), ReadOptions())
    assert (found.texts, found.rows, [row.reason for row in found.bad]) == ([], 3, ["text is null"] * 3)


def test_two_columns_of_one_name() -> None:
    schema = pa.schema([("text", pa.string()), ("text", pa.string())])
    with pytest.raises(DataError, match=r"a\.parquet has 2 columns named 'text'"):
        columns.check_columns(schema, ReadOptions(), "a.parquet")
