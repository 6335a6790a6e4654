"""Repositories of the Hugging Face Hub as a store, read only: ``hf://datasets/OWNER/NAME@REVISION/path``.

Through huggingface_hub's file system, with the user's own login. Without a revision the files are those of ``main``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from automodel_cli.errors import AutomodelError, ConfigError
from automodel_cli.files import atomic_file
from automodel_cli.storage.problems import Failure, in_words
from automodel_cli.storage.store import ObjectChanged, ObjectInfo, ObjectMissing
from automodel_cli.text import named_error

T = TypeVar("T")
_BLOCK_BYTES = 8 << 20


class HubStore:
    """See :class:`~automodel_cli.storage.store.Store`; what writes is refused."""

    def __init__(self, place: str) -> None:
        from huggingface_hub import HfFileSystem

        self._place, self._files = place, HfFileSystem()

    def info(self, url: str) -> ObjectInfo | None:
        try:
            with _Named(url, "read"):
                return _info_of(self._files.info(_path(url)))
        except ObjectMissing:
            return None

    def list_all(self, folder: str) -> list[ObjectInfo]:
        with _Named(folder, "list"):
            found: Any = self._files.find(_path(folder), detail=True)
        return sorted((_info_of(entry) for entry in found.values()), key=lambda info: info.url)

    def read(self, url: str, start: int = 0, stop: int | None = None, *, etag: str = "") -> bytes:
        self._check(url, etag)
        with _Named(url, "read"):
            return self._files.cat_file(_path(url), start=start, end=stop)

    def read_ranges(self, url: str, ranges: Sequence[tuple[int, int]], *, etag: str = "") -> list[bytes]:
        self._check(url, etag)
        return [self.read(url, start, stop) for start, stop in ranges]

    def download(self, url: str, path: Path | str, *, etag: str = "") -> None:
        self._check(url, etag)
        with _Named(url, "read"), self._files.open(_path(url), "rb") as source, atomic_file(path) as handle:
            while block := source.read(_BLOCK_BYTES):
                handle.write(block)

    def put(self, url: str, data: bytes, *, if_absent: bool = False, replaces: ObjectInfo | None = None) -> ObjectInfo:
        _refuse(url)

    def upload(self, url: str, path: Path | str, *, xxh3: str = "") -> ObjectInfo:
        _refuse(url)

    def abort_uploads(self, folder: str, names: Callable[[str], bool]) -> None:
        """None are left."""

    def delete(self, urls: Iterable[str]) -> None:
        _refuse(next(iter(urls), f"hf://{self._place}"))

    def _check(self, url: str, etag: str) -> None:
        if etag and (found := self.info(url)) is not None and found.etag != etag:
            raise ObjectChanged(f"{url} has changed since it was listed", "run the command again")


def _path(url: str) -> str:
    return url.removeprefix("hf://")


def _info_of(entry: dict[str, Any]) -> ObjectInfo:
    return ObjectInfo(f"hf://{entry['name']}", entry["size"] or 0, str(entry.get("blob_id") or ""))


def _refuse(url: str) -> NoReturn:
    raise ConfigError(f"{url}: hf:// is only read", "write to a folder or a bucket, and upload it with hf upload")


class _Named:
    """Turns what huggingface_hub raises into our errors."""

    def __init__(self, url: str, doing: str) -> None:
        self._url, self._doing = url, doing

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None or isinstance(error, AutomodelError) or not isinstance(error, Exception):
            return
        if isinstance(error, FileNotFoundError):
            raise ObjectMissing(f"there is no {self._url}", "check the repository, the revision and the path") from None
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if status:
            raise in_words(Failure(status), self._url, self._doing, "huggingface.co") from None
        raise AutomodelError(
            f"cannot {self._doing} {self._url}: {named_error(error, 200)}",
            "check the network, and the login with hf auth whoami",
        ) from None
