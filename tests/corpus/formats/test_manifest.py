"""Corpus manifests: round trip, determinism, damage, fingerprints."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.token_files import write_token_file

from automodel_cli.corpus.formats.manifest import (
    CorpusManifest,
    describe_file,
    find_manifest,
    read_corpus_manifest,
)
from automodel_cli.errors import DataError
from automodel_cli.files import write_manifest


def make_corpus(folder: Path) -> CorpusManifest:
    folder.mkdir()
    for name in ("dataset", "dataset_00001", "val"):
        write_token_file(folder / f"{name}.bin", np.arange(len(name)), starts=np.array([0]))
    files = [
        describe_file(folder, "dataset.bin", "tokens", "train", tokens=7, documents=1),
        describe_file(folder, "dataset.bos.idx", "bos_index", "train", documents=1),
        describe_file(folder, "dataset_00001.bin", "tokens", "train", tokens=13, documents=1),
        describe_file(folder, "val.bin", "tokens", "val", tokens=3, documents=1),
    ]
    tokenizer = {"name": "byte", "fingerprint": "xxh3:0", "vocab_size": 257, "eot_id": 256, "bos_id": None}
    form = {"layout": "bin", "dtype": "uint16", "eot": "prepend", "tokenizer": tokenizer}
    counts = {"documents": 3, "tokens": 23, "bad_rows": 0}
    manifest = CorpusManifest(folder=folder, **form, **counts, files=tuple(files))
    manifest.write()
    return manifest


def test_round_trip_and_equal_bytes_wherever_it_lies(tmp_path: Path) -> None:
    written = make_corpus(tmp_path / "a")
    make_corpus(tmp_path / "b")
    assert read_corpus_manifest(tmp_path / "a") == written
    assert (tmp_path / "a/manifest.json").read_bytes() == (tmp_path / "b/manifest.json").read_bytes()
    body = json.loads((tmp_path / "a/manifest.json").read_text())
    assert body["format"] == "automodel-corpus/1" and body["files"][0]["xxh3"].startswith("xxh3:")
    assert str(tmp_path) not in json.dumps(body)


def test_fingerprint_is_content_and_tokenizer_only(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path / "a")
    moved = replace(manifest, folder=tmp_path / "elsewhere")
    assert moved.fingerprint("train") == manifest.fingerprint("train")
    assert manifest.fingerprint("val") != manifest.fingerprint("train") != manifest.fingerprint()
    other = replace(manifest, tokenizer={**manifest.tokenizer, "fingerprint": "xxh3:1"})
    assert other.fingerprint("train") != manifest.fingerprint("train")
    assert [f.name for f in manifest.token_files("train")] == ["dataset.bin", "dataset_00001.bin"]


def test_found_from_a_token_file(tmp_path: Path) -> None:
    make_corpus(tmp_path / "a")
    found = find_manifest(tmp_path / "a/dataset_00001.bin")
    assert found is not None and found.tokens == 23
    assert find_manifest(tmp_path / "a/other.bin") is None
    assert find_manifest(tmp_path / "x.bin") is None
    for others in ('{"name": "a web page", "icons": []}', '{"links": [{"rel": "self"}]}', '{"self": "me"}'):
        (tmp_path / "manifest.json").write_text(others)
        assert find_manifest(tmp_path / "x.bin") is None


def test_every_flipped_byte_is_refused(tmp_path: Path) -> None:
    make_corpus(tmp_path / "a")
    path = tmp_path / "a/manifest.json"
    good = path.read_bytes()
    for position in range(0, len(good), 7):
        bad = bytearray(good)
        bad[position] ^= 1 << (position % 8)
        path.write_bytes(bad)
        with pytest.raises(DataError, match=r"manifest\.json"):
            read_corpus_manifest(tmp_path / "a")
    path.write_bytes(good)
    read_corpus_manifest(tmp_path / "a")


def test_other_formats_are_named(tmp_path: Path) -> None:
    write_manifest(tmp_path / "manifest.json", {"format": "automodel-corpus/9"})
    with pytest.raises(DataError, match="automodel-corpus/9"):
        read_corpus_manifest(tmp_path)
    write_manifest(tmp_path / "manifest.json", {"format": "automodel-corpus/1", "files": [], "x": 1})
    with pytest.raises(DataError, match="'documents' is missing"):
        read_corpus_manifest(tmp_path)
