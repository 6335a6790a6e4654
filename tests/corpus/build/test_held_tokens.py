"""Ids that stay with their worker: slices like those of the array, and files as if the array had been written."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from automodel_cli.corpus.build.held_tokens import HeldTokens, PlaceOrder, place
from automodel_cli.corpus.build.pool import OrderedPool
from automodel_cli.corpus.build.tokenize import EncodeTask
from automodel_cli.corpus.documents.units import ReadOptions, Unit
from automodel_cli.corpus.formats.growing_file import GrowingFile
from automodel_cli.corpus.formats.nanogpt_writer import append_tokens
from automodel_cli.corpus.tokenizer import ByteTokenizer
from automodel_cli.errors import AutomodelError


@pytest.fixture
def task(tmp_path: Path) -> EncodeTask:
    ByteTokenizer().save(tmp_path / "tokenizer")
    return EncodeTask(tmp_path / "tokenizer", "auto", ReadOptions(), "<u2", before=(256,))


def line_units(count: int) -> Iterator[Unit]:
    for k in range(count):
        yield Unit("line", "a.txt", 0, {"at": k}, payload=b"%d " % k * (1 if k % 3 else 5000))


def in_one_process(task: EncodeTask, count: int) -> list[np.ndarray]:
    turn = task.open()
    return [turn(unit).tokens for unit in line_units(count)]


def test_slices_are_those_of_an_array(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 60000, 50).astype("<u2")
    for _ in range(200):
        order = PlaceOrder(0)
        held, array = HeldTokens(order, 0, len(ids), ids.dtype, lambda: None), ids
        for _ in range(3):
            piece = slice(*(None if rng.random() < 0.2 else int(rng.integers(-5, len(array) + 5)) for _ in "ab"))
            held, array = held[piece], array[piece]
            assert len(held) == len(array) and held.nbytes == array.nbytes
        path = tmp_path / "x"
        path.write_bytes(b"\xff" * 6)
        held.put(path, 6)
        place(ids, order.placements)
        assert path.read_bytes() == b"\xff" * 6 + array.tobytes()


@pytest.mark.parametrize("workers", [1, 3])
def test_files_are_those_of_arrays(tmp_path: Path, task: EncodeTask, workers: int) -> None:
    """Pieces of each chunk go to two files in turn; one is synced on the way, and more is written to it."""
    expected = {"a": b"", "b": b""}
    for k, ids in enumerate(in_one_process(task, 40)):
        expected["a"] += ids[: len(ids) // 2].tobytes()
        expected["b"] += ids[len(ids) // 2 :].tobytes() + b"plain" * (k % 2)
    files = {name: GrowingFile(tmp_path / name) for name in expected}
    with OrderedPool(task, num_workers=workers, window=6, holds=True) as pool:
        for k, (_, chunk) in enumerate(pool.run(line_units(40))):
            assert isinstance(chunk.tokens, HeldTokens)
            append_tokens(files["a"], chunk.tokens[: len(chunk.tokens) // 2])
            append_tokens(files["b"], chunk.tokens[len(chunk.tokens) // 2 :])
            if k % 2:
                files["b"].write(memoryview(b"plain"))
            if k == 17:
                files["a"].sync()
                size = files["a"].temporary.stat().st_size
                assert files["a"].temporary.read_bytes() == expected["a"][:size] and size > 1000
    for file in files.values():
        file.publish()
    assert {name: (tmp_path / name).read_bytes() for name in expected} == expected


def test_all_is_in_place_when_the_pool_is_left_early(tmp_path: Path, task: EncodeTask) -> None:
    file = GrowingFile(tmp_path / "a")
    with OrderedPool(task, num_workers=2, window=8, holds=True) as pool:
        for k, (_, chunk) in enumerate(pool.run(line_units(50))):
            append_tokens(file, chunk.tokens)
            if k == 9:
                break
        assert len(pool._orders) >= 1
    file.publish()
    assert (tmp_path / "a").read_bytes() == b"".join(ids.tobytes() for ids in in_one_process(task, 50)[:10])


def test_a_full_disk_is_an_error_and_not_a_hang(tmp_path: Path, task: EncodeTask) -> None:
    """A limit on the worker's file sizes stands for the disk."""
    file = GrowingFile(tmp_path / "a")
    with (
        pytest.raises(AutomodelError, match=r"no room left while writing .*a\.automodel\.tmp"),
        OrderedPool(task, num_workers=2, window=4, holds=True) as pool,
    ):
        units = pool.run(line_units(50))
        first = next(units)  # both workers are there
        for worker in pool._workers:
            resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, (8000, 8000))
        append_tokens(file, first[1].tokens)
        for _, chunk in units:
            append_tokens(file, chunk.tokens)
    file.abandon()
    assert not list(tmp_path.glob("a*"))


def test_a_worker_that_dies_with_ids_is_an_error(tmp_path: Path, task: EncodeTask) -> None:
    file = GrowingFile(tmp_path / "a")
    with (
        pytest.raises(AutomodelError, match="a worker process died"),
        OrderedPool(task, num_workers=1, window=2, holds=True) as pool,
    ):
        _, chunk = next(pool.run(line_units(1)))
        append_tokens(file, chunk.tokens)
        os.kill(pool._workers[0].process.pid, signal.SIGKILL)
        pool._workers[0].process.wait()
        file.sync()
    file.abandon()
