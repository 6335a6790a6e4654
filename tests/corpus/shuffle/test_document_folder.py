"""The manifest of shuffled documents is read as a stranger's file: names stay in the folder."""

import json
from pathlib import Path

import pytest

from automodel_cli.corpus.documents.listing import list_files
from automodel_cli.corpus.shuffle.document_files import DocumentFile
from automodel_cli.corpus.shuffle.document_folder import (
    DocumentsManifest,
    DocumentsOutput,
    read_documents_manifest,
)
from automodel_cli.errors import DataError
from automodel_cli.files import read_manifest, write_manifest

FILE = DocumentFile(name="x.chunk.00000.jsonl", split="train", documents=1, bytes=3, xxh3="xxh3:0123456789abcdef")


def whole(folder: Path) -> DocumentsManifest:
    made = DocumentsManifest(
        folder=folder,
        text_key="text",
        documents=1,
        duplicates=None,
        bad_rows=0,
        files=(FILE,),
        source={"name": "x"},
        options={"seed": 1},
    )
    made.write()
    return made


def test_written_and_read(tmp_path: Path) -> None:
    assert whole(tmp_path) == read_documents_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    assert read_documents_manifest(tmp_path) is None


@pytest.mark.parametrize("name", ["../canary.jsonl", "/elsewhere/canary.jsonl", "a/../../canary.jsonl", "", "a\nb"])
def test_names_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    canary = tmp_path / "canary.jsonl"
    canary.write_text('{"text": "secret"}\n')
    whole(folder)
    body = read_manifest(folder / "manifest.json")
    body["files"][0]["name"] = name
    del body["self"]
    write_manifest(folder / "manifest.json", body)
    with pytest.raises(DataError, match=r"manifest\.json") as caught:
        list_files(str(folder))
    assert "\n" not in caught.value.message
    DocumentsOutput(folder, "x").clear()
    assert canary.exists()


@pytest.mark.parametrize(
    "change", [{"documents": -1}, {"files": 5}, {"files": [{}]}, {"text_key": None}, {"bad_rows": "3"}]
)
def test_what_is_no_manifest(tmp_path: Path, change: dict) -> None:
    whole(tmp_path)
    body = {**json.loads((tmp_path / "manifest.json").read_bytes()), **change}
    del body["self"]
    write_manifest(tmp_path / "manifest.json", body)
    with pytest.raises(DataError, match=r"manifest\.json"):
        read_documents_manifest(tmp_path)
