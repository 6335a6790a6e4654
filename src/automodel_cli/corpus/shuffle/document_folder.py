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

While a run is under way, or after it was killed, the folder holds ``.shuffle``; it begins anew from there. Only
what the manifest lists, or a run that left ``.shuffle`` began, is ever removed.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from automodel_cli import __version__
from automodel_cli.corpus.build.output import difference, refuse_other_sizes
from automodel_cli.corpus.documents.units import Split
from automodel_cli.corpus.formats.ownership import is_ours, refuse
from automodel_cli.corpus.shuffle.buckets import WORK_FILES
from automodel_cli.corpus.shuffle.document_files import DocumentFile, is_document_file, names_of
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.files import (
    ANY_TEMPORARY,
    TEMP_SUFFIX,
    fsync_folder,
    leads_away,
    names_format,
    read_manifest,
    remove_known,
    strangers_below,
    write_manifest,
)
from automodel_cli.json_files import Count, Items, validated

FORMAT = "automodel-documents/1"
MANIFEST_NAME = "manifest.json"
LOCK_NAME = ".lock"
WORK_NAME = ".shuffle"
_BEGUN = "begun"  # in the work folder: the documents here are those of a run under way


_ANEW = "shuffle the documents again, into another folder; or name the files with a glob"


@dataclass(frozen=True)
class DocumentsManifest:
    """What a folder of documents says of itself."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    text_key: str
    documents: Count
    duplicates: Count | None
    bad_rows: Count
    files: Items[DocumentFile]
    source: dict[str, Any]
    options: dict[str, Any]

    def of_split(self, split: Split) -> list[DocumentFile]:
        """The files of one split, in order."""
        return [file for file in self.files if file.split == split]


def write_documents_manifest(folder: Path, manifest: DocumentsManifest) -> None:
    """Publish the manifest: from now on the folder is complete."""
    body = {**asdict(manifest), "format": FORMAT, "versions": {"automodel": __version__}}
    write_manifest(folder / MANIFEST_NAME, body)


def read_documents_manifest(folder: Path) -> DocumentsManifest | None:
    """The manifest of a complete folder of documents; None if there is none, or one of something else.

    Raises:
        DataError: it is damaged, or names a file that is not one of its folder.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return None
    try:
        body = read_manifest(path)
    except DataError:
        if names_format(path, FORMAT):
            raise
        return None  # another program's
    if body.pop("format", None) != FORMAT:
        return None
    del body["self"]
    body.pop("versions", None)
    manifest = validated(body, DocumentsManifest, path, hint=_ANEW)
    for file in manifest.files:
        if not is_document_file(file.name) or leads_away(folder / file.name, path):
            raise DataError(
                f"{path} names {file.name}, which is not a file of documents in this folder", _ANEW
            )
    return manifest


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
    made = {"options": manifest.options, "source": manifest.source}
    asked = {"options": options, "source": source}
    if made != asked:
        raise ConfigError(
            f"{folder} holds documents made in another way: {difference(made, asked)}",
            "use another --output-dir, or --overwrite to replace them",
        )
    refuse_other_sizes((folder / file.name, file.bytes) for file in manifest.files)
    return manifest


def prepare(folder: Path, name: str, *, overwrite: bool) -> None:
    """Make ready for a new run: what an interrupted one left goes; other people's files are not touched.

    Raises:
        ConfigError: there are files of the names to be written that no run of ours began.
    """
    _refuse_foreign(folder)
    work = folder / WORK_NAME
    listed = _listed(folder, name) if overwrite else set()
    names = re.compile(rf"{names_of(name).pattern}|{MANIFEST_NAME}{ANY_TEMPORARY}")
    there = [path for path in sorted(folder.iterdir()) if names.fullmatch(path.name)]
    begun = work.is_dir() and any(work.iterdir())
    strangers = [p for p in there if p.is_symlink() or not (begun or _is_mine(p, listed))]
    refuse([*strangers_below(work, WORK_FILES), *strangers])
    work.mkdir(exist_ok=True)
    (work / _BEGUN).touch()
    fsync_folder(folder)
    # The manifest first, so that it never speaks of files that are gone.
    for path in (folder / MANIFEST_NAME, *there, *(folder / listed_name for listed_name in sorted(listed))):
        path.unlink(missing_ok=True)
    fsync_folder(folder)


def remove_work(folder: Path) -> None:
    """Nothing is under way any more."""
    remove_known(folder / WORK_NAME, WORK_FILES)


def _is_mine(path: Path, listed: set[str]) -> bool:
    return path.name in {*listed, MANIFEST_NAME} or path.name.endswith(TEMP_SUFFIX)


def _refuse_foreign(folder: Path) -> None:
    path = folder / MANIFEST_NAME
    if path.is_symlink() or (path.exists() and not is_ours(path, FORMAT)):
        raise ConfigError(
            f"{folder} holds something else: its {MANIFEST_NAME} is not of shuffled documents",
            "use another --output-dir",
        )


def _listed(folder: Path, name: str) -> set[str]:
    """The documents of a finished run; where its manifest is damaged, what stands under the names to be written."""
    try:
        manifest = read_documents_manifest(folder)
    except DataError:
        return {path.name for path in folder.iterdir() if names_of(name).fullmatch(path.name)}
    return {file.name for file in manifest.files} if manifest else set()
