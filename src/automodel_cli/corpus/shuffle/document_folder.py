"""A folder of documents, in random order or without duplicates: what is in it, may it be used, and its manifest.

``manifest.json`` (format ``automodel-documents/1``), written last and deterministic:

| key        | value                                                                                        |
|------------|----------------------------------------------------------------------------------------------|
| format     | "automodel-documents/1"                                                                      |
| text_key   | the field that holds the text                                                                |
| documents  | documents in all files                                                                       |
| duplicates | documents left out because their text came before; null if nobody looked                     |
| bad_rows   | rows that were left out                                                                      |
| files      | a list in reading order: name, split ("train" or "val"), documents, bytes, xxh3              |
| left_out   | documents left out by each filter (absent where nobody filtered)                             |
| reports    | reports beside the documents: name, bytes, xxh3 (absent where there is none)                 |
| source     | what was read: kind, name, files, bytes, first_files, names_and_sizes                        |
| options    | what was asked, as far as it decides the bytes                                               |
| versions   | automodel                                                                                    |
| self       | hash of all this                                                                             |

While a run is under way, or after it was killed, the folder holds ``.shuffle``; it begins anew from there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import xxhash

from automodel_cli.corpus.build.output import Output
from automodel_cli.corpus.build.pipeline import BadRows
from automodel_cli.corpus.documents.units import Split
from automodel_cli.corpus.formats.manifest import MANIFEST_NAME, ListedFile, Manifest
from automodel_cli.corpus.shuffle.buckets import JOB_NAME, WORK_FILES
from automodel_cli.corpus.shuffle.document_files import DocumentFile, is_document_file, names_of
from automodel_cli.errors import DataError
from automodel_cli.files import ANY_TEMPORARY, fsync_folder, leads_away, names_format
from automodel_cli.json_files import Count, Items

WORK_NAME = ".shuffle"
REPORT_NAMES = ("report.json", "report.html")


@dataclass(frozen=True, kw_only=True)
class DocumentsManifest(Manifest):
    """What a folder of documents says of itself."""

    FORMAT = "automodel-documents/1"
    HINT = "shuffle the documents again, into another folder; or name the files with a glob"

    text_key: str
    duplicates: Count | None
    files: Items[DocumentFile]
    left_out: dict[str, Count] | None = None
    reports: Items[ListedFile] = ()

    def of_split(self, split: Split) -> list[DocumentFile]:
        """The files of one split, in order."""
        return [file for file in self.files if file.split == split]

    def listed(self) -> Iterable[tuple[Path, int]]:
        return [(self.folder / file.name, file.bytes) for file in (*self.files, *self.reports)]

    def body(self) -> dict[str, Any]:
        body = super().body()
        for key in ("left_out", "reports"):
            if not body[key]:
                del body[key]  # as in folders from before there was such a thing
        return body

    @classmethod
    def read(cls, path: Path, **known: Any) -> Self:
        manifest = super().read(path, **known)
        for file, _ in manifest.listed():
            if not (is_document_file(file.name) or file.name in REPORT_NAMES) or leads_away(file, path):
                raise DataError(f"{path} names {file.name}, which is not a file of documents in this folder", cls.HINT)
        return manifest


@dataclass(frozen=True)
class Finished:
    """What the manifest is made of."""

    documents: int
    duplicates: int | None
    bad_rows: BadRows
    files: tuple[DocumentFile, ...]


def read_documents_manifest(folder: Path) -> DocumentsManifest | None:
    """The manifest of a complete folder of documents; None if there is none, or one of something else.

    Raises:
        DataError: it is damaged, or names a file that is not one of its folder.
    """
    path = folder / MANIFEST_NAME
    return DocumentsManifest.read(path) if names_format(path, DocumentsManifest.FORMAT) else None


class DocumentsOutput(Output[DocumentsManifest]):
    """Names and state of a run's files, which begin with ``name``.

    ``work_folder``, for temporary files, is always the same for an output folder, so that a later run finds what was
    left.
    """

    manifest_type, what = DocumentsManifest, "documents"

    def __init__(self, folder: Path, name: str, temp_dir: str | None = None) -> None:
        super().__init__(folder)
        self.name = name
        self.work_folder = self.shuffle_folder
        if temp_dir is not None:
            mark = xxhash.xxh3_64_hexdigest(str(folder.resolve()).encode())
            self.work_folder = Path(temp_dir) / f".automodel-shuffle-{mark}"

    def written_names(self) -> re.Pattern[str]:
        return re.compile(rf"{names_of(self.name).pattern}|{re.escape(MANIFEST_NAME)}{ANY_TEMPORARY}")

    def known_names(self) -> re.Pattern[str]:
        """Also the documents of a finished run by another name."""
        manifest = self.sound_manifest()
        listed = [re.escape(file.name) for file in manifest.files] if manifest else []
        return re.compile("|".join([self.written_names().pattern, *listed]))

    def hidden(self) -> list[tuple[Path, re.Pattern[str]]]:
        return [(folder, WORK_FILES) for folder in dict.fromkeys((self.work_folder, self.shuffle_folder))]

    @property
    def has_begun(self) -> bool:
        return self.shuffle_folder.is_dir() and any(self.shuffle_folder.iterdir())

    @property
    def has_job(self) -> bool:
        """Whether a shuffle in stages is under way, or was interrupted."""
        return self.has_begun and (self.work_folder / JOB_NAME).is_dir()

    def mark(self) -> None:
        self._mark_in(self.shuffle_folder)

    def _mark_in(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "begun").touch()
        fsync_folder(self.folder)
        if self.mirror is not None:
            self.mirror.begin()
