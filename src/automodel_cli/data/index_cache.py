"""Indices that are built once and read by every later start, rank and node.

An entry is some ``STEM-NAME.npy`` files and, written last, ``STEM-stamp.json``:

| key      | value                                                                                       |
|----------|---------------------------------------------------------------------------------------------|
| format   | "automodel-index/1"                                                                         |
| plan     | all that decides the index beside the data: seed, sequence length, range, epochs, ...        |
| data     | what it was made from: size, time and header of each ``.idx``                                |
| arrays   | {name: bytes of its file}                                                                   |

An entry is used only if its stamp says what is wanted and its files have their sizes; otherwise it is built
again, with a line that says why. Files appear whole (written beside, synced, renamed). One process builds while
the others of its machine wait for a lock that the kernel drops if it dies; where locks do not reach, on some
network file systems, two may build the same bytes and one replaces the other's. A folder that cannot be written
costs the cache, not the run: the indices then stay in memory.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from automodel_cli.errors import AutomodelError
from automodel_cli.files import TEMP_SUFFIX, exclusive_lock, fsync_file, hash_bytes, publish

FORMAT = "automodel-index/1"
LOCK_NAME = "index.lock"
_STAMP = "stamp.json"
_DESCRIPTION = "description.txt"
_MAPPED_BYTES = 1 << 20  # smaller arrays are read: a mapping keeps a file descriptor
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
Arrays = dict[str, np.ndarray]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexEntry:
    """One set of arrays: its file names, what it has to be, and how it is made.

    ``description`` is written to ``STEM-description.txt`` where there is one, for other tools.
    """

    stem: str
    plan: Mapping[str, Any]
    data: Any
    names: tuple[str, ...]
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
    """Entries in one folder (None: in memory only). ``notes`` collects what should be said once.

    ``asked`` names the entries that were wanted so far, ``built`` those that had to be made, ``stored`` those of them
    that a later start will find.
    """

    def __init__(self, folder: Path | str | None) -> None:
        self.folder = None if folder is None else Path(folder).expanduser()
        self.notes: list[str] = []
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
                self.notes += _shortened(reasons)
                missing = [number for number, arrays in enumerate(found) if arrays is None]
                self.built += [entries[number].stem for number in missing]
                for number, arrays in zip(
                    missing, _map(lambda n: self._make(entries[n], folder), missing, threads), strict=True
                ):
                    found[number] = arrays
        return [arrays for arrays in found if arrays is not None]

    # ---------------------------------------------------------------------------------------- reading

    def _load(self, entry: IndexEntry, reasons: list[str]) -> Arrays | None:
        """The arrays of a valid entry; else None, and in ``reasons`` why one that is there is not used."""
        if self.folder is None:
            return None
        stamp = _read_stamp(self._path(entry, _STAMP))
        files = {name: self._path(entry, f"{name}.npy") for name in entry.names}
        if stamp is None:
            if any(path.exists() for path in files.values()):
                reasons.append(f"{entry.stem}: it was not finished")
            return None
        sizes = stamp.pop("arrays", {})
        if stamp != entry.stamp():
            reasons.append(f"{entry.stem}: {_difference(stamp, entry.stamp())}")
            return None
        for name, path in files.items():
            if not path.exists() or path.stat().st_size != sizes.get(name):
                reasons.append(f"{entry.stem}: {path.name} is missing or was cut off")
                return None
        try:
            return {name: _read_array(path) for name, path in files.items()}
        except (OSError, ValueError) as error:
            reasons.append(f"{entry.stem}: {error}")
            return None

    def _path(self, entry: IndexEntry, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{entry.stem}-{name}"

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
        assert tuple(arrays) == entry.names
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
        stamp = self._path(entry, _STAMP)
        stamp.unlink(missing_ok=True)
        for leftover in stamp.parent.glob(f"{entry.stem}-*{TEMP_SUFFIX}"):
            leftover.unlink(missing_ok=True)
        sizes = {}
        for name, array in arrays.items():
            path = self._path(entry, f"{name}.npy")
            with _published(path) as handle:
                np.save(handle, array, allow_pickle=False)
            sizes[name] = path.stat().st_size
        if entry.description is not None:
            with _published(self._path(entry, _DESCRIPTION)) as handle:
                handle.write(entry.description.encode())
        body = {**entry.stamp(), "arrays": sizes}
        with _published(stamp) as handle:
            handle.write(json.dumps(body, indent=2, sort_keys=True).encode())


@contextlib.contextmanager
def _published(path: Path) -> Iterator[IO[bytes]]:
    """A temporary of this process alone, which becomes ``path`` when it is whole."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}{TEMP_SUFFIX}")
    try:
        with temporary.open("xb") as handle:
            yield handle
            fsync_file(handle)
        publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _read_stamp(path: Path) -> dict[str, Any] | None:
    try:
        stamp = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) else None


def _difference(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    if stored.get("data") != wanted["data"]:
        return "the data was changed since"
    if stored.get("format") != wanted["format"]:
        return f"its format is {stored.get('format')}"
    return "it is of another plan"


def _read_array(path: Path) -> np.ndarray:
    mapped = path.stat().st_size > _MAPPED_BYTES
    array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    return array.view(np.ndarray)  # a memmap's own slicing costs microseconds


def _map(function: Callable[[int], Arrays], numbers: Sequence[int], threads: int) -> list[Arrays]:
    if threads < 2 or len(numbers) < 2:
        return [function(number) for number in numbers]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, numbers))


def _shortened(reasons: Sequence[str], shown: int = 3) -> list[str]:
    """One line for each index that is built again, or a few and a count."""
    lines = [f"index built again, {reason}" for reason in reasons[:shown]]
    return lines if len(reasons) <= shown else [*lines, f"and {len(reasons) - shown} more indices"]
