"""Progress counts the input that was read, whatever it is packed in, and an interrupted run goes on where it was."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from automodel_cli.corpus.documents.source import FileSource
from automodel_cli.corpus.documents.units import ReadOptions

TEXTS = [f"document {number} " + "of some words " * (number % 40) for number in range(3000)]
LINES = "".join(json.dumps({"text": text, "more": "x" * 50}) + "\n" for text in TEXTS)


def write(folder, kind):
    if kind == "parquet":
        table = pa.table({"text": TEXTS})
        pq.write_table(table, folder / "a.parquet", row_group_size=500, compression="zstd")
        pq.write_table(table, folder / "b.parquet", row_group_size=3000, compression="zstd")
    elif kind == "jsonl.gz":
        (folder / "a.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    elif kind == "json":
        (folder / "a.json").write_text(json.dumps([{"text": text} for text in TEXTS]))
    elif kind == "small":
        for number, text in enumerate(TEXTS[:500]):
            (folder / f"{number}.txt").write_text(text)
    else:
        (folder / f"a.{kind}").write_text(LINES)


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet", "jsonl.gz", "json", "small"])
def test_the_share_grows_evenly_to_the_whole(tmp_path, kind):
    write(tmp_path, kind)
    source = FileSource(str(tmp_path), ReadOptions(document="line" if kind == "txt" else "file"))
    units = list(source.units(None, 2))
    shares = [unit.through for unit in units]
    sizes = [unit.size for unit in units]
    assert len(units) > 5
    is_estimate = kind in ("jsonl.gz", "json")
    assert shares[-1] == 1.0 if not is_estimate else 0.9 < shares[-1] <= 1.0
    for number in range(len(units)):
        assert shares[number] == pytest.approx(sum(sizes[: number + 1]) / sum(sizes), abs=0.15)

    middle = len(units) // 2
    again = next(iter(source.units(units[middle].cursor, 2)))
    assert again.through == pytest.approx(shares[middle], abs={"json": 0.51, "parquet": 0.02}.get(kind, 1e-9))
