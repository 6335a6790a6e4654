"""Random access to remote files: any range is what it is, and no more is asked of the store than has to be."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
import pytest
from tests.object_server import Faults, ObjectServer

from automodel_cli.errors import AutomodelError
from automodel_cli.storage.cache import remote_file
from automodel_cli.storage.cache.remote_file import Fetcher, RemoteFile, RemoteObject
from automodel_cli.storage.cache.settings import CacheSettings
from automodel_cli.storage.opening import open_store

SIZE = 1_000_003
CHUNK = 64 << 10
CONTENT = np.random.default_rng(0).bytes(SIZE)


@pytest.fixture
def remote(object_server: ObjectServer, tmp_path: Path) -> RemoteObject:
    url = f"{object_server.bucket('files')}/one.bin"
    info = open_store(url).put(url, CONTENT)
    object_server.requests.clear()
    return RemoteObject(url, info.size, info.etag, CacheSettings(tmp_path / "cache", chunk_bytes=CHUNK))


def _read(remote: RemoteObject, start: int, stop: int) -> bytes:
    out = bytearray(stop - start)
    RemoteFile(remote).read_into(start, memoryview(out))
    return bytes(out)


def _gets(server: ObjectServer) -> int:
    return sum(one.startswith("GET") and "one.bin" in one for one in server.requests)


def test_any_range(remote: RemoteObject, object_server: ObjectServer) -> None:
    draw = random.Random(0)
    for _ in range(200):
        start, stop = sorted(draw.choices(range(SIZE + 1), k=2))
        assert _read(remote, start, stop) == CONTENT[start:stop]
    assert _gets(object_server) <= -(-SIZE // CHUNK)
    with pytest.raises(AutomodelError, match=r"bytes 999,999 to 1,000,099 asked of s3://files/one\.bin"):
        _read(remote, 999_999, 1_000_099)


def test_rows_in_order_bring_chunks_and_rows_all_over_come_alone(
    remote: RemoteObject, object_server: ObjectServer
) -> None:
    fetcher = Fetcher(remote.cache)
    in_order = [(remote, (start, start + 100)) for start in range(0, 3000, 100)]
    assert fetcher.expect(in_order) == 2  # nobody knows that the first is one of many
    assert fetcher.staged(remote, (0, 100)) == CONTENT[:100]
    assert fetcher.chunk(remote, 0) is not None and _gets(object_server) == 2
    assert fetcher.expect([(remote, (start, start + 100)) for start in range(3000, CHUNK + 100, 100)]) == 1
    alone = [(remote, (chunk * CHUNK + 50, chunk * CHUNK + 150)) for chunk in (3, 7, 9)]
    assert fetcher.expect(alone) == 3
    for _, (start, stop) in alone:
        assert fetcher.staged(remote, (start, stop)) == CONTENT[start:stop]
        assert fetcher.staged(remote, (start, stop)) is None  # given out once
    assert not fetcher.store.has((remote.key, 7))


def test_the_rest_comes_in_the_background(remote: RemoteObject, object_server: ObjectServer) -> None:
    fetcher = Fetcher(remote.cache)
    fetcher.fill([remote])
    deadline = time.monotonic() + 60
    chunks = -(-SIZE // CHUNK)
    while not all(fetcher.store.has((remote.key, number)) for number in range(chunks)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    object_server.requests.clear()
    assert _read(remote, 0, SIZE) == CONTENT and not object_server.requests


def test_a_disk_that_takes_nothing(
    remote: RemoteObject, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remote_file, "_MOST_IN_MEMORY_BYTES", 3 * CHUNK)
    remote.cache.folder.parent.mkdir(exist_ok=True)
    remote.cache.folder.write_text("a file where the folder should be")
    assert _read(remote, 0, SIZE) == CONTENT and _read(remote, 10, SIZE) == CONTENT[10:]
    assert caplog.text.count("takes no more") == 1


def test_what_fails_ahead_is_tried_again_when_it_is_needed(
    remote: RemoteObject, object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetcher = Fetcher(remote.cache)
    object_server.faults = Faults(errors=1.0, status=403, most=1)
    fetcher.expect([(remote, (0, 100)), (remote, (100, 200))])
    opened = fetcher.chunk(remote, 0)
    out = bytearray(200)
    opened.read_into(0, memoryview(out))
    assert out == CONTENT[:200]
