"""Training to a budget: the run ends there, says so, and goes on exactly after a stop."""

import pytest
import torch
from tests.conftest import TinyTraining

from automodel_cli.errors import ConfigError
from automodel_cli.sizing.shape import flops_per_token

MODEL = {"depth": 2, "aspect_ratio": 16, "head_dim": 16, "vocab_size": 64}
DIAL = {"model": {**MODEL, "reference_depth": 2, "reference_batch_tokens": 256}}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def recipe_of(tiny_training):
    return tiny_training.recipe("step_scheduler.target_flops=1.2e9", optimizer=None, **DIAL)


def test_it_ends_at_the_budget_and_a_stop_on_the_way_changes_nothing(tiny_training, tmp_path):
    whole = recipe_of(tiny_training)
    whole.run_train_validation_loop()
    length, losses = whole.training_length, tiny_training.losses()
    per_update = flops_per_token(whole.model.shape(), 32) * length.tokens_per_step
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
