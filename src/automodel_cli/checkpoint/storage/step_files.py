"""The files of one step folder: hashed on their way to the disk, hashed again on their way back.

Hashing what leaves the process, not what is read back afterwards, also catches a disk that stores something
else; xxh3 runs at about 15 GB/s a core, far above any disk. No file is visible under its final name here: the
folder is a temporary one until :mod:`automodel_cli.checkpoint.layout` renames it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import xxhash

from automodel_cli import files
from automodel_cli.checkpoint import layout
from automodel_cli.errors import CheckpointError
from automodel_cli.json_files import MAX_JSON_BYTES, Model, open_to_read, parse_json, validated

_PIECE_BYTES = 8 << 20
_SHARED = "the run folder must be on a file system that all machines share"


def regular_files(folder: Path, names: Collection[str]) -> list[Path]:
    """Those of ``names`` that are files in ``folder``, no links, in order."""
    found = [folder / name for name in sorted(names)]
    return [path for path in found if path.is_file() and not path.is_symlink()]


class HashedOutput:
    """An unbuffered binary file being written: counts and hashes what passes."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._digest = xxhash.xxh3_64()
        self.num_bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        """Write all of ``data`` (a flat buffer of bytes)."""
        view = memoryview(data)
        for begin in range(0, len(view), _PIECE_BYTES):  # hash each piece while it is still in the cache
            piece = view[begin : begin + _PIECE_BYTES]
            done = 0
            while done < len(piece):  # a raw write may stop half-way: at 2 GiB, or on a signal
                done += self._handle.write(piece[done:])
            self._digest.update(piece)
        self.num_bytes += len(view)

    @property
    def hash(self) -> str:
        return f"xxh3:{self._digest.hexdigest()}"


class StepWriter:
    """Writes files below ``folder`` and remembers name, size and hash of each.

    The folder is made empty first; with ``join`` another rank has done that, and this one adds its files.

    Raises:
        CheckpointError: the folder to join is not to be seen from here.
    """

    def __init__(self, folder: Path, *, join: bool = False) -> None:
        self.folder = folder
        self._records: dict[str, dict[str, Any]] = {}
        if not join:
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(parents=True)
        elif not folder.is_dir():
            raise CheckpointError(f"rank 0 made {folder}, which is not there on {platform.node()}", _SHARED)

    @property
    def records(self) -> list[dict[str, Any]]:
        """Name, bytes and hash of each file written so far, by name."""
        return [self._records[name] for name in sorted(self._records)]

    def take_records(self, records: list[dict[str, Any]]) -> None:
        """Add what another rank wrote into the same folder.

        Raises:
            CheckpointError: its file is not to be seen here, in its full size.
        """
        for record in records:
            path = self.folder / record["name"]
            size = path.stat().st_size if path.is_file() else None
            if size != record["bytes"]:
                found = "is not there" if size is None else f"has {size:,} bytes"
                raise CheckpointError(
                    f"another rank wrote {path} with {record['bytes']:,} bytes; seen from here it {found}",
                    _SHARED,
                )
            self._records[record["name"]] = record

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[HashedOutput]:
        """Open ``name`` (with forward slashes, relative) for writing; durable when the block ends."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("wb", buffering=0) as handle:
                output = HashedOutput(handle)
                yield output
                os.fsync(handle.fileno())
        except OSError as error:
            error.filename = error.filename or str(path)  # a failed write does not say where
            raise
        self._records[name] = {"name": name, "bytes": output.num_bytes, "xxh3": output.hash}

    def write_bytes(self, name: str, content: bytes) -> None:
        with self.open(name) as output:
            output.write(content)

    def write_text(self, name: str, text: str) -> None:
        self.write_bytes(name, text.encode())

    def write_json(self, name: str, value: Any) -> None:
        """Indented JSON with sorted keys: equal values give equal bytes."""
        self.write_text(name, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")

    def copy_files(self, source: Path, names: Collection[str], name: str) -> None:
        """Copy those of the files ``names`` that are in ``source`` to below ``name``; no links, and nothing else."""
        for path in regular_files(source, names):
            with path.open("rb") as handle, self.open(f"{name}/{path.name}") as output:
                while piece := handle.read(_PIECE_BYTES):
                    output.write(piece)

    def adopt(self, name: str) -> None:
        """Take in every file that another library wrote below ``name``: make it durable and hash it."""
        for path in filter(Path.is_file, sorted((self.folder / name).rglob("*"))):
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
            own, found = path.relative_to(self.folder).as_posix(), files.hash_file(path)
            self._records[own] = {"name": own, "bytes": path.stat().st_size, "xxh3": found}

    def discard(self, name: str) -> None:
        """Take back every file below ``name``."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        self._records = {key: value for key, value in self._records.items() if not key.startswith(name + "/")}

    def finish(self, manifest: dict[str, Any]) -> None:
        """Make the folders durable, then write ``manifest`` with the list of files, last of all."""
        for folder in sorted((path for path in self.folder.rglob("*") if path.is_dir()), reverse=True):
            files.fsync_folder(folder)
        files.write_manifest(self.folder / layout.MANIFEST, {**manifest, "files": self.records})


class InputFile:
    """A binary file of a step, being read.

    ``hashed``: it is read in order, what passes (and what is skipped) is hashed, and ``check`` compares with the
    manifest. Without it any pieces may be read: another rank, or an earlier pass, checks the file.
    """

    def __init__(self, handle: Any, path: Path, record: dict[str, Any], *, hashed: bool = True) -> None:
        self._handle, self._record = handle, record
        self._digest = xxhash.xxh3_64() if hashed else None
        self._position = 0
        self.path = path
        self.num_bytes = int(record["bytes"])

    def read(self, count: int) -> bytearray:
        """Exactly ``count`` bytes."""
        data = bytearray(count)
        self.read_into(memoryview(data))
        return data

    def read_into(self, target: memoryview) -> None:
        """Fill ``target`` (a flat buffer of bytes) with the next bytes of the file.

        Raises:
            CheckpointError: the file ends first.
        """
        for begin in range(0, len(target), _PIECE_BYTES):
            piece = target[begin : begin + _PIECE_BYTES]
            done = 0
            while done < len(piece):
                count = self._handle.readinto(piece[done:])
                if not count:
                    raise self._damaged("it ends too early")
                done += count
            if self._digest is not None:
                self._digest.update(piece)
        self._position += len(target)

    def skip_to(self, position: int) -> None:
        """Go to ``position``; forward only, where what is passed over is hashed."""
        if self._digest is None:
            self._handle.seek(position)
            return
        if position < self._position:  # a file is read in order
            raise self._damaged("what lies in it overlaps")
        scratch = memoryview(bytearray(min(_PIECE_BYTES, position - self._position)))
        while self._position < position:
            self.read_into(scratch[: position - self._position])

    def check(self) -> None:
        """Read what is left and compare the hash of the whole file; nothing where it is not hashed.

        Raises:
            CheckpointError: the file is not what was written.
        """
        if self._digest is None:
            return
        while piece := self._handle.read(_PIECE_BYTES):
            self._digest.update(piece)
        found = f"xxh3:{self._digest.hexdigest()}"
        if found != self._record["xxh3"]:
            raise self._damaged(f"its content has hash {found}, the manifest says {self._record['xxh3']}")

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is damaged: {what}", layout.recovery_hint(layout.folder_of(self.path)))


class StepReader:
    """Reads the files that a step folder's manifest lists, and believes none of them unchecked.

    ``manifest``: that of a folder which is still being written, by this process and its peers.
    """

    def __init__(self, folder: Path, *, manifest: dict[str, Any] | None = None) -> None:
        self.folder = folder
        self.manifest = layout.read_step_manifest(folder) if manifest is None else manifest
        self._records = {record["name"]: record for record in self.manifest["files"]}

    def names(self, below: str = "") -> list[str]:
        """Names of the listed files, optionally only those below one folder (``"model"``)."""
        return [name for name in self._records if not below or name.startswith(below + "/")]

    def num_bytes(self, name: str) -> int:
        """The size that the manifest gives a file, 0 where it lists none of that name."""
        return int(self._records.get(name, {}).get("bytes", 0))

    @contextlib.contextmanager
    def open(self, name: str, *, hashed: bool = True) -> Iterator[InputFile]:
        """Open a listed file; when the block ends, however it ends, the whole file has been checked.

        With ``hashed`` false pieces of it are read, and only its size is compared.

        Raises:
            CheckpointError: the file is missing or is not what was written.
        """
        record, path = self._records.get(name), self.folder / name
        if record is None:
            raise CheckpointError(f"{self.folder} holds no {name}", "it was not written by this program")
        try:
            with open_to_read(path, buffering=0) as handle:
                if (found := os.fstat(handle.fileno()).st_size) != record["bytes"]:
                    raise self._error(
                        f"{path} is damaged: it has {found:,} bytes, the manifest says {record['bytes']:,}"
                    )
                stream = InputFile(handle, path, record, hashed=hashed)
                try:
                    yield stream
                except CheckpointError:
                    stream.check()  # a damaged file explains whatever went wrong while reading it
                    raise
                stream.check()
        except OSError as error:
            raise self._error(f"cannot read {path}: {error.strerror}") from error

    def _error(self, message: str) -> CheckpointError:
        return CheckpointError(message, layout.recovery_hint(self.folder))

    def read_bytes(self, name: str) -> bytes:
        with self.open(name) as stream:
            return bytes(stream.read(stream.num_bytes))

    def read_json(self, name: str) -> dict[str, Any]:
        """A checked file that holds a JSON object.

        Raises:
            CheckpointError: it is damaged, or no JSON object.
        """
        path = self.folder / name
        if (size := self.num_bytes(name)) > MAX_JSON_BYTES:
            raise self._error(f"{path} has {size:,} bytes, expected at most {MAX_JSON_BYTES:,}")
        hint = layout.recovery_hint(self.folder)
        value = parse_json(self.read_bytes(name), path, CheckpointError, hint=hint)
        if not isinstance(value, dict):
            raise self._error(f"{path} is not a JSON object")
        return value

    def read_model(self, name: str, model: type[Model]) -> Model:
        """A checked file that holds what ``model`` describes.

        Raises:
            CheckpointError: it is damaged, or holds something else.
        """
        value = self.read_json(name)
        return validated(value, model, self.folder / name, CheckpointError, hint=layout.recovery_hint(self.folder))

    def check(self, name: str) -> None:
        """Compare one file with its hash."""
        with self.open(name):
            pass
