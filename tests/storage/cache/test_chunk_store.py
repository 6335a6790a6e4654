"""Chunks on the disk: bounded, shared, found out when damaged, and done without where the disk is full."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from automodel_cli.storage.cache import chunk_store
from automodel_cli.storage.cache.chunk_store import ChunkStore
from automodel_cli.storage.cache.settings import CacheSettings

SIZE = 1000


def _store(folder: Path, most: int = 1 << 20) -> ChunkStore:
    return ChunkStore(CacheSettings(folder, max_bytes=most, chunk_bytes=SIZE))


def _content(store: ChunkStore, number: int) -> bytes | None:
    descriptor = store.open(("a", number), SIZE)
    if descriptor is None:
        return None
    try:
        return os.pread(descriptor, SIZE, 0)
    finally:
        os.close(descriptor)


def _add(store: ChunkStore, number: int) -> bool:
    descriptor = store.add(("a", number), bytes([number % 256]) * SIZE)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is not None


def test_a_chunk_is_there_for_every_process(tmp_path: Path) -> None:
    assert _content(_store(tmp_path), 1) is None
    assert _add(_store(tmp_path), 1)
    assert _content(_store(tmp_path), 1) == b"\1" * SIZE


@pytest.mark.parametrize("damage", ["flip", "cut", "longer", "empty"])
def test_a_damaged_chunk_is_missing(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _add(_store(tmp_path), 1)
    path = _store(tmp_path).path(("a", 1))
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes({"flip": content, "cut": content[:500], "longer": content + b"x", "empty": b""}[damage])
    assert _content(_store(tmp_path), 1) is None and not path.exists()
    assert "was damaged" in caplog.text


def test_the_least_recently_used_go_and_the_sum_stays_below_the_limit(tmp_path: Path) -> None:
    store = _store(tmp_path, most=50 * SIZE)
    for number in range(30):
        _add(store, number)
        os.utime(store.path(("a", number)), ns=(number, number))
    assert _content(store, 0)  # used now
    for number in range(30, 200):
        _add(store, number)
        kept = [path.stat().st_size for path in (tmp_path / "chunks").rglob("*") if path.is_file()]
        assert sum(kept) <= 50 * SIZE + 8 * len(kept)
        if number == 55:
            assert _content(store, 0) and _content(store, 1) is None


def test_a_full_disk_is_said_once_and_nothing_half_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = _store(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert not _add(store, 1) and not _add(store, 2)
    assert caplog.text.count("takes no more (No space left on device)") == 1
    assert not [path for path in (tmp_path / "chunks").rglob("*") if path.is_file()]
    monkeypatch.undo()
    monkeypatch.setattr(chunk_store, "_free_bytes", lambda folder: 0)
    assert not _add(store, 3)


def test_what_a_killed_process_left_goes_with_the_oldest(tmp_path: Path) -> None:
    store = _store(tmp_path, most=10 * SIZE)
    _add(store, 1)
    half = store.path(("a", 2)).with_name(".00000002.1.1")
    half.write_bytes(b"x" * SIZE)
    os.utime(half, (0, 0))
    for number in range(3, 20):
        _add(store, number)
    assert not half.exists()


def test_one_at_a_time_fetches_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another waits, and finds it then; nobody waits for ever."""
    first, second, order = _store(tmp_path), _store(tmp_path), []
    inside = threading.Event()

    def other() -> None:
        inside.wait()
        with second.claim(("a", 1)):
            order.append("second")

    thread = threading.Thread(target=other)
    thread.start()
    with first.claim(("a", 1)):
        inside.set()
        thread.join(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    monkeypatch.setattr(chunk_store, "_PATIENCE_S", 0.05)
    with first.claim(("a", 1)), second.claim(("a", 1)):
        pass
