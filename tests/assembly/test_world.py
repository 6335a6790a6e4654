"""Which environments mean several processes."""

import pytest

from automodel_cli.assembly.world import check_sizes, notes, refuse_several_processes, world_size
from automodel_cli.config.schema import PretrainConfig
from automodel_cli.errors import ConfigError


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, 1),
        ({"WORLD_SIZE": "8"}, 1),  # left over in a shell: without RANK nobody launched this
        ({"RANK": "0", "WORLD_SIZE": "8"}, 8),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, 1),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, 4),
    ],
)
def test_world_size(environ, expected):
    assert world_size(environ) == expected


def test_one_of_several_is_refused():
    refuse_several_processes({"RANK": "0", "WORLD_SIZE": "1"})
    with pytest.raises(ConfigError, match="one of 2 processes"):
        refuse_several_processes({"RANK": "1", "WORLD_SIZE": "2"})


def config(**distributed):
    text = {"_target_": "automodel_cli.models.gpt2.build_gpt2_model"}
    return PretrainConfig.model_validate(
        {
            "model": text,
            "dataset": text,
            "distributed": distributed,
            "dist_env": {"backend": "nccl"},
            "checkpoint": {"is_async": True},
        }
    )


def test_sizes_beyond_one_process_are_refused():
    check_sizes(config(dp_size=None, tp_size=1))
    with pytest.raises(ConfigError, match=r"distributed\.tp_size 2"):
        check_sizes(config(tp_size=2))


def test_notes():
    on_cpu = notes(config(), "cpu")
    assert len(on_cpu) == 2
    assert "gloo" in on_cpu[0]
    assert len(notes(config(), "cuda")) == 1
