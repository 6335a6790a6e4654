"""The estimate of what will be written, against what is written; and what happens when it does not fit."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from automodel_cli.corpus.build import disk_space
from automodel_cli.corpus.build.disk_space import Estimate, check_room, estimate, free_bytes
from automodel_cli.corpus.build.tokenize import EncodeTask
from automodel_cli.corpus.documents.hub import HubSource
from automodel_cli.corpus.documents.source import FileSource
from automodel_cli.corpus.documents.units import ReadOptions
from automodel_cli.corpus.tokenizer import ByteTokenizer
from automodel_cli.errors import AutomodelError

READ = ReadOptions(lists=True)


def guess(source: FileSource | HubSource, *, max_tokens: int | None = None, copies: int = 1) -> Estimate | None:
    encoder = EncodeTask(Path("none"), "auto", READ, "<u2", end=(256,), tokenizer=ByteTokenizer()).open()
    return estimate(source, encoder, itemsize=2, max_tokens=max_tokens, copies=copies)


def test_a_sample_tells(tmp_path: Path) -> None:
    rows = [json.dumps({"id": k, "text": f"row {k} " * 20}) for k in range(3000)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    tokens = sum(len(json.loads(row)["text"]) + 1 for row in rows)
    found = guess(FileSource(str(tmp_path / "a.jsonl"), READ))
    assert found is not None and abs(found.tokens - tokens) < 0.03 * tokens
    assert abs(found.bytes - 2 * tokens - 20 * len(rows)) < 0.03 * found.bytes
    limited = guess(FileSource(str(tmp_path / "a.jsonl"), READ), max_tokens=1000, copies=2)
    assert limited is not None and limited.tokens == 1000 and 4000 < limited.bytes < 6000


def test_where_little_is_known(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 1000))
    assert guess(FileSource(str(tmp_path / "a.jsonl.gz"), READ)) is not None
    (tmp_path / "bad.jsonl").write_text("{\n")
    assert guess(FileSource(str(tmp_path / "bad.jsonl"), READ)) is not None
    hub = HubSource("some/dataset", None, "train", READ)
    assert guess(hub) is None
    limited = guess(hub, max_tokens=1000)
    assert limited is not None and limited.tokens == 1000


def test_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "not/there/yet"
    assert free_bytes(folder) > 0
    monkeypatch.setattr(disk_space, "free_bytes", lambda folder: 10**9)
    assert check_room(folder, None) is None
    assert check_room(folder, Estimate(10**9, 1)) is None
    warning = check_room(folder, Estimate(2 * 10**9, 1))
    assert warning is not None and "954 MiB free, about 1.9 GiB" in warning
    with pytest.raises(AutomodelError, match=r"954 MiB free, about 2\.0 GiB"):
        check_room(folder, Estimate(2_100_000_000, 1))
