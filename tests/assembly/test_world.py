"""Which environments mean several processes."""

import pytest

from automodel_cli.assembly.world import refuse_several_processes, world_size
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
