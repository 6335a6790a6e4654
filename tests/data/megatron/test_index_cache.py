"""The index cache: built once, believed only when it is whole and of the data at hand, safe with many processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from automodel_cli.data.megatron.index_cache import (
    Arrays,
    ArraySpec,
    IndexCache,
    IndexEntry,
    check_folder,
    stem_of,
)
from automodel_cli.errors import DataError
from automodel_cli.files import hash_file, write_manifest

PLAN = {"seed": 1234, "seq_len": 16}


class Builder:
    """Makes an entry's arrays and counts how often."""

    def __init__(self, rows: int = 100) -> None:
        self.calls, self.rows = 0, rows

    def __call__(self) -> Arrays:
        self.calls += 1
        return {"first": np.arange(self.rows), "second": np.ones((self.rows, 2), np.int32)}


def entry(build: Any, *, data: Any = "data", plan: dict[str, Any] = PLAN, end: int = 2, **more: Any) -> IndexEntry:
    rows = getattr(build, "rows", 100)
    arrays = {
        "first": ArraySpec(("int64",), (rows,), 0, rows),
        "second": ArraySpec(("int32", "int64"), (rows, 2), 1, (2, end)),
    }
    return IndexEntry(stem_of("label", plan), plan, data, arrays, build, **more)


def load(folder: Path | None, *entries: IndexEntry) -> tuple[list[Arrays], list[str]]:
    cache = IndexCache(folder)
    return cache.arrays(entries), cache.notes


def test_built_once_then_read(tmp_path: Path) -> None:
    build = Builder(rows=200_000)  # large enough to be mapped
    for _ in range(3):
        (arrays,), notes = load(tmp_path / "made" / "here", entry(build))
        assert build.calls == 1
        assert notes == []
        np.testing.assert_array_equal(arrays["first"], np.arange(200_000))
        assert arrays["second"].dtype == np.int32
        assert not arrays["first"].flags.writeable


def test_files_have_readable_names_and_a_stamp(tmp_path: Path) -> None:
    load(tmp_path, entry(Builder(), description="as Megatron writes it"))
    stem = stem_of("label", PLAN)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["index.lock", *(f"{stem}-{n}" for n in ("first.npy", "second.npy", "stamp.json", "description.txt"))]
    )
    stamp = json.loads((tmp_path / f"{stem}-stamp.json").read_text())
    assert stamp["plan"] == PLAN
    first = tmp_path / f"{stem}-first.npy"
    assert stamp["files"]["first.npy"] == {"bytes": first.stat().st_size, "xxh3": hash_file(first)}


def test_other_data_under_the_same_name_is_built_again_with_a_line(tmp_path: Path) -> None:
    load(tmp_path, entry(Builder(100), data={"bytes": 1}))
    (arrays,), notes = load(tmp_path, entry(build := Builder(30), data={"bytes": 2}))
    assert len(arrays["first"]) == 30
    assert build.calls == 1
    assert len(notes) == 1 and "the data has changed since" in notes[0]
    assert load(tmp_path, entry(build, data={"bytes": 2}))[1] == []
    assert build.calls == 1


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize(
    ("name", "damage", "line"),
    [
        ("first.npy", _cut, "was cut off"),
        ("second.npy", Path.unlink, "is missing"),
        ("stamp.json", _cut, "is damaged"),
        ("stamp.json", Path.unlink, "was not finished"),
        ("stamp.json", lambda path: path.write_text("[]"), "is of format None"),
        ("stamp.json", lambda path: path.write_text('{"format": "automodel-index/1"}'), "has no checksums"),
        ("stamp.json", lambda path: path.write_text("[" * 100_000), "is not valid JSON"),
        ("first.npy", lambda path: path.write_bytes(b"x" * path.stat().st_size), "its hash is not the one"),
    ],
)
def test_damage_is_noticed_and_healed(tmp_path: Path, name: str, damage: Any, line: str) -> None:
    build = Builder()
    load(tmp_path, entry(build))
    damage(tmp_path / f"{stem_of('label', PLAN)}-{name}")
    (arrays,), notes = load(tmp_path, entry(build))
    assert build.calls == 2
    assert len(notes) == 1 and line in notes[0]
    np.testing.assert_array_equal(arrays["first"], np.arange(100))
    assert load(tmp_path, entry(build))[1] == []
    assert build.calls == 2


def test_no_pickle_is_ever_read(tmp_path: Path) -> None:
    build = Builder()
    load(tmp_path, entry(build))
    path = tmp_path / f"{stem_of('label', PLAN)}-first.npy"
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    stamp_path = tmp_path / f"{stem_of('label', PLAN)}-stamp.json"
    stamp = json.loads(stamp_path.read_text())
    stamp["files"]["first.npy"] = {"bytes": path.stat().st_size, "xxh3": hash_file(path)}
    write_manifest(stamp_path, {key: value for key, value in stamp.items() if key != "self"})
    _, notes = load(tmp_path, entry(build))
    assert build.calls == 2
    assert "holds Python objects" in notes[0]


def test_a_build_that_fails_leaves_nothing_that_is_believed(tmp_path: Path) -> None:
    def fail() -> Arrays:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        load(tmp_path, entry(fail))
    build = Builder()
    assert load(tmp_path, entry(build))[1] == []
    assert build.calls == 1


def test_a_killed_build_leaves_temporaries_that_the_next_one_sweeps(tmp_path: Path) -> None:
    stem = stem_of("label", PLAN)
    (tmp_path / f"{stem}-first.npy.0123456789ab.automodel.tmp").write_bytes(b"half")
    (tmp_path / "other-first.npy.0123456789ab.automodel.tmp").write_bytes(b"somebody else's")
    load(tmp_path, entry(Builder()))
    assert [path.name for path in tmp_path.glob("*.tmp")] == ["other-first.npy.0123456789ab.automodel.tmp"]


def test_a_folder_that_cannot_be_written_costs_only_the_cache(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    build = Builder()
    for calls in (1, 2):
        (arrays,), notes = load(tmp_path / "file" / "below", entry(build))
        assert len(arrays["first"]) == 100
        assert build.calls == calls
        assert "kept in memory" in notes[0]


def test_a_full_disk_costs_only_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("automodel_cli.files.fsync_file", full)
    (arrays,), notes = load(tmp_path, entry(Builder()))
    assert len(arrays["first"]) == 100
    assert "No space left" in notes[0]
    assert not list(tmp_path.glob("*.npy*"))


def test_without_a_folder_all_is_in_memory() -> None:
    (arrays,), notes = load(None, entry(Builder()))
    assert len(arrays["second"]) == 100
    assert notes == []


def test_file_systems_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("automodel_cli.files.fcntl.flock", no_locks)
    build = Builder()
    load(tmp_path, entry(build))
    assert load(tmp_path, entry(build))[1] == []
    assert build.calls == 1


def test_many_are_built_in_threads_and_in_order(tmp_path: Path) -> None:
    entries = [entry(Builder(rows), plan={"rows": rows}) for rows in range(1, 9)]
    found = IndexCache(tmp_path).arrays(entries, threads=4)
    assert [len(arrays["first"]) for arrays in found] == list(range(1, 9))


def test_many_stale_entries_are_a_few_lines(tmp_path: Path) -> None:
    def entries(data: int) -> list[IndexEntry]:
        return [entry(Builder(), plan={"n": number}, data=data) for number in range(10)]

    load(tmp_path, *entries(1))
    notes = load(tmp_path, *entries(2))[1]
    assert len(notes) == 4
    assert notes[-1] == "and 7 more indices"


def _rank(folder: Path, log: Path) -> None:
    def build() -> Arrays:
        with log.open("a") as handle:
            handle.write("built\n")
        time.sleep(0.3)
        return Builder()()

    (arrays,), _ = load(folder, entry(build))
    assert len(arrays["first"]) == 100


def test_of_many_processes_one_builds(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    ranks = [context.Process(target=_rank, args=(tmp_path / "cache", log)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(30)
    assert [rank.exitcode for rank in ranks] == [0] * 4
    assert log.read_text() == "built\n"


def test_every_flipped_bit_is_noticed_and_healed(tmp_path: Path) -> None:
    """40 flips all over an entry, one at a time; the description is only checked by ``check_folder``."""
    build = Builder()
    load(tmp_path, entry(build, description="as Megatron writes it"))
    files = sorted(path for path in tmp_path.iterdir() if path.name != "index.lock")
    random = np.random.default_rng(0)
    for number in range(40):
        path = files[number % len(files)]
        sound = path.read_bytes()
        damaged = bytearray(sound)
        damaged[random.integers(len(sound))] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        assert len(check_folder(tmp_path)[1]) == 1
        calls = build.calls
        (arrays,), notes = load(tmp_path, entry(build, description="as Megatron writes it"))
        np.testing.assert_array_equal(arrays["first"], np.arange(100))
        if path.suffix != ".txt":
            assert build.calls == calls + 1 and len(notes) == 1
        path.write_bytes(sound)
    assert check_folder(tmp_path) == (3, [])


def test_arrays_that_cannot_be_are_not_used(tmp_path: Path) -> None:
    load(tmp_path, entry(Builder()))
    _, notes = load(tmp_path, entry(build := Builder(), end=1))
    assert build.calls == 1
    expected = "second has values 1 to 1, expected 1 to below (2, 1)"
    assert notes == [f"index built again, {stem_of('label', PLAN)}: {expected}"]


@pytest.mark.parametrize(
    "value",
    [
        np.array([[0, 0], [1, 4], [4, 2]], dtype=np.int32),  # beyond the end of its column
        np.array([[0, 0], [1, -4], [3, 2]], dtype=np.int32),
        np.zeros((2, 3), dtype=np.int32),
        np.zeros((3, 2), dtype=np.float32),
    ],
)
def test_type_shape_and_range_of_an_array(value: np.ndarray) -> None:
    spec = ArraySpec(("int32", "int64"), (3, 2), 0, (4, 9))
    sound = np.array([[0, 0], [1, 8], [3, 2]], dtype=np.int32)
    assert spec.check("sample_index", sound) is sound
    with pytest.raises(DataError, match="sample_index"):
        spec.check("sample_index", value)


def test_a_large_array_that_is_cut_off_under_a_run_is_named(tmp_path: Path) -> None:
    cache = IndexCache(tmp_path)
    cache.arrays([entry(Builder(rows=200_000))])
    (watched, *_) = cache.watched[stem_of("label", PLAN)]
    os.truncate(watched.path, 1000)
    with pytest.raises(DataError, match="1,000 bytes long"):
        watched.check()
