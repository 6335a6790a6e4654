"""PREFIX.manifest.json: round trip, damage, and finding the one that lists a pair."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.token_files import write_megatron_file

from automodel_cli.corpus.build.megatron_sink import MegatronLayout, Pair
from automodel_cli.corpus.formats.megatron_manifest import (
    MegatronManifest,
    describe_pair,
    describe_tokenizer,
    find_megatron_manifests,
    is_megatron_manifest,
)
from automodel_cli.corpus.tokenizer import ByteTokenizer
from automodel_cli.errors import DataError
from automodel_cli.files import hash_bytes


def make(folder: Path, name: str = "x") -> MegatronManifest:
    layout = MegatronLayout(folder, name, ("text",), "document", np.dtype("<u2"))
    write_megatron_file(layout.prefix(0, "text"), [[[1, 2]], []], dtype="<u2")
    ByteTokenizer().save(folder / f"{name}.tokenizer")
    manifest = MegatronManifest(
        folder=folder,
        name=name,
        keys=("text",),
        level="document",
        dtype="uint16",
        eod_id=256,
        tokenizer=ByteTokenizer().describe(),
        documents=2,
        sequences=1,
        tokens=2,
        bad_rows=0,
        pairs=(describe_pair(layout, Pair(0, "text", 2, 1, 2), "a.jsonl"),),
        tokenizer_files=describe_tokenizer(folder / f"{name}.tokenizer"),
    )
    manifest.write()
    return manifest


def test_round_trip(tmp_path: Path) -> None:
    manifest = make(tmp_path)
    assert MegatronManifest.read(tmp_path / "x.manifest.json") == manifest
    (pair,) = manifest.pairs
    assert pair.bin_xxh3 == hash_bytes(b"\1\0\2\0") and (pair.bin_bytes, pair.idx_bytes) == (4, 34 + 12 + 24)
    assert [file.name for file in manifest.tokenizer_files] == ["automodel_tokenizer.json"]
    body = json.loads((tmp_path / "x.manifest.json").read_text())
    assert body["format"] == "automodel-megatron/1" and "folder" not in body and "name" not in body


def test_damage_and_others(tmp_path: Path) -> None:
    path = make(tmp_path).own_path
    text = path.read_text()
    path.write_text(text.replace('"bad_rows": 0', '"bad_rows": 1'))
    with pytest.raises(DataError, match="does not match the hash"):
        MegatronManifest.read(path)
    assert is_megatron_manifest(path)
    (tmp_path / "y.manifest.json").write_text("{}")
    assert not is_megatron_manifest(tmp_path / "y.manifest.json")
    assert not is_megatron_manifest(tmp_path / "gone.manifest.json")
    with pytest.raises(DataError, match="does not exist"):
        MegatronManifest.read(tmp_path / "gone.manifest.json")


def test_the_manifest_of_a_pair(tmp_path: Path) -> None:
    manifest = make(tmp_path)
    make(tmp_path, "x_0")
    names = ("x_0_text_document", "x_0_0_text_document", "x_1_text_document", "z")
    first, other, *rest = find_megatron_manifests([tmp_path / name for name in names])
    assert first is not None and first.manifest == manifest
    assert other is not None and other.manifest.name == "x_0" and rest == [None, None]
