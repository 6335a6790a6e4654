"""Publication of files: everything that must never be half-written goes through here.

Rules: write to ``NAME.tmp`` beside the target, flush, fsync, rename over the target, fsync the folder.
Manifests carry the xxh3 of every file they name and a hash of themselves, and are written last.
Locks are ``flock``: the kernel drops them when a process dies, so a killed run leaves none.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import xxhash

from automodel_cli.errors import AutomodelError, DataError

TEMP_SUFFIX = ".tmp"
_HASH_CHUNK_BYTES = 8 << 20


def fsync_folder(folder: Path | str) -> None:
    """Make renames and removals in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(handle: IO[Any]) -> None:
    """Flush Python's and the kernel's buffers of an open file."""
    handle.flush()
    os.fsync(handle.fileno())


def publish(temporary: Path, target: Path) -> None:
    """Rename a closed, already fsynced ``temporary`` to ``target`` and make the rename durable."""
    temporary.replace(target)
    fsync_folder(target.parent)


@contextlib.contextmanager
def atomic_file(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary beside ``path``; it becomes ``path`` on clean exit and vanishes on an exception.

    Raises:
        AutomodelError: the disk is full, or a quota or size limit was met.
    """
    target = Path(path)
    temporary = target.with_name(target.name + TEMP_SUFFIX)
    try:
        with disk_errors_named(target):
            with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as handle:
                yield handle
                fsync_file(handle)
            publish(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def disk_errors_named(path: Path | str) -> Iterator[None]:
    """Turn "no space left" and friends into an error that names ``path`` and says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise AutomodelError(
                f"no room left while writing {path}: {error.strerror}",
                "free some space and run the same command again; finished files are intact",
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise AutomodelError(
                f"cannot write {path}: {error.strerror}", "choose a folder that you may write to"
            ) from error
        raise


def write_text(path: Path | str, text: str) -> None:
    """Publish ``text`` as the whole content of ``path``, atomically and durably."""
    with atomic_file(path, "w") as handle:
        handle.write(text)


def write_json(path: Path | str, value: Any) -> None:
    """Publish ``value`` as indented JSON with sorted keys, so equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def hash_bytes(data: bytes | memoryview) -> str:
    """``xxh3:<16 hex digits>`` of ``data`` (XXH3 64 bit, seed 0)."""
    return f"xxh3:{xxhash.xxh3_64(data).hexdigest()}"


def hash_file(path: Path | str) -> str:
    """``xxh3:<16 hex digits>`` of a file's content, read in 8 MiB pieces."""
    digest = xxhash.xxh3_64()
    with Path(path).open("rb") as handle:
        while piece := handle.read(_HASH_CHUNK_BYTES):
            digest.update(piece)
    return f"xxh3:{digest.hexdigest()}"


def _self_hash(manifest: dict[str, Any]) -> str:
    body = {key: value for key, value in manifest.items() if key != "self"}
    return hash_bytes(json.dumps(body, sort_keys=True, ensure_ascii=False).encode())


def write_manifest(path: Path | str, manifest: dict[str, Any]) -> None:
    """Publish ``manifest`` with a hash of itself under ``"self"``; call this last of all."""
    write_json(path, {**manifest, "self": _self_hash(manifest)})


def read_manifest(path: Path | str, error: type[AutomodelError] = DataError) -> dict[str, Any]:
    """Read a manifest and check its hash of itself.

    Raises:
        error: the file is missing, is not JSON, or was changed after it was written.
    """
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError:
        raise error(f"{path} does not exist", "the writer was interrupted; run it again") from None
    try:
        manifest = json.loads(raw)
        stored = manifest["self"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise error(f"{path} is damaged: not a manifest", "restore the file or make it anew") from None
    canonical = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    if stored != _self_hash(manifest) or raw != canonical.encode():
        raise error(
            f"{path} is damaged: its content does not match the hash it carries",
            "restore the file or make it anew",
        )
    return manifest


@contextlib.contextmanager
def exclusive_lock(path: Path | str, *, busy: str, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive ``flock`` on ``path`` (created if missing); if another has it, ``wait`` or say ``busy``.

    Raises:
        AutomodelError: another process holds the lock.
    """
    with disk_errors_named(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise AutomodelError(busy, "wait for it, or use another folder") from None
        yield
    finally:
        os.close(descriptor)
