"""Indices that are built once and read by every later start, rank and node.

An entry is some ``STEM-NAME.npy`` files and, written last, ``STEM-stamp.json``:

| key      | value                                                                                       |
|----------|---------------------------------------------------------------------------------------------|
| format   | "automodel-index/2"                                                                         |
| plan     | all that decides the index beside the data: seed, sequence length, range, epochs, ...        |
| data     | what it was made from: size, time and header of each ``.idx``                                |
| files    | {name behind STEM-: {bytes, xxh3}}                                                           |
| self     | hash of the stamp                                                                            |

An entry is used only if its stamp says what is wanted, its files have their sizes and hashes, and the arrays are of
the right shape, type and range; otherwise it is built again, with a line that says why. Entries of format 1, without
hashes, are built again too. Files appear whole (written beside, synced, renamed). One process builds while the others
of its machine wait for a lock that the kernel drops if it dies; where locks do not reach, on some network file
systems, two may build the same bytes and one replaces the other's. A folder that cannot be written costs the cache,
not the run: the indices then stay in memory.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from automodel_cli.corpus.formats.watched_file import WatchedFile
from automodel_cli.data.interface import IndexReport
from automodel_cli.errors import AutomodelError, DataError
from automodel_cli.files import (
    TEMP_SUFFIX,
    atomic_file,
    exclusive_lock,
    hash_bytes,
    hash_file,
    manifest_text,
    read_manifest,
)
from automodel_cli.json_files import Count, FileModel, PlainName, Xxh3, read_json, validated

FORMAT = "automodel-index/2"
LOCK_NAME = "index.lock"
CACHE_FOLDER = "index_mapping"  # beside the first prefix, where index_mapping_dir does not say otherwise
STAMP_SUFFIX = "-stamp.json"
_STAMP = STAMP_SUFFIX[1:]
_DESCRIPTION = "description.txt"
_NPY_HEADER_BYTES = 1 << 12
_SHOWN_REASONS = 3  # why indices are built again; of others the number
_MAPPED_BYTES = 1 << 20  # smaller arrays are read: a mapping keeps a file descriptor
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
Arrays = dict[str, np.ndarray]
_log = logging.getLogger(__name__)


class _StoredFile(FileModel):
    """What a stamp says of one file."""

    bytes: Count
    xxh3: Xxh3


class _Stamp(FileModel):
    """A stamp of this format."""

    format: str
    plan: dict[str, Any]
    data: Any
    files: dict[PlainName, _StoredFile]


@dataclass(frozen=True)
class ArraySpec:
    """Type, shape and range of a stored array: values from ``first`` to below ``end`` (of each column, or one)."""

    dtypes: tuple[str, ...]
    shape: tuple[int, ...]
    first: int
    end: int | tuple[int, ...]

    def check(self, name: str, array: np.ndarray) -> np.ndarray:
        """``array``, if it is so.

        Raises:
            DataError: it is not.
        """
        if array.dtype.name not in self.dtypes or array.shape != self.shape:
            expected = f"{' or '.join(self.dtypes)} {list(self.shape)}"
            raise DataError(f"{name} is {array.dtype} {list(array.shape)}, expected {expected}")
        if array.size and not (self.first <= array.min() and (array.max(axis=0) < self.end).all()):
            found = f"{array.min():,} to {array.max():,}"
            raise DataError(f"{name} has values {found}, expected {self.first:,} to below {self.end}")
        return array


@dataclass(frozen=True)
class IndexEntry:
    """One set of arrays: what each has to be, and how they are made.

    ``description`` is written to ``STEM-description.txt`` where there is one, for other tools.
    """

    stem: str
    plan: Mapping[str, Any]
    data: Any
    arrays: Mapping[str, ArraySpec]
    build: Callable[[], Arrays] = field(compare=False)
    description: str | None = None

    def stamp(self) -> dict[str, Any]:
        """The stamp without the sizes, as it comes back from JSON."""
        return json.loads(json.dumps({"format": FORMAT, "plan": dict(self.plan), "data": self.data}))


def stem_of(label: str, plan: Mapping[str, Any]) -> str:
    """A readable file name for an entry: ``label`` and eight hex digits of its plan."""
    digits = hash_bytes(json.dumps(dict(plan), sort_keys=True).encode())
    return f"{label}-{digits.removeprefix('xxh3:')[:8]}"


class IndexCache:
    """Entries in one folder (None: in memory only).

    Attributes:
        notes: what should be said once.
        watched: files of large arrays, which are mapped; ask them before those are used.
        asked, built, stored: entries wanted so far, those that had to be made, and those of them that are kept.
    """

    def __init__(self, folder: Path | str | None) -> None:
        self.folder = None if folder is None else Path(folder).expanduser()
        self.notes: list[str] = []
        self.watched: dict[str, list[WatchedFile]] = {}
        self.asked: list[str] = []
        self.built: list[str] = []
        self.stored: list[str] = []

    def arrays(self, entries: Sequence[IndexEntry], *, threads: int = 1) -> list[Arrays]:
        """The arrays of each entry, read where that is possible, else built and kept."""
        found = [self._load(entry, []) for entry in entries]
        self.asked += [entry.stem for entry in entries]
        if None in found:
            reasons: list[str] = []
            with self._building() as folder:
                if folder is not None:  # another process may have built them while this one waited
                    found = [have or self._load(e, reasons) for have, e in zip(found, entries, strict=True)]
                self.notes += [f"index built again, {reason}" for reason in reasons[:_SHOWN_REASONS]]
                if len(reasons) > _SHOWN_REASONS:
                    self.notes.append(f"and {len(reasons) - _SHOWN_REASONS} more indices")
                missing = [number for number, arrays in enumerate(found) if arrays is None]
                self.built += [entries[number].stem for number in missing]
                with ThreadPoolExecutor(max(threads, 1)) as pool:
                    made = pool.map(lambda number: self._make(entries[number], folder), missing)
                    for number, arrays in zip(missing, made, strict=True):
                        found[number] = arrays
        return [arrays for arrays in found if arrays is not None]

    def report(self) -> IndexReport:
        """What became of the entries that were asked for."""
        lost = set(self.built) - set(self.stored)
        return IndexReport(self.folder, len(self.asked), len(self.built), len(lost), self.notes)

    # ---------------------------------------------------------------------------------------- reading

    def _load(self, entry: IndexEntry, reasons: list[str]) -> Arrays | None:
        """The arrays of a valid entry; else None, and in ``reasons`` why one that is there is not used."""
        names = [_STAMP, *(f"{name}.npy" for name in entry.arrays)]
        if self.folder is None or not any(self._path(entry, name).exists() for name in names):
            return None
        try:
            stamp = read_stamp(self._path(entry, _STAMP))
            if stamp is None:
                raise DataError("it was not finished")
            wanted = entry.stamp()
            if stamp.data != wanted["data"]:
                raise DataError("the data has changed since")
            if stamp.plan != wanted["plan"]:
                raise DataError("it is of another plan")
            watched: list[WatchedFile] = []
            arrays = {
                name: spec.check(name, self._read_array(entry, f"{name}.npy", stamp, watched))
                for name, spec in entry.arrays.items()
            }
        except AutomodelError as error:
            reasons.append(f"{entry.stem}: {error.message}")
            return None
        self.watched[entry.stem] = watched
        return arrays

    def _path(self, entry: IndexEntry, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{entry.stem}-{name}"

    def _read_array(self, entry: IndexEntry, name: str, stamp: _Stamp, watched: list[WatchedFile]) -> np.ndarray:
        """The array in one file, mapped where it is large, if the file is what the stamp says of it."""
        path, stored = self._path(entry, name), stamp.files.get(name)
        if stored is None or not path.is_file() or path.stat().st_size != stored.bytes:
            raise DataError(f"{path.name} is missing or was cut off")
        try:
            file = WatchedFile(path, stored.bytes)
            content = file.map() if stored.bytes > _MAPPED_BYTES else file.read()
        except OSError as error:
            raise DataError(f"{path.name} cannot be read: {error.strerror}") from error
        if hash_bytes(content.data) != stored.xxh3:
            raise DataError(f"{path.name} is damaged: its hash is not the one in the stamp")
        watched.append(file)
        return _as_array(path.name, content)

    # --------------------------------------------------------------------------------------- building

    @contextlib.contextmanager
    def _building(self) -> Iterator[Path | None]:
        """Hold the right to build; yields the folder to write to, None where nothing can be written."""
        if self.folder is None:
            yield None
            return
        with contextlib.ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                lock = exclusive_lock(self.folder / LOCK_NAME, busy="", wait=True)
                stack.enter_context(lock)
            except (AutomodelError, OSError) as error:
                if not isinstance(error, OSError) or error.errno not in _NO_LOCKS:
                    self.notes.append(f"the index is built at each start and kept in memory: {error}")
                    yield None
                    return
                _log.debug("no locks in %s: %s", self.folder, error)
            yield self.folder

    def _make(self, entry: IndexEntry, folder: Path | None) -> Arrays:
        arrays = entry.build()
        assert arrays.keys() == entry.arrays.keys()
        if folder is None:
            return arrays
        try:
            self._store(entry, arrays)
        except (AutomodelError, OSError) as error:
            self.notes.append(f"the index of {entry.stem} is kept in memory: {error}")
            return arrays
        self.stored.append(entry.stem)
        return self._load(entry, []) or arrays  # mapped, shared with the other ranks of this machine

    def _store(self, entry: IndexEntry, arrays: Arrays) -> None:
        """Publish arrays and description, then the stamp."""
        stamp, files = self._path(entry, _STAMP), {}
        stamp.unlink(missing_ok=True)
        for leftover in stamp.parent.glob(f"{entry.stem}-*{TEMP_SUFFIX}"):
            leftover.unlink(missing_ok=True)
        contents: dict[str, Any] = {f"{name}.npy": array for name, array in arrays.items()}
        if entry.description is not None:
            contents[_DESCRIPTION] = entry.description.encode()
        for name, content in contents.items():
            with atomic_file(path := self._path(entry, name), unique=True) as handle:
                if isinstance(content, bytes):
                    handle.write(content)
                else:
                    np.save(handle, content, allow_pickle=False)
            files[name] = {"bytes": path.stat().st_size, "xxh3": hash_file(path)}
        with atomic_file(stamp, unique=True) as handle:
            handle.write(manifest_text({**entry.stamp(), "files": files}).encode())


def read_stamp(path: Path) -> _Stamp | None:
    """The stamp at ``path``; None where there is none.

    Raises:
        DataError: it is damaged, or of another format.
    """
    if not path.exists():
        return None
    stamp = read_json(path)
    found = stamp.get("format") if isinstance(stamp, dict) else None
    if found == "automodel-index/1":
        raise DataError(f"it has no checksums ({found})", "it is built again by the next run")
    if not isinstance(found, str) or (found.startswith("automodel-index/") and found != FORMAT):
        raise DataError(f"{path.name} is of format {found!r:.60}, expected {FORMAT!r}", "delete it")
    return validated(read_manifest(path), _Stamp, path)


def _as_array(name: str, content: np.ndarray) -> np.ndarray:
    """The array that the bytes of a ``.npy`` file (version 1) hold; a view, never unpickled."""
    stream = io.BytesIO(content[:_NPY_HEADER_BYTES].tobytes())
    try:
        np.lib.format.read_magic(stream)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        if dtype.hasobject or fortran:
            raise ValueError(f"{dtype} in another order" if fortran else "it holds Python objects")
        return content[stream.tell() :].view(dtype).reshape(shape)
    except (ValueError, TypeError, SyntaxError) as error:
        raise DataError(f"{name} is damaged: {error}") from None


def check_folder(folder: Path) -> tuple[int, list[str]]:
    """Hash all that the stamps in ``folder`` list: (files hashed, what is wrong).

    An entry that is damaged is built again by the next run; it costs time, not samples.
    """
    hashed, problems = 0, []
    for path in sorted(folder.glob(f"*-{_STAMP}")):
        try:
            stamp = read_stamp(path)
        except DataError as error:
            problems.append(f"{path}: {error.message}")
            continue
        for name, stored in stamp.files.items() if stamp is not None else ():
            file = path.with_name(f"{path.name.removesuffix(_STAMP)}{name}")
            hashed += 1
            if not file.is_file() or file.stat().st_size != stored.bytes:
                problems.append(f"{file} is missing or was cut off")
            elif hash_file(file) != stored.xxh3:
                problems.append(f"{file} was changed: its hash is not the one in its stamp")
    return hashed, problems
