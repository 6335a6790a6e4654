"""Publication of files: whole or not at all, named when the disk is full, locked, and hashed."""

import errno
import json
import multiprocessing
import os

import pytest
import xxhash

from automodel_cli import files
from automodel_cli.errors import AutomodelError, CheckpointError, ConfigError, DataError


def test_a_file_appears_whole(tmp_path):
    target = tmp_path / "a.bin"
    with files.atomic_file(target) as handle:
        handle.write(b"one")
        assert not target.exists()
    assert target.read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_failure_leaves_the_former_content(tmp_path):
    target = tmp_path / "a.bin"
    target.write_bytes(b"before")
    with pytest.raises(ValueError, match="oops"), files.atomic_file(target) as handle:
        handle.write(b"half")
        raise ValueError("oops")
    assert target.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "no room left"), (errno.EDQUOT, "no room left"), (errno.EACCES, "cannot write")],
)
def test_a_full_disk_is_named(tmp_path, number, words):
    with pytest.raises(AutomodelError, match=words) as caught, files.atomic_file(tmp_path / "a.bin"):
        raise OSError(number, os.strerror(number))
    assert "a.bin" in caught.value.message
    assert caught.value.hint
    assert not list(tmp_path.iterdir())


def test_other_io_errors_pass(tmp_path):
    with pytest.raises(OSError, match="Input/output"), files.atomic_file(tmp_path / "a.bin"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_hashes_are_xxh3(tmp_path):
    data = os.urandom(3 << 20)
    (tmp_path / "a").write_bytes(data)
    expected = f"xxh3:{xxhash.xxh3_64(data).hexdigest()}"
    assert files.hash_bytes(data) == files.hash_file(tmp_path / "a") == expected


def test_manifest_round_trip_and_equal_bytes(tmp_path):
    files.write_manifest(tmp_path / "a.json", {"b": 1, "a": ["ä", None, 1.5]})
    files.write_manifest(tmp_path / "b.json", {"a": ["ä", None, 1.5], "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    body = files.read_manifest(tmp_path / "a.json")
    body.pop("self")
    assert body == {"a": ["ä", None, 1.5], "b": 1}


def test_every_changed_byte_of_a_manifest_is_found(tmp_path):
    path = tmp_path / "manifest.json"
    files.write_manifest(path, {"files": [{"name": "x", "bytes": 3}], "format": "f/1"})
    whole = path.read_bytes()
    for offset in range(len(whole)):
        for bit in (0, 5):
            damaged = bytearray(whole)
            damaged[offset] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(DataError, match="damaged"):
                files.read_manifest(path)
    path.write_bytes(whole)
    assert files.read_manifest(path)["format"] == "f/1"


def test_no_manifest_is_the_callers_kind_of_error(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        files.read_manifest(tmp_path / "manifest.json", CheckpointError)


def test_json_is_sorted(tmp_path):
    files.write_json(tmp_path / "a.json", {"b": 1, "a": 2})
    text = (tmp_path / "a.json").read_text()
    assert text.index('"a"') < text.index('"b"')
    assert json.loads(text) == {"a": 2, "b": 1}


def _hold(path, ready, done):
    with files.exclusive_lock(path, busy="busy"):
        ready.set()
        done.wait(30)


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / ".lock", ready, done))
    holder.start()
    try:
        assert ready.wait(30)
        with (
            pytest.raises(AutomodelError, match="it is taken"),
            files.exclusive_lock(tmp_path / ".lock", busy="it is taken"),
        ):
            pass
        holder.kill()
        holder.join()
        with files.exclusive_lock(tmp_path / ".lock", busy="it is taken"):
            pass
    finally:
        holder.kill()
        holder.join()


@pytest.mark.parametrize("inside", ["", "/below/it"])
def test_a_file_where_a_folder_is_needed_is_named(tmp_path, inside):
    (tmp_path / "out").write_text("mine")
    (tmp_path / "broken").symlink_to("nowhere")
    for name in ("out", "broken"):
        with pytest.raises(ConfigError, match=rf"{name} is not a folder") as caught:
            files.make_folder(f"{tmp_path / name}{inside}")
        assert "use another --output-dir" in caught.value.hint
    files.make_folder(tmp_path / "new" / "one")
    files.make_folder(tmp_path / "new" / "one")
    assert (tmp_path / "out").read_text() == "mine" and (tmp_path / "new" / "one").is_dir()


def test_whether_a_lock_is_held_is_seen_without_making_or_taking_it(tmp_path):
    lock = tmp_path / "inner" / ".lock"
    assert not files.is_locked(lock) and not lock.parent.exists()
    lock.parent.mkdir()
    with files.exclusive_lock(lock, busy="busy"):
        assert files.is_locked(lock)
    assert not files.is_locked(lock)
    with files.exclusive_lock(lock, busy="busy"):
        pass
