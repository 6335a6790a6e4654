"""Runs whose batch size and row length change: stopped anywhere and resumed, the undisturbed run, bit for bit."""

from __future__ import annotations

import pytest
from tests.conftest import TinyTraining

pytestmark = pytest.mark.usefixtures("one_thread")

SCHEDULES = (
    "step_scheduler.local_batch_size=2",
    "step_scheduler.global_batch_size=[{until_step: 3, size: 2}, {until_step: 6, size: 4}, {size: 6}]",
    "step_scheduler.seq_len_schedule=[{until_step: 2, seq_len: 8}, {until_step: 5, seq_len: 16}]",
)


def train(run: TinyTraining, *, steps: int = 9, stop: bool = False):
    recipe = run.recipe(f"step_scheduler.max_steps={steps}", *SCHEDULES)
    if stop:
        recipe.stop.name = "SIGTERM"  # heard after the next update
    recipe.run_train_validation_loop()
    return recipe


def test_stopped_after_every_update(tiny_training, tmp_path):
    whole = train(tiny_training)
    assert whole.state.tokens_seen == 32 * (3 * 2 + 3 * 4 + 3 * 6)
    assert [record["global_batch_size"] for record in tiny_training.records()] == [2, 2, 2, 4, 4, 4, 6, 6, 6]
    assert [record["seq_len"] for record in tiny_training.records()] == [8, 8, 16, 16, 16, 32, 32, 32, 32]
    stopped = TinyTraining(tmp_path / "stopped", tiny_training.data)
    stopped.folder.mkdir()
    for _ in range(9):
        train(stopped, stop=True)
    assert len(stopped.losses()) == 9 and stopped.losses() == tiny_training.losses()
    assert stopped.weights(9) == tiny_training.weights(9)
