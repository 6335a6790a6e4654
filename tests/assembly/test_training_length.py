"""How many updates a run has, and when things are due."""

import pytest

from automodel_cli.assembly.training_length import due, plan_training_length
from automodel_cli.batch_sizes import BatchSizes
from automodel_cli.config.horizon import Horizon
from automodel_cli.errors import ConfigError, DataError


def plan(**changes):
    return plan_training_length(
        **{
            "horizon": Horizon(None),
            "num_epochs": None,
            "samples": 403,
            "sizes": BatchSizes.of(8),
            "seq_len": 8,
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({}, 50),
        ({"horizon": Horizon(20)}, 20),
        ({"horizon": Horizon(200)}, 200),  # no num_epochs: as many epochs as the steps need
        ({"horizon": Horizon(200), "num_epochs": 1}, 50),
        ({"horizon": Horizon(30), "num_epochs": 1}, 30),
        ({"horizon": Horizon(7), "samples": None}, 7),
    ],
)
def test_total_steps(given, steps):
    assert plan(**given).total_steps == steps


def test_what_makes_no_whole_update_is_left_out_of_epochs_only():
    assert plan().left_out == 3
    assert plan(horizon=Horizon(200)).left_out == plan(horizon=Horizon(20), num_epochs=1).left_out == 0


def test_tokens():
    assert plan(horizon=Horizon(10)).total_tokens == 640


def test_endless_data_needs_max_steps():
    with pytest.raises(ConfigError, match="max_steps"):
        plan(samples=None)


def test_less_than_one_batch():
    with pytest.raises(DataError, match="less than one global batch"):
        plan(samples=7)


@pytest.mark.parametrize(
    ("step", "every", "expected"),
    [
        (10, 5, True),
        (11, 5, False),
        (12, 5, True),
        (12, "final", True),
        (10, "final", False),
        (12, None, False),
    ],
)
def test_due(step, every, expected):
    assert due(step, every=every, last=12) is expected
