"""Which checkpoint a run with a mirror goes on from: its own, or the mirror's."""

import pytest
import torch
from tests.checkpoint.steps import make_step
from tests.config.conftest import SMALL

from automodel_cli.assembly.mirror import bring_back
from automodel_cli.checkpoint import layout
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.distributed.world import World
from automodel_cli.errors import CheckpointError


@pytest.fixture
def begin(tmp_path):
    """Begin a run in ``run`` with its mirror in ``there``; the newest step in ``run`` then, and what was said."""

    config, alone = tmp_path / "cfg.yaml", World(0, 1, 0, torch.device("cpu"))
    config.write_text(f"{SMALL}checkpoint: {{checkpoint_dir: '{tmp_path}/run', mirror: 'file://{tmp_path}/there'}}\n")

    def call(*, fresh=False):
        said = []
        bring_back(load_config(PretrainConfig, config, (), None), alone, fresh=fresh, say=said.append)
        found = layout.latest(tmp_path / "run")
        return None if found is None else found.name, said

    for name in ("run", "there"):
        (tmp_path / name).mkdir()
    return call


def _save(folder, step):
    layout.write_pointer(folder, "LATEST", make_step(folder, step).name)


def test_an_empty_folder_takes_the_newest(begin, tmp_path):
    assert begin() == (None, [])
    _save(tmp_path / "there", 20)
    with pytest.raises(CheckpointError, match="holds step_00000020 of an earlier one"):
        begin(fresh=True)
    found, said = begin()
    assert found == "step_00000020" and "bringing step_00000020" in said[0]


def test_a_folder_goes_on_from_its_own_and_says_when_the_mirror_is_newer(begin, tmp_path):
    _save(tmp_path / "run", 10)
    assert begin() == ("step_00000010", [])
    _save(tmp_path / "there", 5)
    assert begin() == ("step_00000010", [])
    _save(tmp_path / "there", 20)
    found, said = begin()
    assert found == "step_00000010" and len(said) == 1
    assert "holds step_00000020" in said[0] and "only step_00000010" in said[0]
