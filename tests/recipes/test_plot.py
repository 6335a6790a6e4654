"""Drawing runs: where the file goes, and that no torch is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from automodel_cli.checkpoint import lineage
from automodel_cli.checkpoint.lineage import BranchFile, Fork
from automodel_cli.config.schema.results import PlotConfig
from automodel_cli.errors import CheckpointError, ConfigError
from automodel_cli.metrics.log import MetricsLog
from automodel_cli.recipes import plot

pytest.importorskip("matplotlib", reason="the plot extra is not installed")


def write_run(folder):
    log = MetricsLog(folder)
    for step in range(1, 4):
        log.train({"step": step, "loss": 3 / step, "lr": 1e-3, "tps": 10.0, "grad_norm": 1.0})
    log.close()
    return str(folder)


def test_default_goes_into_the_first_run(tmp_path):
    runs = (write_run(tmp_path / "a"), write_run(tmp_path / "b"))
    assert plot.run(PlotConfig(runs=runs)) == tmp_path / "a" / "curves.png"
    assert (tmp_path / "a" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_output_and_options(tmp_path):
    cfg = PlotConfig(
        runs=(write_run(tmp_path / "a"),),
        output=str(tmp_path / "x.svg"),
        log_x=True,
        log_loss=True,
        smooth=1,
        title="two & two",
    )
    assert "two &amp; two" in plot.run(cfg).read_text(encoding="utf-8")


def test_unknown_ending(tmp_path):
    with pytest.raises(ConfigError, match="ends with"):
        plot.run(PlotConfig(runs=(write_run(tmp_path),), output=str(tmp_path / "x.jpeg2000")))


def test_no_torch(tmp_path):
    code = (
        "import sys\n"
        "from automodel_cli.config.schema.results import PlotConfig\n"
        "from automodel_cli.recipes import plot\n"
        "plot.run(PlotConfig(runs=(sys.argv[1],)))\n"
        "assert 'torch' not in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, write_run(tmp_path)], check=True)


def test_the_tree_of_a_run(tmp_path):
    write_run(tmp_path / "trunk")
    with pytest.raises(CheckpointError, match="no branch of"):
        plot.run(PlotConfig(runs=(str(tmp_path / "trunk"),), tree=True))
    write_run(tmp_path / "branch")
    fork = Fork(run="trunk", path="../trunk", step=2, checkpoint="xxh3:" + 16 * "0")
    lineage.write(tmp_path / "branch", BranchFile(parent=fork, change="cooldown"))
    drawn = plot.run(PlotConfig(runs=(str(tmp_path / "branch"),), tree=True))
    assert drawn == tmp_path / "branch" / "curves_tree.png" and drawn.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="log_x does not go with tree"):
        PlotConfig(runs=("a",), tree=True, log_x=True)
