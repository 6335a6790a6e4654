"""Which files a dataset argument stands for, and what kind each is: by suffix, in the order of their names."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from automodel_cli.corpus.document_folder import WORK_NAME, read_documents_manifest
from automodel_cli.errors import DataError

_COMPRESSIONS = {".gz": "gz", ".zst": "zst"}
_ROW_KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet"}
_TEXT_ENDINGS = """
    .txt .text .md .markdown .rst .org .tex .adoc .csv .tsv .log .srt .vtt .html .htm .xml .css .scss
    .py .pyi .pyx .c .h .cc .cpp .cxx .hh .hpp .cu .cuh .rs .go .java .kt .scala .js .jsx .ts .tsx .mjs .rb .php .pl .pm
    .lua .r .jl .swift .m .mm .hs .ml .mli .ex .exs .erl .clj .el .lisp .scm .f .f90 .sql .sh .bash .zsh .ps1 .bat
    .yaml .yml .toml .ini .cfg .conf .cmake .mk .proto .vim .tcl .asm .s
"""
_TEXT_SUFFIXES = frozenset(_TEXT_ENDINGS.split())
FileKind = Literal["text", "jsonl", "json", "parquet"]


@dataclass(frozen=True)
class SourceFile:
    """One input file. ``name`` is relative to what the user named, with forward slashes."""

    path: str
    name: str
    kind: FileKind
    compression: Literal["", "gz", "zst"]
    bytes: int
    mtime_ns: int


def is_local(dataset: str) -> bool:
    """Whether ``dataset`` names files here rather than a dataset on the Hub.

    Raises:
        DataError: it looks like a path and nothing is there.
    """
    if Path(dataset).exists() or glob.has_magic(dataset):
        return True
    suffixes = {suffix.lower() for suffix in Path(dataset).suffixes}
    known = suffixes & (_TEXT_SUFFIXES | set(_ROW_KINDS) | set(_COMPRESSIONS))
    if known or dataset.startswith(("/", "./", "../", "~")) or dataset.count("/") > 1:
        raise DataError(f"there is no file or folder {dataset}", "check --dataset")
    return False


def dataset_name(dataset: str) -> str:
    """A short name for folders: last part of a Hub name or path, without suffixes."""
    parts = [part for part in re.split(r"[\\/]+", dataset) if part not in ("", ".", "..", "~")]
    plain = [part for part in parts if not glob.has_magic(part)] or ["corpus"]
    name = re.sub(r"(\.(jsonl|ndjson|json|parquet|txt|md|gz|zst))+$", "", plain[-1], flags=re.IGNORECASE)
    return name or "corpus"


@dataclass(frozen=True)
class Listing:
    """The files of a source and a line on what was left out, if anything was."""

    files: list[SourceFile]
    note: str = ""


def list_files(dataset: str, split: str = "train") -> Listing:
    """The input files that ``dataset`` (a file, folder or glob) stands for, sorted by name.

    A folder that `preprocess shuffle` made stands for the documents of ``split``.

    Raises:
        DataError: there is none, or a pattern mixes training and validation documents.
    """
    path = Path(dataset)
    if path.is_dir():
        return _list_shuffled(path, split) or _list_folder(path)
    if path.exists():
        return Listing([_source_file(path, path.name)])
    found = [p for p in glob.glob(dataset, recursive=True) if Path(p).is_file()]  # noqa: PTH207 (absolute patterns)
    if not found:
        raise DataError(
            f"no file matches {dataset}", "check --dataset; quote a pattern that the shell should leave"
        )
    _refuse_mixed_splits(found)
    root = os.path.commonpath([str(Path(p).parent) for p in found])
    files = [_source_file(Path(p), Path(p).relative_to(root).as_posix()) for p in found]
    return Listing(sorted(files, key=lambda file: file.name))


def _list_shuffled(folder: Path, split: str) -> Listing | None:
    """The files of one split, if ``folder`` holds shuffled documents."""
    manifest = read_documents_manifest(folder)
    if manifest is None:
        if (folder / WORK_NAME).is_dir():
            raise DataError(f"{folder} holds an interrupted shuffle", "run its command again")
        return None
    chosen = [file.name for file in manifest.files if file.split == split]
    if not chosen:
        raise DataError(f"{folder} holds no documents of split {split!r}", "choose train or val")
    left_out = len(manifest.files) - len(chosen)
    note = f"{folder}: shuffled documents, split {split}" + (
        f"; {left_out:,} files left out" * bool(left_out)
    )
    return Listing([_source_file(folder / name, name) for name in chosen], note)


def _refuse_mixed_splits(found: Sequence[str]) -> None:
    """Validation documents must not be trained on by accident."""
    for folder in {Path(p).parent for p in found}:
        manifest = read_documents_manifest(folder)
        here = {Path(p).name for p in found if Path(p).parent == folder}
        splits = {file.split for file in manifest.files if file.name in here} if manifest else set()
        if len(splits) > 1:
            raise DataError(
                f"the pattern mixes training and validation documents in {folder}",
                "name *.chunk.*.jsonl or *.val.jsonl",
            )


def list_several(datasets: Sequence[str], split: str = "train") -> Listing:
    """The files of several arguments as one list, sorted by name; a file named twice counts once.

    Raises:
        DataError: one of them stands for no file.
    """
    if len(datasets) == 1:
        return list_files(datasets[0], split)
    listings = [list_files(dataset, split) for dataset in datasets]
    by_path = {str(Path(file.path).resolve()): file for listing in listings for file in listing.files}
    root = os.path.commonpath([str(Path(path).parent) for path in by_path])
    files = [replace(file, name=Path(path).relative_to(root).as_posix()) for path, file in by_path.items()]
    notes = "; ".join(listing.note for listing in listings if listing.note)
    return Listing(sorted(files, key=lambda file: file.name), notes)


def _list_folder(folder: Path) -> Listing:
    """All files below ``folder`` of one family: rows (parquet, jsonl), else text, else JSON."""
    files: list[SourceFile] = []
    others = 0
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith((".", "__pycache__"))]
        for name in names:
            path = Path(parent) / name
            if name.startswith(".") or not path.is_file():
                continue
            if _suffix(path)[0] in _TEXT_SUFFIXES | set(_ROW_KINDS):
                files.append(_source_file(path, path.relative_to(folder).as_posix()))
            else:
                others += 1
    families = {
        "rows (.parquet, .jsonl)": [file for file in files if file.kind in ("parquet", "jsonl")],
        "text": [file for file in files if file.kind == "text"],
        ".json": [file for file in files if file.kind == "json"],
    }
    chosen, kept = next(((name, group) for name, group in families.items() if group), ("", []))
    if not kept:
        raise DataError(f"{folder} holds no text file that is understood", "name the files with a glob")
    left_out = len(files) - len(kept) + others
    note = f"{len(kept):,} files of {chosen} in {folder}; left out: {left_out:,} of other kinds"
    return Listing(sorted(kept, key=lambda file: file.name), note if left_out else "")


def _suffix(path: Path) -> tuple[str, str]:
    """``a.jsonl.gz`` -> (``.jsonl``, ``.gz``), in lower case."""
    outer = path.suffix.lower()
    if outer in _COMPRESSIONS:
        return Path(path.stem).suffix.lower(), outer
    return outer, ""


def _source_file(path: Path, name: str) -> SourceFile:
    inner, outer = _suffix(path)
    status = path.stat()
    return SourceFile(
        path=str(path),
        name=name,
        kind=_ROW_KINDS.get(inner, "text"),  # type: ignore[arg-type]
        compression=_COMPRESSIONS.get(outer, ""),  # type: ignore[arg-type]
        bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
    )
