"""Updates made ahead of their use, in a thread and on the way to a device."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from automodel_cli.batch import Batch
from automodel_cli.data import prefetch
from automodel_cli.data.prefetch import _widened, prefetch_on_host, prefetch_to_device


class Clock:
    """Stands for the clock and the system's count of waits: time passes, and threads wait, when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.waits = 0
        monkeypatch.setattr(prefetch, "time", self)
        monkeypatch.setattr(prefetch, "_voluntary_waits", lambda: self.waits)

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


def test_a_cpu_gets_what_it_was_given():
    updates = [[Batch(torch.zeros(1, 2))], [Batch(torch.ones(1, 2))]]
    found = list(prefetch_to_device(iter(updates), torch.device("cpu")))
    assert [batches[0] is mine[0] for batches, mine in zip(found, updates, strict=True)] == [True, True]


def test_widening_keeps_every_value_and_every_field():
    ids = torch.tensor([[0, 65535]], dtype=torch.uint16)
    wide = _widened(Batch(ids, ids, segment_ids=torch.tensor([[0, 1]])))
    assert wide.input_ids.dtype == wide.labels.dtype == torch.int64
    assert wide.labels.tolist() == [[0, 65535]]
    assert wide.position_ids is None
    assert wide.segment_ids.tolist() == [[0, 1]]
