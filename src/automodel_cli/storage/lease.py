"""Who may write below a URL: an object that is created on condition, renewed, and expires when its owner is gone.

Object storage has no locks that end with a process. A lease is an object of JSON: owner, machine, process, and until
when it holds. It is taken with a conditional write (of two who try one succeeds), renewed in the background long before
it ends, and removed in the end. When its owner died and it has expired, it is taken over, by a conditional write again;
the same owner (a folder of work that a process of this machine left) need not wait. Clocks of machines may differ by
:data:`SKEW_SECONDS`.

A writer that was suspended for longer may find another at work. So :meth:`Lease.check` comes before everything that
publishes; what little time is left in between does no harm, because both would write the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from typing import Self

from automodel_cli.errors import AutomodelError, DataError
from automodel_cli.json_files import FileModel, FiniteFloat, parse_json, validated
from automodel_cli.storage.opening import open_store
from automodel_cli.storage.store import ObjectChanged, ObjectExists, ObjectInfo, ObjectMissing

LEASE_SECONDS = 120.0
SKEW_SECONDS = 30.0
_TRIES = 5


class _Body(FileModel):
    owner: str
    host: str
    pid: int
    expires: FiniteFloat


class Lease:
    """The right to write, held from ``with`` to its end.

    Args:
        url: of the object.
        owner: who takes it; the same one may take over its own.
        busy: what is said where another holds it.
        seconds: how long it outlives its owner.

    Raises:
        AutomodelError: on entering, another holds it.
    """

    def __init__(self, url: str, owner: str, busy: str, seconds: float = LEASE_SECONDS) -> None:
        self._url, self._owner, self._busy, self._seconds = url, owner, busy, seconds
        self._store = open_store(url)
        self._held: ObjectInfo | None = None
        self._renewed = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_often, name="lease", daemon=True)

    def __enter__(self) -> Self:
        for _ in range(_TRIES):
            self._renewed = time.monotonic()
            if (held := self._take()) is not None:
                self._held = held
                self._thread.start()
                return self
        raise AutomodelError(self._busy, "wait for it, or use another place")

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(AutomodelError):  # it expires by itself
            self.check()
            self._store.delete([self._url])

    def check(self) -> None:
        """Go on only while it is held.

        Raises:
            AutomodelError: it was lost: another may be writing.
        """
        if self._held is None or time.monotonic() - self._renewed > self._seconds:
            raise AutomodelError(
                f"the lease {self._url} was lost: it was not renewed for {self._seconds:,.0f} s, or was taken over",
                "run the same command again; it goes on from here",
            )

    def _body(self) -> bytes:
        body = {"owner": self._owner, "host": socket.gethostname(), "pid": os.getpid()}
        return json.dumps({**body, "expires": time.time() + self._seconds}, sort_keys=True).encode()

    def _take(self) -> ObjectInfo | None:
        """The lease if it is free, ours or expired; None where somebody was quicker, so that it is worth another try.

        Raises:
            AutomodelError: another holds it.
        """
        try:
            return self._store.put(self._url, self._body(), if_absent=True)
        except ObjectExists:
            pass
        try:
            there = self._store.info(self._url)
            if there is None:
                return None
            found = _parsed(self._store.read(self._url, etag=there.etag), self._url)
            left = found.expires + SKEW_SECONDS - time.time()
            if found.owner != self._owner and left > 0:
                raise AutomodelError(
                    f"{self._busy}: process {found.pid} on {found.host}",
                    f"wait for it, or use another place; if it died, its lease ends in {left:,.0f} s",
                )
            return self._store.put(self._url, self._body(), replaces=there)
        except (ObjectChanged, ObjectMissing):
            return None

    def _renew_often(self) -> None:
        while self._held is not None and not self._ended.wait(self._seconds / 4):
            began = time.monotonic()
            try:
                self._held = self._store.put(self._url, self._body(), replaces=self._held)
                self._renewed = began
            except (ObjectChanged, ObjectMissing):
                self._held = None
            except AutomodelError:
                pass  # the next time, or it ends


def _parsed(data: bytes, url: str) -> _Body:
    hint = "if nobody writes there, remove it"
    try:
        return validated(parse_json(data, url, hint=hint), _Body, url, hint=hint)
    except DataError as error:
        raise AutomodelError(f"{url} is not a lease: {error.message}", hint) from None
