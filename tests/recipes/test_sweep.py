"""Fitting and drawing a sweep import no torch, and fitting no matplotlib."""

from __future__ import annotations

import subprocess
import sys

from tests.scaling.surfaces import surface

from automodel_cli.config.schema.sweep import SweepFitConfig
from automodel_cli.recipes.sweep import fit

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
