"""Options that say where the work runs: another runner's are refused, defaults that are spelled out are not."""

import pytest

from automodel_cli.config.load import load_config
from automodel_cli.config.schema.shuffle import ShuffleConfig
from automodel_cli.errors import ConfigError


def load(**flags: object) -> ShuffleConfig:
    return load_config(ShuffleConfig, flags={"dataset": "x", **flags})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"ray_address": "local"}, "ray_address is an option of `runner: ray`, not of local"),
        ({"submit": True}, "submit is an option of `runner: slurm`, not of local"),
        ({"runner": "slurm", "ray_address": "head:6379"}, "`runner: ray`, not of slurm"),
        ({"runner": "ray", "partition": "long"}, "`runner: slurm`, not of ray"),
        ({"runner": "ray", "ray_address": "head"}, "expected auto, local or HOST:PORT"),
    ],
)
def test_options_of_another_runner_are_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        load(**flags)


def test_defaults_may_be_spelled_out():
    assert load(ray_address="auto", slurm_tasks=64, submit=False).runner == "local"
