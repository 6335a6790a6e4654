"""Buffers and reading ahead."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.token_files import write_token_file

from automodel_cli.data import windows
from automodel_cli.data.nanogpt_dataset import NanogptDataset
from automodel_cli.data.sampler import batch_shape
from automodel_cli.data.windows import Buffer, prefetch_on_host


class Clock:
    """Stands for the clock and the system's count of waits: time passes, and threads wait, when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.waits = 0
        monkeypatch.setattr(windows, "time", self)
        monkeypatch.setattr(windows, "_voluntary_waits", lambda: self.waits)

    def perf_counter(self) -> float:
        return self.now

    def items(self, slow: int, threads: list[str], *, waits: int = 1) -> Iterator[int]:
        """Ten numbers, of which ``slow`` takes ten milliseconds."""
        for value in range(10):
            threads.append(threading.current_thread().name.split("_")[0])
            if value == slow:
                self.now += 0.01
                self.waits += waits
            yield value


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize("when", [True, False, "auto"])
def test_items_come_in_order_and_all_of_them(when: bool | str) -> None:
    assert list(prefetch_on_host(iter(range(100)), when)) == list(range(100))  # type: ignore[arg-type]
    assert list(prefetch_on_host(iter(()), when)) == []  # type: ignore[arg-type]


def test_auto_takes_a_thread_at_the_first_slow_read(clock: Clock) -> None:
    threads: list[str] = []
    assert list(prefetch_on_host(clock.items(4, threads), "auto")) == list(range(10))
    assert threads[:5] == ["MainThread"] * 5
    assert threads[5:] == ["read-ahead"] * 5
    threads.clear()
    list(prefetch_on_host(clock.items(4, threads), False))
    assert set(threads) == {"MainThread"}


def test_auto_is_not_moved_by_work_that_does_not_wait(clock: Clock) -> None:
    """A busy machine makes reads slow too; a thread would not help, and handing over costs more than reading."""
    threads: list[str] = []
    assert list(prefetch_on_host(clock.items(4, threads, waits=0), "auto")) == list(range(10))
    assert set(threads) == {"MainThread"}


def test_no_more_than_one_item_is_made_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for value in range(6):
            made.append(value)
            yield value

    asked = prefetch_on_host(items(), True)
    for value in asked:
        assert made[-1] <= value + 1
    assert made == list(range(6))


def test_errors_arrive_and_an_early_end_leaves_no_thread() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("gone")

    ahead = prefetch_on_host(items(), True)
    assert next(ahead) == 1
    assert next(ahead) == 2
    with pytest.raises(OSError, match="gone"):
        next(ahead)
    left = prefetch_on_host(iter(range(100)), True)
    next(left)
    left.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_a_buffer_is_filled_in_place(tmp_path: Path) -> None:
    write_token_file(tmp_path / "x.bin", np.arange(100))
    dataset = NanogptDataset(str(tmp_path / "x.bin"), 4)
    shape = batch_shape(global_batch_size=6, local_batch_size=3)
    buffer = Buffer(shape, 4)
    first = buffer.fill(dataset, dataset.sample_offsets(np.arange(6)).reshape(2, 3, 2))
    assert [batch.input_ids[:, 0].tolist() for batch in first] == [[0, 4, 8], [12, 16, 20]]
    again = buffer.fill(dataset, dataset.sample_offsets(np.arange(6, 12)).reshape(2, 3, 2))
    assert first[0].input_ids[:, 0].tolist() == [24, 28, 32]  # the same memory
    labels = again[1].labels
    assert labels is not None
    assert torch.equal(labels[:, :-1], again[1].input_ids[:, 1:])
    assert labels.data_ptr() == again[1].input_ids.data_ptr() + 8
