"""The ``ema`` section: its short form, and rules that exclude each other."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from automodel_cli.assembly.training import average_rule
from automodel_cli.assembly.training_length import TrainingLength
from automodel_cli.batch_sizes import BatchSizes
from automodel_cli.config.schema.pretrain import PretrainConfig

LENGTH = TrainingLength(100, BatchSizes.of(1), 1, "max_steps")


def make(ema) -> PretrainConfig:
    return PretrainConfig.model_validate({"model": {"_target_": "m.M"}, "dataset": {"_target_": "d.D"}, "ema": ema})


@pytest.mark.parametrize(
    ("ema", "rule"),
    [
        (None, None),
        (False, None),
        (True, (0.999, 1, 1)),
        (0.9, (0.9, 1, 1)),
        ({"decay": 0.9, "every": 5}, (0.9, 1, 5)),
        ({"tail_steps": 100}, (None, 1, 1)),
        ({"tail_steps": 30, "every": 10}, (None, 71, 10)),
    ],
)
def test_what_a_file_says_and_the_rule_of_a_run_of_100_updates(ema, rule):
    found = average_rule(make(ema), LENGTH)
    assert (None if found is None else (found.decay, found.first, found.every)) == rule


@pytest.mark.parametrize(
    ("ema", "what"),
    [
        ({"decay": 0.9, "tail_steps": 10}, "found decay 0.9 and tail_steps 10, expected one of them"),
        ({"tail_steps": 10, "every": 4}, "tail_steps 10 is no multiple of every 4"),
        (1.0, "less than 1"),
        (0, "greater than 0"),
    ],
)
def test_what_contradicts_itself_is_refused(ema, what):
    with pytest.raises(ValidationError, match=what):
        make(ema)
