"""A run whose mixture is changed on the way: stopped anywhere and resumed, it is the undisturbed run, bit for bit."""

from __future__ import annotations

import pytest
from tests.conftest import TinyTraining

from automodel_cli.errors import DataError

pytestmark = pytest.mark.usefixtures("one_thread")


def mixture(run: TinyTraining, **weights: float) -> dict[str, object]:
    files = {"train": "train.bin", "val": "val.bin"}
    sources = {name: {"file_pattern": str(run.data / files[name]), "weight": weights[name]} for name in weights}
    return {"_target_": "Mixture", "seq_len": 32, "sources": sources}


def train(run: TinyTraining, *overrides: str, steps: int, stop: bool = False, **weights: float):
    recipe = run.recipe(
        f"step_scheduler.max_steps={steps}",
        *overrides,
        dataset=mixture(run, **weights),
        lr_scheduler={"lr_decay_style": "constant"},
    )
    if stop:
        recipe.stop.name = "SIGTERM"  # heard after the next update
    recipe.run_train_validation_loop()
    return recipe


def test_stopped_before_at_and_after_a_change(tiny_training, tmp_path):
    accept = "checkpoint.accept_data_change=true"
    train(tiny_training, steps=4, train=3, val=1)
    train(tiny_training, accept, steps=9, train=1, val=1)
    stopped = TinyTraining(tmp_path / "stopped", tiny_training.data)
    stopped.folder.mkdir()
    for _ in range(2):
        train(stopped, steps=4, stop=True, train=3, val=1)
    train(stopped, steps=4, train=3, val=1)
    with pytest.raises(DataError, match="the mixture is not that of"):
        train(stopped, steps=9, train=1, val=1)
    changed = train(stopped, accept, steps=9, stop=True, train=1, val=1)
    assert any("goes on" in " ".join(row) for table in changed.tables for row in table)
    train(stopped, steps=9, train=1, val=1)  # the change is in the plan: nothing to accept any more
    assert len(stopped.losses()) == 9 and stopped.losses() == tiny_training.losses()
    assert stopped.weights(9) == tiny_training.weights(9)
