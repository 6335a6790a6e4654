"""What follows an update, as a table."""

from __future__ import annotations

import pytest

from automodel_cli.recipes.pretraining.events import Events, Intervals

EVERY = Intervals(last=12, log=2, validate=6, evaluate=5, save=4, validate_on_save=True)


def after(intervals, step, **more):
    """The names of the events of that step."""
    return {name for name, happens in vars(intervals.after(step, **more)).items() if happens}


@pytest.mark.parametrize(
    ("step", "events"),
    [
        (1, set()),
        (2, {"log"}),
        (4, {"log", "validate", "save"}),
        (5, {"validate", "evaluate"}),
        (6, {"log", "validate"}),
        (7, set()),
        (12, {"log", "validate", "evaluate", "save"}),
    ],
)
def test_intervals(step, events):
    assert after(EVERY, step) == events


@pytest.mark.parametrize(
    ("changed", "step", "more", "events"),
    [
        ({"saves": False}, 4, {}, {"log"}),
        ({"saves": False}, 4, {"stopping": True}, {"log", "stop"}),
        ({"validate_on_save": False}, 4, {}, {"log", "save"}),
        ({"save": "final"}, 4, {}, {"log"}),
        ({"save": "final"}, 12, {}, {"log", "validate", "evaluate", "save"}),
        ({"save": None}, 12, {}, {"log", "validate", "evaluate"}),
        ({"save_at_epoch_end": True}, 3, {"epoch_ended": True}, {"validate", "save"}),
        ({}, 3, {"epoch_ended": True}, set()),
        ({}, 3, {"save_owed": True}, {"validate", "save"}),
        ({"saves": False}, 3, {"save_owed": True}, set()),
        ({}, 6, {"stopping": True}, {"log", "save", "stop"}),
        ({}, 12, {"stopping": True}, {"log", "save", "stop"}),
        ({"log": 1, "validate": None, "evaluate": None, "save": None}, 12, {}, {"log"}),
    ],
)
def test_options(changed, step, more, events):
    assert after(Intervals(**{**vars(EVERY), **changed}), step, **more) == events


def test_before_the_first_update():
    wanted = Intervals(last=4, validate="final", validate_at_start=True)
    assert wanted.before_the_first(0) == Events(validate=True)
    assert wanted.before_the_first(2) == Events()
    assert Intervals(last=0, validate_at_start=True).before_the_first(0) == Events()
    assert Intervals(last=4, validate="final").before_the_first(0) == Events()


def test_where_the_data_ends_early():
    assert EVERY.at_the_end_of_the_data() == Events(validate=True, save=True)
    assert Intervals(last=4).at_the_end_of_the_data() == Events()
    assert Intervals(last=4, save=2, saves=False).at_the_end_of_the_data() == Events()
