"""Training speed with a clock of our own."""

from __future__ import annotations

import pytest

from automodel_cli.metrics.throughput import Throughput


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def make(**arguments) -> tuple[Throughput, Clock]:
    clock = Clock()
    return Throughput(clock=clock, **arguments), clock


def test_tps_counts_training_only():
    throughput, clock = make(world_size=2)
    for _ in range(4):
        clock.now += 0.5
        throughput.step(1000)
    with throughput.pause():
        clock.now += 60
    clock.now += 0.5
    throughput.step(1000)
    reading = throughput.read(5)
    assert reading["tps"] == pytest.approx(2000)
    assert reading["tps_per_gpu"] == pytest.approx(1000)


def test_an_exception_inside_a_pause_ends_it():
    throughput, clock = make()
    with pytest.raises(ValueError), throughput.pause():
        clock.now += 5
        raise ValueError
    clock.now += 1
    throughput.step(10)
    assert throughput.read(1)["tps"] == pytest.approx(10)


def test_each_reading_covers_its_own_interval():
    throughput, clock = make()
    clock.now += 10
    throughput.step(100)
    assert throughput.read(1)["tps"] == pytest.approx(10)
    clock.now += 1
    throughput.step(100)
    assert throughput.read(2)["tps"] == pytest.approx(100)
    assert throughput.read(2)["tps"] is None  # no step since


def test_mfu_is_a_share_of_all_devices():
    throughput, clock = make(world_size=4, flops_per_token=6e9, peak_flops_per_s=1e12)
    clock.now += 1
    throughput.step(200)
    assert throughput.read(1)["mfu"] == pytest.approx(200 * 6e9 / 4e12)


@pytest.mark.parametrize("known", [{"flops_per_token": 1.0}, {"peak_flops_per_s": 1.0}, {}])
def test_mfu_of_an_unknown_device_is_unknown(known):
    throughput, clock = make(**known)
    clock.now += 1
    throughput.step(1)
    assert throughput.read(1)["mfu"] is None


def test_eta_ignores_the_compiling_first_step_and_includes_pauses():
    throughput, clock = make(total_steps=110)
    clock.now += 300
    throughput.step(1)
    assert throughput.read(1)["eta_s"] is None
    for step in range(2, 11):
        clock.now += 2
        throughput.step(1)
        reading = throughput.read(step)
    assert reading["eta_s"] == pytest.approx(200)
    with throughput.pause():
        clock.now += 11
    clock.now += 2
    throughput.step(1)
    assert throughput.read(11)["eta_s"] == pytest.approx(99 * (2 + 1))
    assert throughput.read(120)["eta_s"] == 0


def test_eta_without_an_end_is_unknown():
    throughput, clock = make()
    for step in (1, 2, 3):
        clock.now += 1
        throughput.step(1)
        reading = throughput.read(step)
    assert reading["eta_s"] is None


def test_memory_of_the_process():
    throughput, _ = make()
    assert 0.01 < throughput.read(0)["mem_gib"] < 1000
