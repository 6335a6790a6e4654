"""Signals set a flag, a second Ctrl-C interrupts, the old handlers come back."""

import os
import signal

import pytest

from automodel_cli.errors import ConfigError
from automodel_cli.train.preemption import Stopped, StopRequest


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_flag_names_the_signal(name):
    stop = StopRequest()
    with stop.listening():
        assert not stop.requested
        os.kill(os.getpid(), signal.Signals[name])
        assert stop.requested
        assert stop.name == name


def test_handlers_are_restored():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest(["TERM"]).listening():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_second_interrupt_is_ctrl_c():
    with StopRequest().listening():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_until_ends_early():
    stop = StopRequest()
    seen = []
    with stop.listening(), pytest.raises(Stopped):
        for item in stop.until(range(10)):
            seen.append(item)
            if item == 3:
                os.kill(os.getpid(), signal.SIGUSR1)
    assert seen == [0, 1, 2, 3]


def test_unknown_signal():
    with pytest.raises(ConfigError, match="SIGNOPE"):
        StopRequest(["SIGNOPE"])


def test_all_ranks_stop_when_one_is_asked_to():
    asked, other = StopRequest(), StopRequest()
    asked.name = "SIGTERM"
    assert other.agreed(lambda flag: flag or asked.requested)
    assert other.requested and "another rank" in other.name
    assert not StopRequest().agreed(lambda flag: flag)
    with pytest.raises(Stopped):
        list(StopRequest().until([1, 2], lambda flag: True))
