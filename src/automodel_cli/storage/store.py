"""What object storage can do, whoever provides it. There is no rename, no append and no lock; objects are whole.

``opening.open_store(url)`` gives the store of a URL's place. Every method takes full URLs of that place, may be called
from any thread, and repeats what failed for a passing reason (5xx, throttling, a cut connection) with growing pauses
for a bounded time; then, or where repeating does not help, it raises an error that says what to do. Bytes that come
back are all that were asked for. Credentials are those of the provider's own chain, and no message holds any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from automodel_cli.errors import AutomodelError, DataError


@dataclass(frozen=True)
class ObjectInfo:
    """What is known of an object without reading it.

    Attributes:
        size: bytes.
        etag: changes when the content does; "" where the store has none.
        generation: what conditional writes of some stores (GCS) go by; "" elsewhere, and in listings.
    """

    url: str
    size: int
    etag: str = ""
    generation: str = field(default="", compare=False)


class ObjectMissing(DataError):
    """There is no such object."""


class ObjectChanged(DataError):
    """An object is no longer the one that was listed, or that was to be replaced."""


class ObjectExists(AutomodelError):
    """An object that must not have been there is there."""


class Store(Protocol):
    """One bucket, container, repository, or the local disk."""

    def info(self, url: str) -> ObjectInfo | None:
        """Size and identity of an object, None where there is none."""
        ...

    def list_all(self, folder: str) -> list[ObjectInfo]:
        """All objects below ``folder``, however deep, sorted by URL; none is no error."""
        ...

    def read(self, url: str, start: int = 0, stop: int | None = None, *, etag: str = "") -> bytes:
        """Bytes ``start`` to ``stop`` (None: the end); fewer where the object ends before.

        Args:
            etag: of the object that is meant.

        Raises:
            ObjectMissing: there is none.
            ObjectChanged: it has another etag.
        """
        ...

    def read_ranges(self, url: str, ranges: Sequence[tuple[int, int]], *, etag: str = "") -> list[bytes]:
        """As ``read``, of several ``(start, stop)`` at once."""
        ...

    def put(self, url: str, data: bytes, *, if_absent: bool = False, replaces: ObjectInfo | None = None) -> ObjectInfo:
        """Make ``data`` the whole content of an object, atomically.

        Args:
            if_absent: only where there is none; of two who try, one succeeds.
            replaces: only where this is what is there.

        Raises:
            ObjectExists: ``if_absent``, and another content is there.
            ObjectChanged: it is not what ``replaces`` says.
        """
        ...

    def upload(self, url: str, path: Path | str, *, xxh3: str = "") -> ObjectInfo:
        """Make the content of a local file an object, in parts side by side; it appears when all are there.

        Args:
            xxh3: the hash that the file has to have (``xxh3:...``).

        Raises:
            DataError: the file is another than ``xxh3`` says, or what arrived has another size. Nothing was published.
        """
        ...

    def download(self, url: str, path: Path | str, *, etag: str = "") -> None:
        """Write an object to a local file, which appears when it is whole."""
        ...

    def abort_uploads(self, folder: str, names: Callable[[str], bool]) -> None:
        """Remove what uploads below ``folder`` left that were killed, of those whose name in it is among ``names``.

        Nobody may be uploading these. Without effect where the provider removes them by itself, or cannot say.
        """
        ...

    def delete(self, urls: Iterable[str]) -> None:
        """Remove objects; those that are not there are no error."""
        ...
