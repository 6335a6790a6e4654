"""Training to a budget: the run ends there, says so, and goes on exactly after a stop."""

import dataclasses
import itertools

import pytest
from tests.conftest import TinyTraining

from automodel_cli.errors import ConfigError
from automodel_cli.sizing.shape import flops_per_token
from automodel_cli.train.deadline import Deadline

MODEL = {"depth": 2, "aspect_ratio": 16, "head_dim": 16, "vocab_size": 64}
DIAL = {"model": {**MODEL, "reference_depth": 2, "reference_batch_tokens": 256}}


pytestmark = pytest.mark.usefixtures("one_thread")


def recipe_of(tiny_training):
    return tiny_training.recipe("step_scheduler.target_flops=1.2e9", optimizer=None, **DIAL)


def test_it_ends_at_the_budget_and_a_stop_on_the_way_changes_nothing(tiny_training, tmp_path):
    whole = recipe_of(tiny_training)
    whole.run_train_validation_loop()
    length, losses = whole.training_length, tiny_training.losses()
    per_update = flops_per_token(whole.model.shape(), 32) * length.sizes.last * length.seq_len
    assert length.total_steps == len(losses) == 1.2e9 // per_update > 4
    assert length.reason == "target_flops 1.2e+09"
    assert any(line.startswith("from depth: num_hidden_layers 2, hidden_size 32") for line in whole.said)

    cut = TinyTraining(tmp_path / "cut", tiny_training.data)
    cut.folder.mkdir()
    stopped = recipe_of(cut)
    stopped.stop.name = "SIGTERM"  # heard after the first update
    assert stopped.run_train_validation_loop().step == 1
    assert recipe_of(cut).run_train_validation_loop().step == length.total_steps
    assert cut.losses() == losses
    assert cut.weights(length.total_steps) == tiny_training.weights(length.total_steps)


def test_a_budget_of_no_update_is_refused_before_anything_is_built(tiny_training):
    with pytest.raises(ConfigError, match="less than one update of 256"):
        tiny_training.recipe("step_scheduler.max_tokens=100")


TIMED = ("step_scheduler.max_minutes=60", "lr_scheduler.lr_decay_steps=100", "compile.enabled=false")


def test_when_the_time_is_up_it_validates_saves_and_ends(tiny_training):
    recipe = tiny_training.recipe(*TIMED)
    recipe.run = dataclasses.replace(recipe.run, deadline=Deadline(20.0, clock=itertools.count().__next__))
    result = recipe.run_train_validation_loop()
    assert 1 < result.step < 20 and result.exit_code == 0
    assert result.checkpoint.name == f"step_{result.step:08d}"
    assert tiny_training.records("val")[-1]["step"] == result.step
    assert f"the time is up: step {result.step} is the last (max_minutes 60)" in recipe.said
    assert "length: until the time is up (max_minutes 60)" in recipe.said
    assert any(line.startswith("step 1   ") for line in recipe.said)
    again = tiny_training.recipe(*TIMED)
    again.run = dataclasses.replace(again.run, deadline=Deadline(0.0))
    assert again.run_train_validation_loop().step == result.step + 1


def test_the_deadline_is_counted_from_the_command_or_is_slurms(tiny_training, monkeypatch):
    monkeypatch.setenv("AUTOMODEL_STARTED", "1000")
    assert tiny_training.recipe(*TIMED).deadline.ends_at == 1000 + 3600
    auto = ("step_scheduler.max_minutes=auto", "lr_scheduler.lr_decay_steps=100")
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    with pytest.raises(ConfigError, match="SLURM_JOB_END_TIME is not set"):
        tiny_training.recipe(*auto)
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1764400000")
    assert tiny_training.recipe(*auto).deadline.ends_at == 1764400000


def test_a_schedule_that_ends_with_the_run_has_no_end_by_time(tiny_training):
    with pytest.raises(ConfigError, match="cosine has to know the number of updates") as caught:
        tiny_training.recipe(TIMED[0])
    assert "lr_decay_steps" in caught.value.hint
