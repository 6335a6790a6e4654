"""Which files a dataset argument stands for, and what kind each is, in the order of their names.

The kind is what the suffix says. The content is looked at too (``content``): a compressed file is unpacked whatever
its name, and what is no text is never read as text. A file without a known suffix is text only if it looks like text.
"""

from __future__ import annotations

import os
import posixpath
import re
import stat
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PurePosixPath
from typing import Literal, TypeVar

from automodel_cli.corpus.documents.compressed import Compression
from automodel_cli.corpus.documents.content import Content, look_inside
from automodel_cli.corpus.documents.globbing import expand, is_pattern, walk
from automodel_cli.corpus.documents.objects import Objects, find_objects
from automodel_cli.corpus.documents.units import InputFormat
from automodel_cli.corpus.formats.foreign_files import advice_for_text, command_to_train, dtype_beside
from automodel_cli.corpus.formats.manifest import MANIFEST_NAME
from automodel_cli.corpus.shuffle.document_folder import (
    WORK_NAME,
    DocumentsManifest,
    read_documents_manifest,
)
from automodel_cli.errors import DataError
from automodel_cli.json_files import MAX_JSON_BYTES
from automodel_cli.storage.opening import open_store
from automodel_cli.storage.reading import pinned, unpinned
from automodel_cli.storage.store import ObjectInfo
from automodel_cli.storage.urls import is_remote, is_url, join_url, local_path

_COMPRESSIONS = {".gz": "gz", ".bz2": "bz2", ".xz": "xz", ".zst": "zst"}
_ROW_KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet"}
_TEXT_ENDINGS = """
    .txt .text .md .markdown .rst .org .tex .adoc .csv .tsv .log .srt .vtt .html .htm .xml .css .scss
    .py .pyi .pyx .c .h .cc .cpp .cxx .hh .hpp .cu .cuh .rs .go .java .kt .scala .js .jsx .ts .tsx .mjs .rb .php .pl .pm
    .lua .r .jl .swift .m .mm .hs .ml .mli .ex .exs .erl .clj .el .lisp .scm .f .f90 .sql .sh .bash .zsh .ps1 .bat
    .yaml .yml .toml .ini .cfg .conf .cmake .mk .proto .vim .tcl .asm .s
"""
_TEXT_SUFFIXES = frozenset(_TEXT_ENDINGS.split())
FileKind = Literal["text", "jsonl", "json", "parquet"]
PathT = TypeVar("PathT", bound=PurePath)
_MOST_LOOKED_AT = 64  # of objects
_LOOK_AT_ONCE = 16
_KIND_WORDS = {"jsonl": "JSON lines", "json": "JSON"}


@dataclass(frozen=True)
class SourceFile:
    """One input file.

    Attributes:
        name: relative to what the user named, with forward slashes, in UTF-8 and without control characters.
        not_text: why a file of a folder is of no use, "" if it is.
        looks_like_rows: it is read as text, and looks like JSON lines.
    """

    path: str
    name: str
    kind: FileKind
    compression: Compression
    bytes: int
    mtime_ns: int
    not_text: str = ""
    looks_like_rows: bool = False

    @property
    def stamp(self) -> str:
        """Changes when the content does."""
        return unpinned(self.path).etag if is_remote(self.path) else str(self.mtime_ns)


def is_local(dataset: str) -> bool:
    """Whether ``dataset`` names files, here or in object storage, rather than a dataset on the Hub.

    Raises:
        DataError: it looks like a path and nothing is there.
    """
    if is_url(dataset) or Path(dataset).exists() or is_pattern(dataset):
        return True
    if Path(dataset).is_symlink():
        raise _broken_link(Path(dataset))
    suffixes = {suffix.lower() for suffix in Path(dataset).suffixes}
    if dtype_beside(Path(f"{dataset}.bin")) is not None:
        raise DataError(
            f"{printable(dataset)} is the prefix of Megatron's token files, expected text",
            command_to_train(Path(f"{dataset}.idx")),
        )
    known = suffixes & (_TEXT_SUFFIXES | set(_ROW_KINDS) | set(_COMPRESSIONS))
    if known or dataset.startswith(("/", "./", "../", "~")) or dataset.count("/") > 1:
        raise DataError(f"there is no file or folder {printable(dataset)}", "check --dataset")
    return False


def printable(name: str) -> str:
    r"""A file name for people and manifests: bytes that are not UTF-8 and control characters as ``\xNN``."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)


def dataset_name(dataset: str) -> str:
    """A short name for folders: last part of a Hub name or path, without suffixes."""
    parts = [part for part in re.split(r"[\\/]+", dataset) if part not in ("", ".", "..", "~")]
    plain = [part for part in parts if not is_pattern(part)] or ["corpus"]
    suffixes = r"(\.(jsonl|ndjson|json|parquet|txt|md|gz|bz2|xz|zst))+$"
    return printable(re.sub(suffixes, "", plain[-1], flags=re.IGNORECASE)) or "corpus"


@dataclass(frozen=True)
class Listing:
    """The files of a source and a line on what was left out, if anything was."""

    files: list[SourceFile]
    note: str = ""


def list_files(dataset: str, split: str = "train", input_format: InputFormat = "auto") -> Listing:
    """The input files that ``dataset`` (a file, folder or glob) stands for, sorted by name.

    A folder that `preprocess shuffle` made stands for the documents of ``split``.

    Raises:
        DataError: there is none, a file is not what it is taken for, or a pattern mixes training and validation
            documents.
    """
    if is_remote(dataset):
        return _list_remote(dataset, split, input_format)
    dataset = local_path(dataset)
    path = Path(dataset)
    if path.is_dir():
        return _list_shuffled(path, split) or _list_folder(path, input_format)
    if path.exists():
        return _with_note([_source_file(path, path.name, input_format)], [])
    found, others = _sort_out(expand(dataset))
    left_out = _in_words(others)
    if not found:
        reasons = f" ({left_out})" if left_out else ""
        raise DataError(
            f"no file matches {printable(dataset)}{reasons}",
            "check --dataset; quote a pattern, so that the shell does not expand it",
        )
    _refuse_mixed_splits(found)
    root = os.path.commonpath([str(p.parent) for p in found])
    files = [_source_file(p, p.relative_to(root).as_posix(), input_format) for p in found]
    return _with_note(files, [f"left out: {left_out}"] if left_out else [])


def _sort_out(paths: Iterable[Path]) -> tuple[list[Path], dict[str, list[Path]]]:
    """The files among ``paths``, and what is left out and said, by its sort."""
    files: list[Path] = []
    others: dict[str, list[Path]] = {"broken links": [], "pipes, sockets or devices": []}
    for path in paths:
        if path.is_file():
            files.append(path)
        elif not path.exists():
            others["broken links"].append(path)
        elif not path.is_dir():
            others["pipes, sockets or devices"].append(path)
    return files, others


def _in_words(others: dict[str, list[Path]], other_kinds: int = 0) -> str:
    """What is left out, with the first of each sort."""
    words = [f"{other_kinds:,} of other kinds"] if other_kinds else []
    for what, paths in others.items():
        names = [printable(str(path)) for path in paths]
        words += [f"{len(names):,} {what} ({names[0]}{', ...' * (len(names) > 1)})"] if names else []
    return ", ".join(words)


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
    note = f"{folder}: shuffled documents, split {split}" + (f"; {left_out:,} files left out" * bool(left_out))
    return Listing([_source_file(folder / name, name, "auto") for name in chosen], note)


def _refuse_mixed_splits(found: Sequence[Path]) -> None:
    """Validation documents must not be trained on by accident."""
    for folder in {path.parent for path in found}:
        manifest = read_documents_manifest(folder)
        here = {path.name for path in found if path.parent == folder}
        splits = {file.split for file in manifest.files if file.name in here} if manifest else set()
        if len(splits) > 1:
            raise _mixed(folder)


def _mixed(folder: Path | str) -> DataError:
    return DataError(
        f"the pattern mixes training and validation documents in {folder}", "name *.chunk.*.jsonl or *.val.jsonl"
    )


def list_several(datasets: Sequence[str], split: str = "train", input_format: InputFormat = "auto") -> Listing:
    """The files of several arguments as one list, sorted by name; a file named twice, or by a link too, counts once.

    A link keeps its own name: in a cache of downloads the files behind links are named after their hashes.

    Raises:
        DataError: one of them stands for no file.
    """
    if len(datasets) == 1:
        return list_files(datasets[0], split, input_format)
    listings = [list_files(dataset, split, input_format) for dataset in datasets]
    if any(is_remote(dataset) for dataset in datasets):
        return _joined(datasets, listings)
    once: dict[Path, SourceFile] = {}
    for file in (file for listing in listings for file in listing.files):
        once.setdefault(Path(file.path).resolve(), file)
    named = {os.path.abspath(file.path): file for file in once.values()}  # noqa: PTH100 (links stay)
    root = os.path.commonpath([str(Path(path).parent) for path in named])
    files = [replace(file, name=printable(Path(path).relative_to(root).as_posix())) for path, file in named.items()]
    return _with_note(files, [listing.note for listing in listings if listing.note], said=True)


def _list_folder(folder: Path, input_format: InputFormat) -> Listing:
    """All files below ``folder`` of one family: rows (parquet, jsonl), else text, else JSON."""
    tree = walk(folder, skip=("__pycache__",))
    inside = [path for parent in tree.folders for path in sorted(parent.iterdir())]
    found, others = _sort_out(path for path in inside if not path.name.startswith("."))
    others["links to folders that are read anyway"] = tree.links_to_known
    chosen, kept = _one_family(found, input_format)
    ids = sorted(folder.glob("*.bin"))
    if ids and chosen in ("", ".json"):  # the JSON beside token files is their manifest and tokenizer
        raise DataError(f"{printable(str(folder))} is a folder of token files, expected text", command_to_train(ids[0]))
    if not kept:
        reasons = f" ({_in_words(others)})" if _in_words(others) else ""
        raise DataError(
            f"{printable(str(folder))} holds no text file of a known format{reasons}",
            "name the files with a glob, or say what they are with --input-format",
        )
    files = [_source_file(path, path.relative_to(folder).as_posix(), input_format, in_folder=True) for path in kept]
    left_out = _in_words(others, len(found) - len(kept))
    note = f"{len(kept):,} files of {chosen} in {printable(str(folder))}; left out: {left_out}"
    return _with_note(files, [note] if left_out else [])


def _one_family(found: list[PathT], input_format: InputFormat) -> tuple[str, list[PathT]]:
    """Rows (parquet, jsonl), else text, else JSON: its name, and those of ``found`` that are of it."""
    known = _TEXT_SUFFIXES | set(_ROW_KINDS)
    understood = [path for path in found if input_format != "auto" or _suffix(path)[0] in known]
    families = {"rows (.parquet, .jsonl)": ("parquet", "jsonl"), "text": ("text",), ".json": ("json",)}
    groups = {
        name: [path for path in understood if _kind(path, input_format) in kinds] for name, kinds in families.items()
    }
    return next(((name, group) for name, group in groups.items() if group), ("", []))


def _with_note(files: list[SourceFile], notes: list[str], *, said: bool = False) -> Listing:
    """The files in the order of their names, and what is odd about them (unless ``said`` before)."""
    if not said:
        notes = [*notes, *_oddities(files)]
    return Listing(sorted(files, key=lambda file: (file.name, file.path)), "; ".join(notes))


def _oddities(files: list[SourceFile]) -> list[str]:
    packed = sorted({str(file.compression) for file in files if file.compression})
    rows = [file.name for file in files if file.looks_like_rows]
    found = []
    if packed:
        count = sum(bool(file.compression) for file in files)
        found.append(f"{count:,} of {len(files):,} files compressed ({', '.join(packed)}): one process unpacks them")
    if rows:
        which = rows[0] if len(rows) == 1 else f"{len(rows):,} files ({rows[0]}, ...)"
        found.append(f"{which}: read as text, though it looks like JSON lines (--input-format jsonl reads its rows)")
    return found


def _suffix(path: PurePath) -> tuple[str, str]:
    """``a.jsonl.gz`` -> (``.jsonl``, ``.gz``), in lower case."""
    outer = path.suffix.lower()
    if outer in _COMPRESSIONS:
        return PurePath(path.stem).suffix.lower(), outer
    return outer, ""


def _kind(path: PurePath, input_format: InputFormat) -> FileKind:
    if input_format != "auto":
        return input_format
    return _ROW_KINDS.get(_suffix(path)[0], "text")  # type: ignore[return-value]


def _list_remote(url: str, split: str, input_format: InputFormat) -> Listing:
    """The objects of a URL as :func:`list_files` lists files."""
    objects = find_objects(url)
    if objects.kind == "folder":
        return _shuffled_objects(objects, split) or _folder_of_objects(objects, input_format)
    if not objects.found:
        raise DataError(f"no object matches {printable(url)}", "check --dataset; quote a pattern for the shell")
    _refuse_mixed_objects(objects)
    root = posixpath.commonpath([posixpath.dirname(f"/{name}") for name, _ in objects.found])
    named = [(posixpath.relpath(f"/{name}", root), info) for name, info in objects.found]
    return _with_note(_source_objects(named, input_format), [])


def _shuffled_objects(objects: Objects, split: str) -> Listing | None:
    """The objects of one split, if they are shuffled documents."""
    manifest = _manifest_of(objects, "")
    if manifest is None:
        return None
    there = dict(objects.found)
    chosen = [file.name for file in manifest.files if file.split == split]
    if not chosen or not all(name in there and there[name].size == size for name, size in _sizes(manifest, split)):
        raise DataError(f"{objects.base} holds no whole documents of split {split!r}", "choose train or val")
    left_out = len(manifest.files) - len(chosen)
    note = f"{objects.base}: shuffled documents, split {split}" + (f"; {left_out:,} files left out" * bool(left_out))
    return Listing(_source_objects([(name, there[name]) for name in chosen], "auto"), note)


def _sizes(manifest: DocumentsManifest, split: str) -> list[tuple[str, int]]:
    return [(file.name, file.bytes) for file in manifest.files if file.split == split]


def _manifest_of(objects: Objects, folder: str) -> DocumentsManifest | None:
    """The manifest of shuffled documents in a folder of objects, if there is one."""
    name = posixpath.join(folder, MANIFEST_NAME)
    if name not in objects.there:
        return None
    with tempfile.TemporaryDirectory(prefix="automodel-manifest-") as scratch:
        data = open_store(objects.base).read(join_url(objects.base, name), 0, MAX_JSON_BYTES)
        Path(scratch, MANIFEST_NAME).write_bytes(data)
        return read_documents_manifest(Path(scratch))


def _refuse_mixed_objects(objects: Objects) -> None:
    """Validation documents must not be trained on by accident."""
    by_folder: dict[str, set[str]] = {}
    for name, _ in objects.found:
        by_folder.setdefault(posixpath.dirname(name), set()).add(posixpath.basename(name))
    for folder, here in by_folder.items():
        manifest = _manifest_of(objects, folder)
        if manifest is not None and len({file.split for file in manifest.files if file.name in here}) > 1:
            raise _mixed(join_url(objects.base, folder))


def _folder_of_objects(objects: Objects, input_format: InputFormat) -> Listing:
    """All objects below a folder of one family, as of a folder of files."""
    there = {PurePosixPath(name): info for name, info in objects.found}
    chosen, kept = _one_family(list(there), input_format)
    if not kept:
        raise DataError(
            f"{objects.base} holds no text of a known format, of {len(there):,} objects",
            "check the URL, name the objects with a glob, or say what they are with --input-format",
        )
    files = _source_objects([(str(path), there[path]) for path in kept], input_format, in_folder=True)
    left_out = _in_words({}, len(there) - len(kept))
    note = f"{len(kept):,} files of {chosen} in {objects.base}; left out: {left_out}"
    return _with_note(files, [note] if left_out else [])


def _source_objects(
    named: list[tuple[str, ObjectInfo]], input_format: InputFormat, *, in_folder: bool = False
) -> list[SourceFile]:
    """Objects by name and content; of many, content is looked at where the name says nothing, else when it is read."""
    known = _TEXT_SUFFIXES | set(_ROW_KINDS)
    few = len(named) <= _MOST_LOOKED_AT
    paths = {name: pinned(info) for name, info in named}
    looked_at = [name for name in paths if few or _suffix(PurePosixPath(name))[0] not in known]
    with ThreadPoolExecutor(_LOOK_AT_ONCE) as threads:
        contents = dict(
            zip(looked_at, threads.map(lambda n: look_inside(paths[n], printable(n)), looked_at), strict=True)
        )
    nothing = Content("")
    return [
        _known_file(
            paths[name], printable(name), info.size, 0, contents.get(name, nothing), input_format, in_folder=in_folder
        )
        for name, info in named
    ]


def _joined(datasets: Sequence[str], listings: Sequence[Listing]) -> Listing:
    """Several URLs as one list: names are relative to what their URLs have in common."""
    if not all(is_remote(dataset) for dataset in datasets):
        raise DataError(
            "local files and URLs together are not one input", "copy them to one place, or make two corpora"
        )
    urls = {unpinned(file.path).url: file for listing in listings for file in listing.files}
    root = posixpath.commonpath([posixpath.dirname(url) for url in urls]) if urls else ""
    files = [replace(file, name=printable(posixpath.relpath(url, root))) for url, file in urls.items()]
    return _with_note(files, [listing.note for listing in listings if listing.note], said=True)


def _source_file(path: Path, name: str, input_format: InputFormat, *, in_folder: bool = False) -> SourceFile:
    """A file by its name and content.

    One that nobody named (``in_folder``) and that should be text and is not is a bad row, not the end of the job.
    """
    name = printable(name)
    if path.is_symlink() and not path.exists():
        raise _broken_link(path)
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DataError(
            f"{printable(str(path))} is a pipe, socket or device, expected a file",
            "write the text to a file first",
        )
    content = look_inside(str(path), name)
    return _known_file(str(path), name, status.st_size, status.st_mtime_ns, content, input_format, in_folder=in_folder)


def _known_file(
    path: str, name: str, size: int, mtime_ns: int, content: Content, input_format: InputFormat, *, in_folder: bool
) -> SourceFile:
    """A file whose content was looked at."""
    kind = _kind(PurePosixPath(name), input_format)
    file = SourceFile(
        path=path,
        name=name,
        kind=kind,
        compression=content.compression or _COMPRESSIONS.get(_suffix(PurePosixPath(name))[1], ""),  # type: ignore[arg-type]
        bytes=size,
        mtime_ns=mtime_ns,
        not_text=f"it is {content.not_text}" if in_folder and kind == "text" and content.kind else "",
        looks_like_rows=input_format == "auto" and kind == "text" and content.shape == "jsonl",
    )
    if not file.not_text:
        _refuse_wrong_kind(file, content, input_format)
    return file


def _broken_link(path: Path) -> DataError:
    target = printable(str(path.readlink()))
    return DataError(f"{printable(str(path))} is a link to {target}, which is not there", "check --dataset")


def _refuse_wrong_kind(file: SourceFile, content: Content, input_format: InputFormat) -> None:
    """A file that is not what its name, or ``input_format``, says: found, expected, what to do."""
    if content.kind and not content.is_parquet:
        packed = "unpack it first" if content.compression else ""
        raise DataError(
            f"{file.name} is {content.not_text}, expected text",
            packed or advice_for_text(Path(file.path), content.kind),
        )
    if content.is_parquet and file.kind != "parquet":
        raise DataError(
            f"{file.name} is a parquet file, taken for {_KIND_WORDS.get(file.kind, file.kind)}",
            "name it .parquet, or read it with --input-format parquet",
        )
    if file.kind == "parquet" and file.compression:
        raise DataError(
            f"{file.name} is a parquet file compressed as a whole",
            "unpack it first: parquet compresses itself",
        )
    known = _suffix(Path(file.name))[0] in _TEXT_SUFFIXES
    if input_format == "auto" and file.kind == "text" and not known:
        _refuse_unknown(file, content)


def _refuse_unknown(file: SourceFile, content: Content) -> None:
    """A file whose name says nothing is text unless it looks like something else."""
    if content.shape:
        looks = "JSON lines" if content.shape == "jsonl" else "JSON"
        raise DataError(
            f"{file.name} looks like {looks}, and its name does not say what it is",
            f"read its rows with --input-format {content.shape}, or its characters as they are with "
            "--input-format text",
        )
    if content.has_nulls:
        ids = "token ids without a header" if file.name.endswith(".bin") else "binary data (token ids?)"
        train = command_to_train(Path(file.path), "uint32" if content.is_wide else "")
        raise DataError(
            f"{file.name} looks like {ids}, expected text", f"--input-format text if it is text; else {train}"
        )
