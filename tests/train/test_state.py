"""Counters of a run, to JSON and back."""

import json
import math

import pytest

from automodel_cli.errors import CheckpointError
from automodel_cli.train.state import TrainState


def test_the_mean_of_the_latest_losses_survives_a_resume():
    state = TrainState(step=3)
    assert state.mean_loss(5.0, None) is None and "recent_losses" not in state.to_dict()
    assert [state.mean_loss(loss, 2) for loss in (4.0, float("nan"), 2.0, 1.0)] == [4.0, 4.0, 3.0, 1.5]
    again = TrainState.from_dict(json.loads(json.dumps(state.to_dict())))
    assert again == state and again.mean_loss(3.0, 2) == 2.0


def test_there_and_back_through_json():
    state = TrainState()
    for step in range(5):
        state.advance(step // 3, 1024)
        state.count_skip(step in (2, 3))
    state.best_val_loss = 3.25
    assert TrainState.from_dict(json.loads(json.dumps(state.to_dict()))) == state
    assert (state.step, state.epoch, state.tokens_seen, state.skipped_steps) == (5, 1, 5120, 2)


def test_no_validation_yet_is_null_in_json_and_infinity_here():
    text = json.dumps(TrainState().to_dict(), allow_nan=False)
    assert TrainState.from_dict(json.loads(text)).best_val_loss == math.inf


def test_skips_in_a_row_start_again_after_a_good_update():
    state = TrainState()
    for skipped in (True, True, False, True):
        state.count_skip(skipped)
    assert (state.skipped_steps, state.skipped_in_a_row) == (3, 1)


def test_a_state_of_another_version_is_refused():
    with pytest.raises(CheckpointError, match="moon_phase"):
        TrainState.from_dict({"step": 1, "moon_phase": 0.5})
    with pytest.raises(CheckpointError, match="no step"):
        TrainState.from_dict({"epoch": 1})
