"""Sweeps without trainings: what is fitted, what is said before anything starts, and no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml
from tests.assembly.sweeps.test_plan import BASE
from tests.scaling.surfaces import surface

from automodel_cli.assembly.reporter import Reporter
from automodel_cli.config.schema.sweep import SweepFitConfig, SweepRunConfig
from automodel_cli.errors import AutomodelError
from automodel_cli.files import exclusive_lock
from automodel_cli.recipes.sweep import fit, grid
from automodel_cli.scaling.results import FORMAT, ResultRow, append_row

CODE = """
import sys
from automodel_cli.config.schema.sweep import SweepFitConfig
from automodel_cli.recipes.sweep import fit, plot
fit.run(SweepFitConfig(results=sys.argv[1], bootstrap=2))
assert not {"torch", "matplotlib", "scipy", "pandas"} & set(sys.modules), sys.modules
"""


def write(path):
    points = surface()
    rows = zip(points.params, points.tokens, points.loss, strict=True)
    lines = ["params,tokens,loss", *(",".join(map(repr, map(float, row))) for row in rows)]
    path.write_text("\n".join(lines))
    return str(path)


def test_optima_are_those_of_the_points_unless_budgets_are_named(tmp_path):
    source = write(tmp_path / "points.csv")
    found = fit.run(SweepFitConfig(results=source, bootstrap=2))
    assert len(found.optima) == 4 and found.predictions == []
    found = fit.run(SweepFitConfig(results=source, bootstrap=2, budget=[1e22], predict=["1e9:1e11"]))
    assert [one.budget for one in found.optima] == [1e22]
    assert found.predictions[0].params == 1e9


def test_imports(tmp_path):
    subprocess.run([sys.executable, "-c", CODE, write(tmp_path / "points.csv")], check=True)


@pytest.fixture
def swept(tmp_path):
    """Runs the command for a base that a test may have changed; what was said."""
    base, folder = tmp_path / "base.yaml", tmp_path / "sweep"
    base.write_text(yaml.safe_dump(BASE))
    folder.mkdir()

    def sweep(**settings) -> list[str]:
        said: list[str] = []
        settings = {"base": str(base), "output_dir": str(folder), "depths": [2, 3], "dry_run": True, **settings}
        grid.run(SweepRunConfig(**settings), {}, Reporter(say=said.append))
        return said

    return sweep


def test_results_of_another_base_are_told(swept, tmp_path):
    mine = grid.plan_sweep(SweepRunConfig(base=str(tmp_path / "base.yaml"), output_dir="x", depths=[2]))[0].recipe
    for number, recipe in enumerate((mine, None, "0ld0ld00")):  # None: of before rows had it
        row = ResultRow(format=FORMAT, id=f"d{number}", status="finished", recipe=recipe)
        append_row(tmp_path / "sweep", row)
    (warning,) = (line for line in swept() if line.startswith("warning"))
    assert "the results of 1 run of another base" in warning and f"--where recipe={mine}" in warning
    (other,) = (line for line in swept(set={"optimizer.lr": 0.1}) if line.startswith("warning"))
    assert "the results of 2 runs" in other


def test_a_folder_has_one_sweep_at_a_time(swept, tmp_path):
    with (
        exclusive_lock(tmp_path / "sweep/.lock", busy="never"),
        pytest.raises(AutomodelError, match="another process works on the sweep"),
    ):
        swept(dry_run=False)
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == [".lock"]
