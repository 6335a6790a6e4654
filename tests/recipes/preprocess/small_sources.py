"""Small sources of every kind, for runs that must give the same bytes whoever makes them."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

TEXTS = [f"document {k}: " + "words é漢 " * (k * 7 % 23) for k in range(60)]
BAD = [b"{broken", b'{"other": 1}', b'{"text": null}', b'{"text": "\xff"}', b'{"text": "\\ud800"}']


def rows(count: int = len(TEXTS), bad: bool = True) -> bytes:
    lines = []
    for k, text in enumerate(TEXTS[:count]):
        lines.append(json.dumps({"text": text}).encode())
        if bad and k % 10 == 9:
            lines.append(BAD[k // 10 % len(BAD)])
    return b"\n".join(lines) + b"\n"


def sources(folder: Path) -> dict[str, dict[str, Any]]:
    """Options that name a source, by what it is."""
    lines, text = rows(), "\n\n".join(TEXTS)
    (folder / "plain.jsonl").write_bytes(lines)
    (folder / "one.jsonl.gz").write_bytes(gzip.compress(lines))
    (folder / "more").mkdir()
    for number, packed in enumerate((gzip.compress(lines), bz2.compress(lines), zstandard.compress(lines), lines)):
        ending = ("gz", "bz2", "zst", "")[number]
        (folder / "more" / f"{number}.jsonl{f'.{ending}' * bool(ending)}").write_bytes(packed)
    for name, group in (("small_groups", 7), ("one_group", 1000)):
        pq.write_table(pa.table({"text": [*TEXTS, None]}), folder / f"{name}.parquet", row_group_size=group)
    (folder / "texts").mkdir()
    for number, content_ in enumerate([*TEXTS[:20], "", "long " * 900, *TEXTS[20:30]]):
        (folder / "texts" / f"{number:03d}.txt").write_text(content_)
    (folder / "texts" / "009.txt").write_bytes(b"not UTF-8: \xff")
    (folder / "one.txt").write_text(text)
    (folder / "array.json").write_text(json.dumps([{"text": t} for t in TEXTS] + [{"other": 1}]))
    (folder / "lines.json").write_bytes(lines)
    options = {
        "plain": {"dataset": "plain.jsonl"},
        "gz": {"dataset": "one.jsonl.gz"},
        "several": {"dataset": "more"},
        "row groups": {"dataset": "small_groups.parquet"},
        "one row group": {"dataset": "one_group.parquet"},
        "text files": {"dataset": "texts"},
        "one text": {"dataset": "one.txt"},
        "lines": {"dataset": "one.txt", "document": "line"},
        "delimited": {"dataset": "one.txt", "document": "\\n\\n"},
        "array": {"dataset": "array.json"},
        "json lines": {"dataset": "lines.json"},
    }
    return {what: {**known, "dataset": str(folder / known["dataset"])} for what, known in options.items()}
