"""Who a process is, by the variables of its launcher."""

import pytest

from automodel_cli.processes import RankInfo, rank_info, without_rank

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SRUN = {"SLURM_PROCID": "5", "SLURM_NTASKS": "16", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, RankInfo()),
        (TORCHRUN, RankInfo(3, 8, 1, "torchrun")),
        ({"RANK": "3"}, RankInfo()),
        ({"WORLD_SIZE": "8"}, RankInfo()),
        ({"RANK": "", "WORLD_SIZE": ""}, RankInfo()),
        (SRUN, RankInfo(5, 16, 1, "srun")),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, RankInfo()),
        ({**SRUN, **TORCHRUN}, RankInfo(3, 8, 1, "torchrun")),
    ],
)
def test_a_rank_is_what_its_launcher_says(environ, expected):
    assert rank_info(environ) == expected


def test_a_child_that_is_no_rank_knows_no_launcher():
    assert without_rank({**SRUN, **TORCHRUN, "HOME": "/root"}) == {"HOME": "/root", "SLURM_LOCALID": "1"}
