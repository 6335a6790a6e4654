"""The one door to storage (local disks now): input is opened here, and what must never be half-written published.

Rules: write to ``NAME.automodel.tmp`` beside the target (a name that is nobody else's: what carries it may be
replaced and removed), flush, fsync, rename over the target, fsync the folder.
Manifests carry the xxh3 of every file they name and a hash of themselves, and are written last.
Locks are ``flock``: the kernel drops them when a process dies, so a killed run leaves none.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import xxhash

from automodel_cli.errors import AutomodelError, ConfigError, DataError
from automodel_cli.json_files import open_to_read, parse_json, read_bytes

TEMP_SUFFIX = ".automodel.tmp"
ANY_TEMPORARY = r"((\.automodel)?\.tmp)?"
"""For patterns of names: nothing, the suffix above, or that of versions before it, which may be anybody's."""
_HASH_CHUNK_BYTES = 8 << 20


def read_range(path: Path | str, start: int, count: int) -> bytes:
    """``count`` bytes of a file from ``start`` on, fewer where it ends before.

    Raises:
        OSError: as :func:`open_to_read`.
    """
    with open_to_read(path) as handle:
        handle.seek(start)
        return handle.read(count)


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


def sync_below(folder: Path) -> None:
    """Make all files of a folder durable, and their names."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    fsync_folder(folder)


def publish(temporary: Path, target: Path) -> None:
    """Rename a closed, already fsynced ``temporary`` to ``target`` and make the rename durable."""
    temporary.replace(target)
    fsync_folder(target.parent)


def temporary_of(target: Path) -> Path:
    """What ``target`` is called while it is written."""
    return target.with_name(target.name + TEMP_SUFFIX)


def file_bytes(path: Path) -> int:
    """The size of a regular file, 0 where there is none."""
    return path.stat().st_size if path.is_file() else 0


def make_folder(folder: Path | str, option: str = "--output-dir") -> None:
    """``folder`` and those above it, where they are missing; ``option`` is what named it.

    Raises:
        ConfigError: a file is in the way.
        AutomodelError: the folder may not be made there, or the disk is full.
    """
    try:
        with disk_errors_named(folder):
            Path(folder).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        there = next((path for path in (Path(folder), *Path(folder).parents) if os.path.lexists(path)), folder)
        raise ConfigError(
            f"{there} is not a folder, expected one for {option}", f"move it away, or use another {option}"
        ) from None


@contextlib.contextmanager
def atomic_file(path: Path | str, mode: str = "wb", *, unique: bool = False, buffering: int = -1) -> Iterator[IO[Any]]:
    """Open a temporary beside ``path``; it becomes ``path`` on clean exit and vanishes on an exception.

    Args:
        unique: the temporary's name is this call's alone, where several processes may write ``path`` at once.
        buffering: as of ``open``.

    Raises:
        AutomodelError: the disk is full, or a quota or size limit was met.
    """
    target = Path(path)
    temporary = temporary_of(target)
    if unique:
        temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex[:12]}{TEMP_SUFFIX}")
    try:
        with disk_errors_named(target):
            temporary.unlink(missing_ok=True)  # a link there would lead elsewhere
            with temporary.open(mode, buffering, encoding=None if "b" in mode else "utf-8") as handle:
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


def manifest_text(manifest: dict[str, Any]) -> str:
    """``manifest`` with a hash of itself under ``"self"``, as ``read_manifest`` wants it byte by byte."""
    sealed = {**manifest, "self": _self_hash(manifest)}
    return json.dumps(sealed, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write_manifest(path: Path | str, manifest: dict[str, Any]) -> None:
    """Publish ``manifest`` with a hash of itself under ``"self"``; call this last of all."""
    write_text(path, manifest_text(manifest))


def read_manifest(path: Path | str, error: type[AutomodelError] = DataError) -> dict[str, Any]:
    """Read a manifest and check its hash of itself.

    Raises:
        error: the file is missing, is not JSON, or was changed after it was written.
    """
    raw = read_bytes(path, error, hint="the writer was interrupted; run it again")
    manifest = parse_json(raw, f"{path} is damaged: it", error, allow_nan=True)
    if not isinstance(manifest, dict) or "self" not in manifest:
        raise error(f"{path} is damaged: not a manifest", "restore the file or make it anew")
    canonical = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    if manifest["self"] != _self_hash(manifest) or raw != canonical.encode():
        raise error(
            f"{path} is damaged: its content does not match the hash it carries",
            "restore the file or make it anew",
        )
    return manifest


def names_format(path: Path, format_name: str) -> bool:
    """Whether ``path`` is a file in which ``format_name`` is written: one of ours, sound or damaged."""
    return path.is_file() and format_name.encode() in read_bytes(path)


def leads_away(path: Path, manifest: Path) -> bool:
    """Whether ``path`` is a link out of its folder. To where ``manifest`` lies itself is none (a cache of downloads
    links all files of a folder to its store)."""
    real = path.resolve()
    return not real.is_relative_to(path.parent.resolve()) and real.parent != manifest.resolve().parent


def remove_known(folder: Path, known: re.Pattern[str]) -> None:
    """Remove the files below ``folder`` whose path in it (with forward slashes) is ``known``, then empty folders.

    Everything else stays: what others put there, and links, which are not followed.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder before the folder
        if path.is_symlink():
            continue
        if path.is_dir():
            _remove_empty(path)
        elif known.fullmatch(path.relative_to(folder).as_posix()):
            path.unlink(missing_ok=True)
    _remove_empty(folder)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not empty
        folder.rmdir()


def strangers_below(folder: Path, known: re.Pattern[str]) -> list[Path]:
    """What :func:`remove_known` would leave: files of others and links; ``folder`` itself where it is no folder."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        return [folder]
    found = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()]
    return [p for p in found if p.is_symlink() or not known.fullmatch(p.relative_to(folder).as_posix())]


def is_locked(path: Path | str) -> bool:
    """Whether somebody has the lock ``path``, or it is not ours to look at. Nothing is made or changed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # somebody else's, perhaps
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # NFS has no exclusive lock for a reader
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks: who takes one will say so
        return False
    finally:
        os.close(descriptor)
    return False


def _outwait_a_look(descriptor: int) -> None:
    """:func:`is_locked` holds a lock for microseconds: that is nobody at work."""
    for _ in range(5):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(0.01)


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
            if not wait:
                _outwait_a_look(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise AutomodelError(busy, "wait for it, or use another folder") from None
        yield
    finally:
        os.close(descriptor)
