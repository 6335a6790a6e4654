"""A deadline leaves time for what comes last."""

from automodel_cli.train.deadline import Deadline


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def updates_until_near(deadline: Deadline, clock: Clock, seconds: float = 1.0) -> int:
    for number in range(1, 1000):
        clock.now += seconds
        if deadline.near():
            return number
    raise AssertionError


def test_a_twentieth_and_one_update_are_kept():
    clock = Clock()
    assert updates_until_near(Deadline(1100, clock=clock), clock) == 94  # 94 + 1 + 5 = 100


def test_no_more_than_a_minute_is_kept_for_what_is_not_measured():
    clock = Clock()
    updates_until_near(Deadline(clock.now + 36_000, clock=clock), clock, seconds=100)
    assert clock.now == 1000 + 36_000 - 100  # another would leave less than a minute


def test_the_longest_validation_and_save_are_kept_with_some_reserve():
    clock = Clock()
    deadline = Deadline(1100, clock=clock)
    for what, seconds in (("validation", 4), ("save", 2), ("validation", 6)):
        with deadline.timing(what):
            clock.now += seconds
    assert updates_until_near(deadline, clock) == 70  # 12 + 70 + 1 + 5 + 1.5 x (6 + 2) = 100


def test_a_validation_between_two_updates_is_no_long_update():
    clock = Clock()
    deadline = Deadline(1100, clock=clock)
    for seconds in (1, 1, 50):
        clock.now += seconds
        assert not deadline.near()


def test_without_one_there_is_time():
    assert not Deadline().near()
    assert Deadline(0).near()
