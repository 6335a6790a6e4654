"""The local disk as a store, for ``file://``: what copies to a store can copy to a mounted disk, too."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from automodel_cli.errors import AutomodelError, DataError
from automodel_cli.files import atomic_file, disk_errors_named, hash_file, open_to_read
from automodel_cli.storage.store import ObjectChanged, ObjectExists, ObjectInfo, ObjectMissing
from automodel_cli.storage.urls import split_url


class LocalStore:
    """Files by ``file://`` URLs. See :class:`~automodel_cli.storage.store.Store`; ``replaces`` is no lock here."""

    def info(self, url: str) -> ObjectInfo | None:
        path = _path(url)
        with _errors_named(url):
            if not path.is_file():
                return None
            status = path.stat()
        return ObjectInfo(url, status.st_size, f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}")

    def list_all(self, folder: str) -> list[ObjectInfo]:
        base = _path(folder)
        with _errors_named(folder):
            found = [path for path in base.rglob("*") if path.is_file()]
            infos = [self.info(f"file://{path.as_posix()}") for path in found]
        return sorted((info for info in infos if info), key=lambda info: info.url)

    def read(self, url: str, start: int = 0, stop: int | None = None, *, etag: str = "") -> bytes:
        self._check(url, etag)
        with _errors_named(url), open_to_read(_path(url)) as handle:
            handle.seek(start)
            return handle.read(-1 if stop is None else max(0, stop - start))

    def read_ranges(self, url: str, ranges: Sequence[tuple[int, int]], *, etag: str = "") -> list[bytes]:
        return [self.read(url, start, stop, etag=etag) for start, stop in ranges]

    def put(self, url: str, data: bytes, *, if_absent: bool = False, replaces: ObjectInfo | None = None) -> ObjectInfo:
        path = _path(url)
        with _errors_named(url):
            path.parent.mkdir(parents=True, exist_ok=True)
            if if_absent:
                _create(path, data, url)
            else:
                if replaces is not None:
                    self._check(url, replaces.etag)
                with atomic_file(path) as handle:
                    handle.write(data)
        return self._written(url)

    def upload(self, url: str, path: Path | str, *, xxh3: str = "") -> ObjectInfo:
        target = _path(url)
        with _errors_named(url):
            if xxh3 and hash_file(path) != xxh3:
                raise DataError(f"{path} is not what was written: its hash has changed", "check the disk")
            target.parent.mkdir(parents=True, exist_ok=True)
            with Path(path).open("rb") as source, atomic_file(target) as handle:
                while block := source.read(8 << 20):
                    handle.write(block)
        return self._written(url)

    def download(self, url: str, path: Path | str, *, etag: str = "") -> None:
        self._check(url, etag)
        with _errors_named(url), open_to_read(_path(url)) as source, atomic_file(path) as handle:
            while block := source.read(8 << 20):
                handle.write(block)

    def abort_uploads(self, folder: str, names: Callable[[str], bool]) -> None:
        """None are left."""

    def delete(self, urls: Iterable[str]) -> None:
        for url in urls:
            with _errors_named(url):
                _path(url).unlink(missing_ok=True)

    def _check(self, url: str, etag: str) -> None:
        found = self.info(url)
        if found is None:
            raise ObjectMissing(f"there is no {url}", "check the path")
        if etag and found.etag != etag:
            raise ObjectChanged(f"{url} has changed since it was listed", "run the command again")

    def _written(self, url: str) -> ObjectInfo:
        found = self.info(url)
        assert found is not None
        return found


def _path(url: str) -> Path:
    return Path(split_url(url).key)


def _create(path: Path, data: bytes, url: str) -> None:
    """A hard link is made by one of those who try, and shows the whole file."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.automodel.tmp")
    try:
        temporary.write_bytes(data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise ObjectExists(f"{url} is there already", "choose another place, or remove it") from None
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _errors_named(url: str) -> Iterator[None]:
    try:
        with disk_errors_named(_path(url)):
            yield
    except FileNotFoundError:
        raise ObjectMissing(f"there is no {url}", "check the path") from None
    except OSError as error:
        raise AutomodelError(f"{url}: {error.strerror or error}", "check the path") from None
