"""A folder of shuffled documents: what is in it, may it be used, and the manifest that makes it whole.

``manifest.json`` (format ``automodel-documents/1``), written last and deterministic:

| key        | value                                                                                        |
|------------|----------------------------------------------------------------------------------------------|
| format     | "automodel-documents/1"                                                                      |
| text_key   | the field that holds the text                                                                |
| documents  | documents in all files                                                                       |
| duplicates | documents left out because their text came before; null if nobody looked                     |
| bad_rows   | rows that were left out                                                                      |
| files      | a list in reading order: name, split ("train" or "val"), documents, bytes, xxh3              |
| source     | what was read: kind, name, files, bytes, first_files, names_and_sizes                        |
| options    | what was asked, as far as it decides the bytes                                               |
| versions   | automodel                                                                                    |
| self       | hash of all this                                                                             |

While a run is under way, or after it was killed, the folder holds ``.shuffle``; it begins anew from there.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from automodel_cli import __version__
from automodel_cli.corpus.document_files import DocumentFile, names_of
from automodel_cli.corpus.units import Split
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.files import TEMP_SUFFIX, fsync_folder, read_manifest, write_manifest
from automodel_cli.json_files import Count, FileModel, Items, PlainName, Xxh3, read_bytes, validated

FORMAT = "automodel-documents/1"
MANIFEST_NAME = "manifest.json"
LOCK_NAME = ".lock"
WORK_NAME = ".shuffle"


@dataclass(frozen=True)
class DocumentsManifest:
    """What a folder of documents says of itself."""

    text_key: str
    documents: int
    duplicates: int | None
    bad_rows: int
    files: tuple[DocumentFile, ...]
    source: dict[str, Any]
    options: dict[str, Any]

    def of_split(self, split: Split) -> list[DocumentFile]:
        """The files of one split, in order."""
        return [file for file in self.files if file.split == split]


def write_documents_manifest(folder: Path, manifest: DocumentsManifest) -> None:
    """Publish the manifest: from now on the folder is complete."""
    body = {**asdict(manifest), "format": FORMAT, "versions": {"automodel": __version__}}
    write_manifest(folder / MANIFEST_NAME, body)


class _File(FileModel):
    """An entry of ``files``; a name says where in this folder, never elsewhere."""

    name: PlainName
    split: Split
    documents: Count
    bytes: Count
    xxh3: Xxh3


class _Manifest(FileModel):
    """What the table above says."""

    text_key: str
    documents: Count
    duplicates: Count | None
    bad_rows: Count
    files: Items[_File]
    source: dict[str, Any]
    options: dict[str, Any]


def read_documents_manifest(folder: Path) -> DocumentsManifest | None:
    """The manifest of a complete folder of documents; None if there is none, or one of something else.

    Raises:
        DataError: it is damaged, or names files outside of the folder.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return None
    try:
        body = read_manifest(path)
    except DataError:
        if FORMAT.encode() in read_bytes(path):
            raise
        return None  # another program's
    if body.get("format") != FORMAT:
        return None
    found = validated(body, _Manifest, path)
    files = tuple(DocumentFile(**file.model_dump()) for file in found.files)
    fields = {name: getattr(found, name) for name in _Manifest.model_fields}
    return DocumentsManifest(**fields | {"files": files})


def finished_documents(
    folder: Path, options: dict[str, Any], source: dict[str, Any]
) -> DocumentsManifest | None:
    """The manifest of a complete folder made just so; None if there is none yet.

    Raises:
        ConfigError: it was made in another way, or holds something else.
        DataError: its manifest is damaged, or a file is missing.
    """
    manifest = read_documents_manifest(folder)
    if manifest is None:
        _refuse_foreign(folder)
        return None
    made, asked = {**manifest.options, **manifest.source}, {**options, **source}
    if made != asked:
        changed = [
            f"{k} {made.get(k)} -> {asked.get(k)}" for k in sorted(asked) if made.get(k) != asked.get(k)
        ]
        raise ConfigError(
            f"{folder} holds documents made in another way: {', '.join(changed)}",
            "use another --output-dir, or --overwrite to replace them",
        )
    for file in manifest.files:
        path = folder / file.name
        if not path.is_file() or path.stat().st_size != file.bytes:
            raise DataError(
                f"{path} is missing or has another size than the manifest says", "use --overwrite"
            )
    return manifest


def prepare(folder: Path, name: str, *, overwrite: bool) -> None:
    """Make ready for a new run: what an interrupted one left goes; other people's files are not touched.

    Raises:
        ConfigError: there are files of the names to be written that no run of ours began.
    """
    work = folder / WORK_NAME
    ours = [path for path in folder.iterdir() if names_of(name).fullmatch(path.name)]
    if ours and not work.exists() and not overwrite:
        raise ConfigError(
            f"{folder} holds {min(path.name for path in ours)} but no manifest of ours",
            "use another --output-dir, or --overwrite to replace it",
        )
    if overwrite:
        _forget(folder)
    _refuse_foreign(folder)
    for path in ours:
        path.unlink(missing_ok=True)
    (folder / (MANIFEST_NAME + TEMP_SUFFIX)).unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    fsync_folder(folder)


def _refuse_foreign(folder: Path) -> None:
    if (folder / MANIFEST_NAME).exists():
        raise ConfigError(
            f"{folder} holds something else: its {MANIFEST_NAME} is not of shuffled documents",
            "use another --output-dir",
        )


def _forget(folder: Path) -> None:
    """Remove a finished run, the manifest first, so that it never speaks of files that are gone."""
    manifest = read_documents_manifest(folder)
    if manifest is None:
        return
    (folder / MANIFEST_NAME).unlink()
    fsync_folder(folder)
    for file in manifest.files:
        (folder / file.name).unlink(missing_ok=True)
