"""Who a process is by its environment, and where it meets the others."""

import pytest

from automodel_cli.distributed.mesh import MeshSizes, fill_mesh, plan_mesh
from automodel_cli.distributed.start import first_host, rendezvous


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu7", "gpu7"),
        ("gpu[003-007,9],login1", "gpu003"),
        ("a1,a2", "a1"),
        ("rack[2,4]-node", "rack2-node"),
        ("n-1-[10-12]", "n-1-10"),
    ],
)
def test_first_host_of_slurms_list(nodes, first):
    assert first_host(nodes) == first


def test_rendezvous_under_srun():
    environ = {"SLURM_STEP_NODELIST": "gpu[03-04]", "SLURM_JOB_ID": "4000123"}
    assert rendezvous(environ) == "tcp://gpu03:20123"
    assert rendezvous({**environ, "MASTER_ADDR": "head", "MASTER_PORT": "99"}) == "tcp://head:99"


def test_what_is_left_goes_to_shards():
    assert fill_mesh(8, {"tp": 2}) == MeshSizes(1, 4, 1, 2)
    assert plan_mesh(16, tp_size=2, cp_size=2, dp_replicate_size=2) == MeshSizes(2, 2, 2, 2)
    assert plan_mesh(4, dp_size=4, dp_replicate_size=4) == MeshSizes(4, 1, 1, 1)
    assert str(MeshSizes(2, 1, 1, 4)) == "dp_replicate 2 x tp 4"
