"""Pictures of a report: by a real browser where there is one, and what is said where there is none."""

from __future__ import annotations

import re
import struct

import pytest
from tests.serving.watch.conftest import write_run

from automodel_cli.config.schema.watching import ReportConfig
from automodel_cli.errors import AutomodelError, ConfigError
from automodel_cli.recipes import report
from automodel_cli.serving.watch import printing


def test_it_is_drawn_whole(tmp_path):
    try:
        printing.find_browser()
    except ConfigError:
        pytest.skip("there is no chromium here")
    run = write_run(tmp_path / "a run ü")
    (run / "config.yaml").write_text("\n".join(f"key{i}: {i}" for i in range(200)))
    output, png, pdf = (tmp_path / f"r s.{kind}" for kind in ("html", "png", "pdf"))
    wrote = report.run(ReportConfig(runs=(str(run),), output=str(output), png=str(png), pdf=str(pdf)))
    assert wrote == [output, png, pdf]
    head = png.read_bytes()[:24]
    width, height = struct.unpack(">2I", head[16:])
    assert head.startswith(b"\x89PNG") and width == 1280 and 900 < height < 3000
    paper = pdf.read_bytes()
    assert paper.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", paper)) > 3  # the configuration is open
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a run ü", "r s.html", "r s.pdf", "r s.png"]


def test_without_a_browser_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    run = write_run(tmp_path / "a")
    with pytest.raises(ConfigError, match="there is no browser to draw with"):
        report.run(ReportConfig(runs=(str(run),), pdf=str(tmp_path / "r.pdf")))
    assert not (run / "report.html").exists()
    with pytest.raises(ConfigError, match=r"--png writes a \.png"):
        report.run(ReportConfig(runs=(str(run),), png="r.jpg"))


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo something is missing >&2; exit 3", "has ended with status 3: something is missing"),
        ("exit 0", "has drawn nothing"),
        ("sleep 60 & wait", "did not end within 1 s"),
    ],
)
def test_a_browser_that_does_not_work(tmp_path, monkeypatch, script, says):
    browser, page, output = tmp_path / "chromium", tmp_path / "r.html", tmp_path / "r.pdf"
    browser.write_text(f"#!/bin/sh\n{script}\n")
    browser.chmod(0o755)
    page.write_text("<html></html>")
    monkeypatch.setattr(printing, "_TIMEOUT_S", 1.0)
    with pytest.raises(AutomodelError, match=says):
        printing.draw_pdf(str(browser), page, output)
    assert not output.exists()
