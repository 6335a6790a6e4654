"""Fetching the published archive of task data: download, check, unpack, publish; nothing is there until all is.

1. ``NAME.zip.automodel.tmp`` beside the folder, hashed while it arrives; a connection that breaks is taken up again.
2. The SHA-256 has to be the expected one.
3. Unpacked into ``NAME.automodel.tmp``: plain files below that folder only, within a size that task data never has.
4. That folder (or the only folder in it) becomes ``NAME``.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import lzma
import shutil
import stat
import struct
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO

from automodel_cli.errors import ConfigError, DataError
from automodel_cli.evaluation.icl.data import Bundle
from automodel_cli.files import TEMP_SUFFIX, disk_errors_named, fsync_file, publish
from automodel_cli.json_files import without_controls
from automodel_cli.text import binary_size

URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
SHA256 = "90a7c19e28ee7a52b4f6e1f87658deb9fde7f63deba2379045bdb1fe9ea5d200"
"""As others have pinned it in public on 2026-06-12; the archive's author publishes none."""

MAX_BYTES = 4 << 30
_CHUNK_BYTES = 1 << 20
# A damaged archive, or one with two members of one name, a file below a file, or a name that no file can have.
_DAMAGE = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError, ValueError),
    *(zlib.error, lzma.LZMAError, struct.error, FileExistsError, NotADirectoryError, IsADirectoryError),
)
_TRIES = 5
_TIMEOUT_S = 60

Progress = Callable[[int, int], None]


def fetch(folder: Path, *, url: str = URL, sha256: str | None = SHA256, progress: Progress | None = None) -> Path:
    """Make ``folder`` from the archive at ``url``.

    Args:
        sha256: what the archive has to hash to; None: taken as it comes, which is for archives of one's own.
        progress: called with (bytes that are here, bytes in all or 0).

    Raises:
        ConfigError: the folder exists already, or the address is no http(s) one.
        DataError: the archive cannot be fetched, is another one, or holds something it should not.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} exists already", "move it away to fetch the data again, or name another --bundle")
    if not url.startswith(("https://", "http://")):
        raise ConfigError(f"{url!r} is not an http(s) address", "name one with --bundle-url")
    folder.parent.mkdir(parents=True, exist_ok=True)
    archive = folder.with_name(f"{folder.name}.zip{TEMP_SUFFIX}")
    unpacked = folder.with_name(folder.name + TEMP_SUFFIX)
    try:
        with disk_errors_named(archive):
            found = _download(url, archive, progress or (lambda done, total: None))
            if sha256 is not None and found != sha256.lower():
                raise DataError(
                    f"the archive at {url} has SHA-256 {found}, expected {sha256}",
                    "it was changed or damaged in transit; if you trust it, give its own with --bundle-sha256",
                )
            shutil.rmtree(unpacked, ignore_errors=True)
            unpack(archive, unpacked)
            _publish(unpacked, folder)
    finally:
        archive.unlink(missing_ok=True)
        shutil.rmtree(unpacked, ignore_errors=True)
    return folder


# -------------------------------------------------------------------------------------------- download


def _download(url: str, target: Path, progress: Progress) -> str:
    """The file at ``url`` in ``target``; its SHA-256."""
    digest = hashlib.sha256()
    problem: Exception | None = None
    with target.open("wb") as handle:
        for _ in range(_TRIES):
            try:
                _continue(url, handle, digest, progress)
            except urllib.error.HTTPError as error:
                problem = error
                break  # an answer, not an accident
            except (OSError, http.client.HTTPException) as error:
                problem = error
            except ValueError as error:  # an address, or a header, that is none
                problem = error
                break
            else:
                fsync_file(handle)
                return digest.hexdigest()
    raise DataError(
        f"{url} cannot be fetched: {problem}",
        "is this machine connected? Another address: --bundle-url; or unpack the archive by hand and name it: --bundle",
    )


def _continue(url: str, handle: IO[bytes], digest: hashlib._Hash, progress: Progress) -> None:
    """Append what is missing, from where the last try ended."""
    have = handle.tell()
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
        if have and answer.status != http.client.PARTIAL_CONTENT:
            raise DataError(f"{url} broke off and cannot be resumed", "try again")
        length = int(answer.headers.get("Content-Length") or 0)
        total = have + length if length else 0
        while piece := answer.read(_CHUNK_BYTES):
            have += len(piece)
            if have > MAX_BYTES:
                raise DataError(f"{url} is larger than {binary_size(MAX_BYTES)}", "that is not an archive of task data")
            handle.write(piece)
            digest.update(piece)
            progress(have, total)
    if total and have < total:
        raise http.client.IncompleteRead(b"", total - have)


# ---------------------------------------------------------------------------------------------- unpack


def unpack(archive: Path, folder: Path) -> None:
    """Write the plain files of a zip archive below ``folder``.

    Raises:
        DataError: no zip archive, damaged, too large, or with a link, a device or a path that leads elsewhere.
    """
    try:
        with zipfile.ZipFile(archive) as files:
            members = [member for member in files.infolist() if not member.is_dir()]
            if sum(member.file_size for member in members) > MAX_BYTES:
                raise DataError(
                    f"the archive unpacks to more than {binary_size(MAX_BYTES)}",
                    "it is not an archive of task data",
                )
            for member in members:
                _unpack_one(files, member, folder)
    except _DAMAGE as error:
        reason = without_controls(f"{type(error).__name__}: {error}")
        raise DataError(f"the archive cannot be unpacked: {reason[:300]}", "fetch it again") from error


def _unpack_one(files: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> None:
    name = PurePosixPath(member.filename)
    kind = stat.S_IFMT(member.external_attr >> 16)
    leads_elsewhere = name.is_absolute() or ".." in name.parts or "\\" in member.filename or ":" in member.filename
    too_long = any(len(part.encode(errors="replace")) > 255 for part in name.parts)
    if leads_elsewhere or too_long or kind not in (0, stat.S_IFREG):
        raise DataError(
            f"the archive holds {member.filename[:60]!r}, which is not a plain file below its folder",
            "do not use it",
        )
    target = folder.joinpath(*name.parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    left = member.file_size
    with files.open(member) as source, target.open("xb") as handle:
        while piece := source.read(_CHUNK_BYTES):
            left -= len(piece)
            if left < 0:
                raise DataError(f"{member.filename} is larger than the archive says", "do not use it")
            handle.write(piece)


def _publish(unpacked: Path, folder: Path) -> None:
    inside = [path for path in unpacked.iterdir() if path.name != "__MACOSX"]
    content = inside[0] if len(inside) == 1 and inside[0].is_dir() else unpacked
    try:
        Bundle(content)
    except ConfigError as error:
        raise DataError("the archive holds no task data", error.hint) from None
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()
    publish(content, folder)
