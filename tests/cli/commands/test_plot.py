"""``automodel plot``: from the command line to a picture."""

from __future__ import annotations

import pytest

from automodel_cli.cli import app
from automodel_cli.metrics.log import MetricsLog

pytest.importorskip("matplotlib", reason="the plot extra is not installed")


@pytest.fixture
def run_folder(tmp_path):
    log = MetricsLog(tmp_path / "run")
    for step in (1, 2, 3):
        log.train({"step": step, "loss": 3.0 / step})
    log.close()
    return tmp_path / "run"


def test_draws(run_folder, tmp_path, capsys):
    out = tmp_path / "x.svg"
    arguments = [str(run_folder), str(run_folder), "-o", str(out), "--log-x", "--log-loss", "--smooth", "2"]
    assert app.run(["plot", *arguments, "--title", "both"]) == 0
    assert "both" in out.read_text(encoding="utf-8")
    assert f"wrote {out}" in capsys.readouterr().out


def test_default_output(run_folder):
    assert app.run(["plot", str(run_folder)]) == 0
    assert (run_folder / "curves.png").exists()


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["nowhere"], 1)])
def test_errors(arguments, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert app.run(["plot", *arguments]) == code
    assert capsys.readouterr().err.startswith("error: ")


def test_unknown_ending(run_folder, capsys):
    assert app.run(["plot", str(run_folder), "-o", "x.gif"]) == 2
    assert ".png" in capsys.readouterr().err
