"""Buckets of S3, Google Cloud Storage and Azure through obstore (the ``object_store`` crate): one client for all three.

Requests, signatures, parts of uploads and most retries are obstore's. Ours: which credentials and endpoint
(``clients``), errors in words (``problems``), a bound on the whole time, a check that what came back is all of it, and
conditional writes that a lost answer does not turn into a false refusal.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
import xxhash
from obstore.exceptions import AlreadyExistsError, BaseError, InvalidPathError, PreconditionError

from automodel_cli.errors import AutomodelError, ConfigError, DataError
from automodel_cli.files import atomic_file
from automodel_cli.storage.clients import open_client, s3_endpoint
from automodel_cli.storage.problems import Failure, failure_of, in_words
from automodel_cli.storage.reading import PART_BYTES, SIDE_BY_SIDE, blocks, reading_threads
from automodel_cli.storage.store import ObjectChanged, ObjectExists, ObjectInfo, ObjectMissing
from automodel_cli.storage.urls import Address, split_url

if TYPE_CHECKING:
    from obstore import GetOptions

_MOST_PARTS = 9_000  # S3 takes 10,000
_PATIENCE_SECONDS = 180.0
_FIRST_PATIENCE_SECONDS = 10.0  # until somebody has answered: a wrong address is found out soon
_LONGEST_PAUSE_SECONDS = 15.0
T = TypeVar("T")
_ERRORS = (BaseError, OSError, ValueError)


def open_bucket(scheme: str, place: str) -> BucketStore:
    """The store of a bucket or container, with credentials and endpoint from the environment.

    Raises:
        ConfigError: these are missing, not whole, or not what they should be.
    """
    try:
        return BucketStore(scheme, place, *open_client(scheme, place, os.environ))
    except _ERRORS:  # half a pair of keys, a key that is none; what the client says may repeat them
        raise in_words(Failure(no_credentials=True), f"{scheme}://{place}", "read", "") from None


class BucketStore:
    """See :class:`~automodel_cli.storage.store.Store`.

    Args:
        client: obstore's store of the bucket.
        endpoint: host and port, for messages.
        patience: seconds that a call may take to succeed, once the store has answered to any.
    """

    def __init__(
        self, scheme: str, place: str, client: Any, endpoint: str, *, patience: float = _PATIENCE_SECONDS
    ) -> None:
        self._scheme, self._place, self._client, self._endpoint = scheme, place, client, endpoint
        self._patience = patience
        self._answered = False
        self._there = False  # the bucket

    def info(self, url: str) -> ObjectInfo | None:
        try:
            return self._info_of(self._try(url, "read", lambda: obstore.head(self._client, self._key(url))))
        except ObjectMissing:
            self._refuse_missing_bucket(url)
            return None

    def _refuse_missing_bucket(self, url: str) -> None:
        """The answer about an object has no body, hence no word for a bucket that is missing."""
        if not self._there:
            place = str(Address(self._scheme, self._place, ""))
            with contextlib.suppress(_OddName):  # somebody's, anywhere in the bucket
                self._try(place, "list", lambda: next(iter(obstore.list(self._client)), None))
            self._there = True

    def list_all(self, folder: str) -> list[ObjectInfo]:
        key = self._key(folder)
        found = self._try(folder, "list", lambda: obstore.list(self._client, key or None).collect())
        return sorted(_without_markers(folder, [self._info_of(meta) for meta in found]), key=lambda info: info.url)

    def read(self, url: str, start: int = 0, stop: int | None = None, *, etag: str = "") -> bytes:
        if stop is not None and stop <= start:
            return b""
        options: GetOptions = {}
        if etag:
            options["if_match"] = etag
        if stop is not None:
            options["range"] = (start, stop)
        elif start:
            options["range"] = {"offset": start}

        def once() -> bytes:
            answer = obstore.get(self._client, self._key(url), options=options)
            first, last = answer.range
            data = bytes(answer.bytes())
            if len(data) != last - first or first != start:
                raise OSError(f"{len(data)} of {last - first} bytes came")
            return data

        try:
            return self._try(url, "read", once)
        except _PastEnd:
            return b""

    def read_ranges(self, url: str, ranges: Sequence[tuple[int, int]], *, etag: str = "") -> list[bytes]:
        if len(ranges) < 2:
            return [self.read(url, start, stop, etag=etag) for start, stop in ranges]
        return list(reading_threads().map(lambda part: self.read(url, *part, etag=etag), ranges))

    def put(self, url: str, data: bytes, *, if_absent: bool = False, replaces: ObjectInfo | None = None) -> ObjectInfo:
        mode: Any = "create" if if_absent else "overwrite"
        if replaces is not None:
            named = {"e_tag": replaces.etag, "version": replaces.generation}
            mode = {name: value for name, value in named.items() if value}

        def once() -> Any:
            return obstore.put(self._client, self._key(url), data, mode=mode, use_multipart=False)

        try:
            done = self._try(url, "write", once)
        except (ObjectExists, ObjectChanged):
            there = self.info(url)
            if there is None or there.size != len(data) or self.read(url) != data:
                raise
            return there  # it was written, and the answer to that was lost
        return ObjectInfo(url, len(data), _quoted(done["e_tag"]), self._generation(done["version"]))

    def upload(self, url: str, path: Path | str, *, xxh3: str = "") -> ObjectInfo:
        size = Path(path).stat().st_size
        part = max(PART_BYTES, -(-size // _MOST_PARTS))

        def once() -> Any:
            parts = _checked_parts(path, part, xxh3)
            if size <= part:
                return obstore.put(self._client, self._key(url), next(parts, b""), use_multipart=False)
            return obstore.put(
                self._client,
                self._key(url),
                parts,
                chunk_size=part,
                max_concurrency=SIDE_BY_SIDE,
            )

        self._try(url, "write", once)
        there = self.info(url)
        if there is None or there.size != size:
            raise DataError(f"{url} arrived with another size than {path} has", "run the same command again")
        return there

    def download(self, url: str, path: Path | str, *, etag: str = "") -> None:
        info = self.info(url)
        if info is None:
            raise ObjectMissing(f"there is no {url}", "check the URL")
        with atomic_file(path) as handle:
            for block in blocks(self, replace(info, etag=etag or info.etag)):
                handle.write(block)

    def abort_uploads(self, folder: str, names: Callable[[str], bool]) -> None:
        """Of S3, through boto3 where it is installed; Azure forgets them after a week, Google by a lifecycle rule."""
        if self._scheme != "s3":
            return
        try:
            import boto3
        except ImportError:
            return
        prefix = f"{self._key(folder)}/".lstrip("/")
        with contextlib.suppress(Exception):  # not permitted, not supported: they cost space, no more
            client = boto3.client("s3", endpoint_url=s3_endpoint(os.environ) or None)
            for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=self._place, Prefix=prefix):
                for left in page.get("Uploads", ()):
                    if names(left["Key"][len(prefix) :]):
                        client.abort_multipart_upload(Bucket=self._place, Key=left["Key"], UploadId=left["UploadId"])

    def delete(self, urls: Iterable[str]) -> None:
        for url in urls:
            with contextlib.suppress(ObjectMissing):
                self._try(url, "remove", lambda url=url: obstore.delete(self._client, self._key(url)))  # type: ignore[misc]

    # ------------------------------------------------------------------------------------ requests

    def _try(self, url: str, doing: str, once: Callable[[], T]) -> T:
        """Its result, after as many tries as its patience allows."""
        _refuse_fork()
        began, pause = time.monotonic(), 0.2
        while True:
            try:
                result = once()
            except AlreadyExistsError:
                raise ObjectExists(f"{url} is there already", "choose another place, or remove it") from None
            except InvalidPathError:
                raise _OddName(
                    f"cannot {doing} {url}: the name of an object there has an empty part, '.' or '..' in it",
                    "rename or remove that object, or name a folder without it",
                ) from None
            except PreconditionError:
                raise ObjectChanged(f"{url} is not what it was", "run the command again") from None
            except AutomodelError:
                raise
            except _ERRORS as error:
                failure = failure_of(error)
                self._answered |= failure.status > 0
                self._give_up(failure, url, doing, time.monotonic() - began)
            else:
                self._answered = self._there = True
                return result
            time.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _give_up(self, failure: Failure, url: str, doing: str, seconds: float) -> None:
        if failure.status == 416:
            raise _PastEnd("past the end")
        patience = self._patience if self._answered else min(self._patience, _FIRST_PATIENCE_SECONDS)
        if not failure.passing or seconds > patience:
            raise in_words(failure, url, doing, self._endpoint) from None

    def _key(self, url: str) -> str:
        address = split_url(url)
        assert (address.scheme, address.place) == (self._scheme, self._place), url
        return address.key

    def _info_of(self, meta: Any) -> ObjectInfo:
        url = str(Address(self._scheme, self._place, meta["path"]))
        return ObjectInfo(url, meta["size"], _quoted(meta["e_tag"]), self._generation(meta["version"]))

    def _generation(self, version: str | None) -> str:
        """Conditional writes go by the etag, but for Google's."""
        return version or "" if self._scheme == "gs" else ""


def _quoted(etag: str | None) -> str:
    """Azure lists them without the quotes that its answers and conditions have."""
    return f'"{etag}"' if etag and not etag.endswith('"') else etag or ""


def _without_markers(folder: str, infos: list[ObjectInfo]) -> list[ObjectInfo]:
    """Consoles and mounts mark a folder by an empty object ``FOLDER/``, of which the client says ``FOLDER``."""
    if all(info.size for info in infos):
        return infos
    folders = {folder.rstrip("/")}
    for info in infos:
        url = info.url
        while (url := url.rpartition("/")[0]) not in folders and len(url) > len(folder):
            folders.add(url)
    return [info for info in infos if info.size or info.url not in folders]


_user: list[int] = []  # the process that has used the client


def _refuse_fork() -> None:
    """The client's threads do not survive a fork: a request would wait for ever.

    Raises:
        RuntimeError: this process was forked from one that had used it.
    """
    if not _user:
        _user.append(os.getpid())
    if _user[0] != os.getpid():
        raise RuntimeError("object storage was used before this process was forked; start it anew (spawn)")


class _PastEnd(AutomodelError):
    """What was asked for begins where the object has ended."""


class _OddName(ConfigError):
    """There is an object whose name the client cannot speak of."""


def _checked_parts(path: Path | str, part: int, xxh3: str) -> Iterator[bytes]:
    """The content of a file; the last part only if all of it has the hash, so that nothing else is published."""
    digest = xxhash.xxh3_64()
    with Path(path).open("rb") as handle:
        block = handle.read(part)
        while block:
            digest.update(block)
            following = handle.read(part)
            if not following and xxh3 and f"xxh3:{digest.hexdigest()}" != xxh3:
                raise DataError(f"{path} is not what was written: its hash has changed", "check the disk")
            yield block
            block = following
