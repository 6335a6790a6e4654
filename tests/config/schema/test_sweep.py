"""Files of sweeps and races: what a stranger's may not say."""

from __future__ import annotations

import pytest

from automodel_cli.config.load import load_config
from automodel_cli.config.schema.sweep import RaceConfig, SweepRunConfig
from automodel_cli.errors import ConfigError

FILES = {SweepRunConfig: "base: a.yaml\noutput_dir: out\n", RaceConfig: "a: a.yaml\nb: b.yaml\n"}


@pytest.mark.parametrize("model", FILES)
def test_a_file_cannot_join_a_rendezvous(model, tmp_path):
    """Its state is unpickled by torch: whoever answers there could run code here."""
    file = tmp_path / "file.yaml"
    file.write_text(FILES[model] + "launch: {nproc-per-node: 2, standalone: true}\n")
    assert load_config(model, file).launch == {"nproc-per-node": 2, "standalone": True}
    for flag in ("rdzv-endpoint: evil:29400", "rdzv_endpoint: evil:29400", "nnodes: 2", "master-addr: evil"):
        file.write_text(FILES[model] + f"launch: {{{flag}}}\n")
        with pytest.raises(ConfigError, match=f"launch: {flag.partition(':')[0]} could join a stranger's processes"):
            load_config(model, file)
