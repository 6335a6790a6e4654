"""Which environments mean several processes, and which meshes they can form."""

import pytest

from automodel_cli.assembly.training import dropout_seed
from automodel_cli.assembly.world import mesh_sizes, notes
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.schema.training_sections import RngConfig
from automodel_cli.distributed.mesh import MeshSizes
from automodel_cli.distributed.world import World
from automodel_cli.errors import ConfigError


def config(**distributed):
    text = {"_target_": "automodel_cli.models.gpt2.build_gpt2_model"}
    return PretrainConfig.model_validate(
        {
            "model": text,
            "dataset": text,
            "distributed": distributed,
            "dist_env": {"backend": "nccl"},
        }
    )


def test_mesh_of_the_section():
    assert mesh_sizes(config(), 1) == MeshSizes()
    assert mesh_sizes(config(), 4) == MeshSizes(dp_shard=4)
    assert mesh_sizes(config(tp_size=2, dp_replicate_size=2), 8) == MeshSizes(2, 2, 1, 2)
    assert mesh_sizes(config(strategy="ddp", cp_size=2), 4) == MeshSizes(dp_replicate=2, cp=2)


@pytest.mark.parametrize(
    ("distributed", "world", "message"),
    [
        ({"tp_size": 2}, 1, r"distributed\.tp_size 2 .* 1 process"),
        ({"dp_size": 3}, 4, r"distributed\.dp_size 3 needs 3 processes; this run has 4 processes"),
        ({"pp_size": 2}, 2, "pp_size is 2"),
        ({"ep_size": 2}, 2, "ep_size is 2"),
        ({"strategy": "none"}, 2, "strategy none trains in one process"),
        ({"strategy": "ddp", "tp_size": 2}, 4, "DDP copies whole weights"),
        ({"dp_replicate_size": 3}, 4, "does not divide the 4 data-parallel ranks"),
    ],
)
def test_what_does_not_fit_is_refused(distributed, world, message):
    with pytest.raises(ConfigError, match=message):
        mesh_sizes(config(**distributed), world)


def test_sizes_that_would_fit_are_listed():
    with pytest.raises(ConfigError) as raised:
        mesh_sizes(config(dp_size=4, tp_size=2), 4)
    assert "dp_size 2 tp_size 2 cp_size 1" in raised.value.hint
    assert "start 8 processes" in raised.value.hint


def test_notes():
    (on_cpu,) = notes(config(), "cpu")
    assert "gloo" in on_cpu
    assert notes(config(), "cuda") == []


def test_dropout_differs_by_rank_unless_it_must_not():
    ranked, same = config(), config().model_copy(update={"rng": RngConfig(ranked=False)})
    worlds = [World.single(), Placed(dp_rank=1), Placed(dp_rank=0, part=1), Placed(dp_rank=0, part=2)]
    assert len({dropout_seed(ranked, 3, world) for world in worlds}) == 4
    assert len({dropout_seed(same, 3, world) for world in worlds}) == 1
    assert dropout_seed(same, 3, worlds[0]) == dropout_seed(ranked, 3, worlds[0])
    assert dropout_seed(ranked, 4, worlds[0]) != dropout_seed(ranked, 3, worlds[0])


class Placed:
    """A rank of a mesh that is not there."""

    def __init__(self, dp_rank, part=0):
        self.dp_rank, self._ranks = dp_rank, {"cp": part // 2, "tp": part % 2}

    def axis_rank(self, axis):
        return self._ranks[axis]

    def axis_size(self, axis):
        return 2
