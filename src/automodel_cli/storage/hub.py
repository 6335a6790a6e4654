"""Repositories of the Hugging Face Hub as a store, read only: ``hf://datasets/OWNER/NAME@REVISION/path``.

Through huggingface_hub's file system, with the user's own login. Without a revision the files are those of ``main``.
A revision is a commit from the first request on, so that a branch which moves meanwhile is no mixture of two; a process
that starts later finds by the hash of a file whether it is still the one that was listed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from huggingface_hub import HfApi, HfFileSystem, constants

from automodel_cli.errors import AutomodelError, ConfigError
from automodel_cli.files import atomic_file
from automodel_cli.storage.problems import Failure, in_words
from automodel_cli.storage.store import ObjectChanged, ObjectInfo, ObjectMissing
from automodel_cli.text import named_error

_BLOCK_BYTES = 8 << 20


class HubStore:
    """See :class:`~automodel_cli.storage.store.Store`; what writes is refused."""

    def __init__(self, place: str) -> None:
        self._place, self._files = place, HfFileSystem()
        self._commits: dict[tuple[str, str, str], str] = {}
        self._lock = threading.Lock()

    def info(self, url: str) -> ObjectInfo | None:
        try:
            with _Named(url, "read"):
                entry = self._files.info(self._path(url))
        except ObjectMissing:
            return None
        return _info_of(url, entry) if entry["type"] == "file" else None

    def list_all(self, folder: str) -> list[ObjectInfo]:
        with _Named(folder, "list"):
            path = self._path(folder)
            found: Any = self._files.find(path, detail=True)
        below = {name.removeprefix(path): entry for name, entry in found.items() if name != path}  # that is a file
        return sorted((_info_of(folder + name, entry) for name, entry in below.items()), key=lambda info: info.url)

    def read(self, url: str, start: int = 0, stop: int | None = None, *, etag: str = "") -> bytes:
        self._check(url, etag)
        with _Named(url, "read"):
            return self._files.cat_file(self._path(url), start=start, end=stop)

    def read_ranges(self, url: str, ranges: Sequence[tuple[int, int]], *, etag: str = "") -> list[bytes]:
        self._check(url, etag)
        return [self.read(url, start, stop) for start, stop in ranges]

    def download(self, url: str, path: Path | str, *, etag: str = "") -> None:
        self._check(url, etag)
        with _Named(url, "read"), self._files.open(self._path(url), "rb") as source, atomic_file(path) as handle:
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

    def _path(self, url: str) -> str:
        """As the file system spells it, at the commit that is read."""
        found: Any = self._files.resolve_path(url.removeprefix("hf://"))
        repository = (found.repo_type, found.repo_id, found.revision)
        with self._lock:
            if repository not in self._commits:
                kind, name, revision = repository
                self._commits[repository] = str(HfApi().repo_info(name, repo_type=kind, revision=revision).sha)
        prefix = constants.REPO_TYPES_URL_PREFIXES.get(found.repo_type, "")
        return f"{prefix}{found.repo_id}@{self._commits[repository]}/{found.path_in_repo}".rstrip("/")


def _info_of(url: str, entry: dict[str, Any]) -> ObjectInfo:
    return ObjectInfo(url, entry["size"] or 0, str(entry.get("blob_id") or ""))


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
            hint = "check repository, revision and path; what is private needs a login (hf auth login, or HF_TOKEN)"
            raise ObjectMissing(f"there is no {self._url}", hint) from None
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if status:
            raise in_words(Failure(status), self._url, self._doing, "huggingface.co") from None
        raise AutomodelError(
            f"cannot {self._doing} {self._url}: {named_error(error, 200)}",
            "check the network, and the login with hf auth whoami",
        ) from None
