"""A local folder that shows what lies at a URL, so that what finds and checks local files finds remote ones.

    FOLDER/view/s3/BUCKET/corpus/manifest.json      small files whole, as they are
    FOLDER/view/s3/BUCKET/corpus/.manifest.json.of  size, etag and hash of the one it is a copy of
    FOLDER/view/s3/BUCKET/corpus/dataset.bin        of a file that is read by ranges a line of text; its bytes are read
                                                    through its ``RemoteObject``, never from here

A folder is listed once in a process. Which version of an object is meant is known from then on: its etag goes with
every read.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import glob
import os
import posixpath
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from automodel_cli.errors import AutomodelError, ConfigError, DataError
from automodel_cli.files import disk_errors_named, hash_file
from automodel_cli.storage.cache.remote_file import RemoteObject
from automodel_cli.storage.cache.settings import CacheSettings, cache_in_use
from automodel_cli.storage.opening import open_store
from automodel_cli.storage.urls import SCHEMES, Address, is_remote, join_url, local_path, parent_url, split_url

_AT_ONCE = 16
_MOST_OBJECTS = 200_000
_MOST_SMALL_BYTES = 256 << 20  # of a file that is fetched because it lies there
_WHOLE = ("manifest.json", "*.manifest.json", "tokenizer/*", "*.tokenizer/*")
_BY_RANGES = ("*.bin", "*.npy", "*.idx")  # the last until somebody wants it whole
_Item = TypeVar("_Item")
_STANDS_IN = "What is in this file is at "
_SHOWN_AS = _STANDS_IN + "{}, and is read from there by ranges.\n"


class LocalView:
    """What lies at URLs, as local paths.

    Args:
        cache: how much is kept of files that are read by ranges; None: as ``use_cache`` said.
        folder: where small files go; None: into the cache folder.
    """

    def __init__(self, cache: CacheSettings | None = None, folder: Path | None = None) -> None:
        self._cache, self._folder = cache, folder
        self._objects: dict[Path, RemoteObject] = {}
        self._listed: set[Path] = set()

    @functools.cached_property
    def cache(self) -> CacheSettings:
        """How much is kept; asked for where there is a URL, as without one no cache folder is needed."""
        return self._cache or cache_in_use()

    @functools.cached_property
    def _root(self) -> Path:
        return (self._folder or self.cache.folder / "view").expanduser().absolute()

    def place(self, text: str) -> str:
        """The local path, or pattern, that shows what ``text`` names; what is no URL as it is.

        Raises:
            DataError: there is nothing there.
            AutomodelError: the store does not answer, or the disk takes no files.
        """
        if not is_remote(text):
            return local_path(text)
        address = split_url(text)
        path = self._path(address)
        if _magic_at(address) is not None:
            self._show_matches(address)
        elif not self._is_shown(path):
            above = Address(address.scheme, address.place, posixpath.dirname(address.key))
            # What looks like a file is asked for in its folder, which is listed once for all files in it.
            for folder in (above, address) if _is_file_name(address.key) else (address, above):
                self._show(folder)
                if path in self._objects:
                    self._stand_in(self._objects[path], path)
                if self._is_shown(path):
                    break
            else:
                raise DataError(f"there is nothing at {text}", "check the URL")
        return str(path)

    def _is_shown(self, path: Path) -> bool:
        """Whether it is a folder, a file, or the prefix of a pair of Megatron's."""
        return path in self._listed or path in self._objects or path.with_name(f"{path.name}.bin") in self._objects

    def object(self, path: Path | str) -> RemoteObject | None:
        """What a path of this view shows; None: it is a local file.

        Raises:
            DataError: there is no such object.
        """
        if not self._objects:
            return None
        path = Path(path).absolute()
        if not path.is_relative_to(self._root):
            return None
        if path not in self._objects:  # a listing may lag behind what a manifest names
            url = self.url(path)
            info = open_store(url).info(url)
            if info is None:
                raise DataError(f"there is no {url}", "check the URL, or copy the file there")
            self._objects[path] = RemoteObject(info.url, info.size, info.etag, self.cache)
        return self._objects[path]

    def name(self, path: Path) -> str:
        """What people call ``path``: the URL that it shows; of a local file the path."""
        return self.url(path) if self._objects and path.is_relative_to(self._root) else str(path)

    @property
    def paths(self) -> Sequence[Path]:
        """All that is shown."""
        return list(self._objects)

    @contextlib.contextmanager
    def errors_by_url(self) -> Iterator[None]:
        """Let errors name URLs where they name paths of this view."""
        try:
            yield
        except AutomodelError as error:
            if not self._objects:
                raise
            told = [_by_url(text, str(self._root)) for text in (error.message, error.hint)]
            raise type(error)(*told) from error

    def url(self, path: Path) -> str:
        """The URL that a path of this view shows."""
        scheme, *rest = path.relative_to(self._root).parts
        return f"{scheme}://{'/'.join(rest)}"

    def fetch(self, paths: Iterable[Path]) -> None:
        """Make these paths whole copies, several at a time.

        Raises:
            AutomodelError: one cannot be fetched.
        """
        _for_each([one for path in paths if (one := self.object(path)) is not None], self._copy)

    # ------------------------------------------------------------------------------------------ showing

    def _path(self, address: Address) -> Path:
        return self._root.joinpath(address.scheme, *address.place.split("/"), *address.key.split("/"))

    def _show_matches(self, address: Address) -> None:
        """Show the folder above the first part with pattern characters, and what the pattern matches there."""
        parts = address.key.split("/")
        self._show(Address(address.scheme, address.place, "/".join(parts[: _magic_at(address)])))
        for path, remote in self._objects.items():
            if fnmatch.fnmatchcase(remote.url, str(address)) and not path.exists():
                self._stand_in(remote, path)

    def _show(self, folder: Address) -> None:
        """List a folder, and show what may be token files or is known of them; nothing in it is no error."""
        path, url = self._path(folder), str(folder)
        if path in self._listed:
            return
        found = open_store(url).list_all(url)
        if len(found) > _MOST_OBJECTS:
            raise DataError(
                f"{url} holds {len(found):,} objects, at most {_MOST_OBJECTS:,} are looked through",
                "give the token files a folder of their own",
            )
        whole, shown = [], set()
        for info in found:
            remote = RemoteObject(info.url, info.size, info.etag, self.cache)
            try:
                target = self._path(split_url(info.url))
            except ConfigError:  # a name that no file can have
                continue
            if target == path:  # an empty object that some tools leave for a folder
                continue
            self._objects[target] = remote
            shown.add(target)
            if _matches(info.url, _WHOLE) and info.size <= _MOST_SMALL_BYTES:
                whole.append(remote)
            elif _matches(info.url, _BY_RANGES) and not info.url.endswith(".bos.idx"):
                self._stand_in(remote, target)
        self._forget(path, shown)
        _for_each(whole, self._copy)
        if found:
            self._listed.add(path)

    def _stand_in(self, remote: RemoteObject, path: Path) -> None:
        """A file that says where its content is, unless a whole copy is there."""
        if path.is_file() and (not _origin(path).exists() or _is_copy(path, remote)):
            return
        with disk_errors_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, _SHOWN_AS.format(remote.url))
            _origin(path).unlink(missing_ok=True)

    def _forget(self, folder: Path, shown: set[Path]) -> None:
        """Remove what is shown and no longer there. A listing may lag, so each is asked for."""
        for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
            if path.name.startswith(".") or path in shown or not path.is_file() or not _is_ours(path):
                continue
            url = self.url(path)
            if open_store(url).info(url) is None:
                path.unlink(missing_ok=True)
                _origin(path).unlink(missing_ok=True)

    def _copy(self, remote: RemoteObject) -> None:
        _copy(remote, self._path(split_url(remote.url)))


def _by_url(text: str, root: str) -> str:
    for scheme in SCHEMES:
        text = text.replace(f"{root}/{scheme}/", f"{scheme}://")
    return text


def fetch_beside(remotes: Iterable[RemoteObject | None], paths: Iterable[Path]) -> None:
    """Make each of ``paths``, which lies in a view beside what is shown of a remote, a whole copy, where it exists.

    Raises:
        AutomodelError: the store does not answer.
    """
    wanted = [(remote, path) for remote, path in zip(remotes, paths, strict=True) if remote is not None]

    def work(one: tuple[RemoteObject, Path]) -> None:
        remote, path = one
        url = join_url(parent_url(remote.url), path.name)
        info = open_store(url).info(url)
        if info is None:
            path.unlink(missing_ok=True)
        else:
            _copy(RemoteObject(url, info.size, info.etag, remote.cache), path)

    _for_each(wanted, work)


def _magic_at(address: Address) -> int | None:
    """The first part of the key with pattern characters."""
    parts = address.key.split("/")
    return next((number for number, part in enumerate(parts) if glob.has_magic(part)), None)


def _matches(url: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(url, f"*/{pattern}") for pattern in patterns)


def _is_file_name(key: str) -> bool:
    return _matches(f"/{key}", (*_BY_RANGES, "*.json"))


def _copy(remote: RemoteObject, path: Path) -> None:
    if _is_copy(path, remote):
        return
    with disk_errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        open_store(remote.url).download(remote.url, temporary, etag=remote.etag)
        found = hash_file(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _write(_origin(path), f"{remote.size} {remote.etag} {found}\n")


def _origin(path: Path) -> Path:
    return path.with_name(f".{path.name}.of")


def _is_ours(path: Path) -> bool:
    """Whether a view made this file: indices of Megatron's order lie beside those that it shows."""
    if _origin(path).exists():
        return True
    with path.open("rb") as handle:
        return handle.read(len(_STANDS_IN)) == _STANDS_IN.encode()


def _is_copy(path: Path, remote: RemoteObject) -> bool:
    """Whether ``path`` is a sound copy of that version of the object."""
    try:
        size, etag, found = _said(path)
        return (size, etag) == (str(remote.size), remote.etag) and hash_file(path) == found
    except (OSError, ValueError):
        return False


def _said(path: Path) -> tuple[str, str, str]:
    """Size, etag (which may hold spaces) and hash, as the file beside ``path`` says."""
    size, rest = _origin(path).read_text(encoding="utf-8").rstrip("\n").split(" ", 1)
    etag, found = rest.rsplit(" ", 1)
    return size, etag, found


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _for_each(items: Sequence[_Item], work: Callable[[_Item], None]) -> None:
    """Several at a time; the first error is raised."""
    if len(items) < 2:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(min(_AT_ONCE, len(items)), "fetch") as threads:
        list(threads.map(work, items))
