"""A report is one file, bounded, and its numbers cannot become a program."""

from __future__ import annotations

import json
import re

import pytest
from tests.serving.watch.conftest import XSS, write_run

from automodel_cli.errors import DataError
from automodel_cli.metrics.log import MetricsLog
from automodel_cli.serving.watch.report import as_script_data, report_html
from automodel_cli.serving.watch.runs import RunSet


def report(folder, **limits) -> str:
    runs = RunSet([folder])
    found = [run.read_all() for run in runs.find()]
    return report_html(found, title="t", made="m", foot="f", **limits)


def data_of(page: str) -> dict:
    return json.loads(re.search(r'id="report-data">(.*?)</script>', page)[1])


def test_all_of_it_is_inside(tmp_path):
    page = report(write_run(tmp_path / "a"))
    content = data_of(page)
    (run,) = content["runs"]
    assert run["details"]["run"] == "a" and run["curves"]["parts"]["train"]["curves"]["loss"][1][0] == 5
    assert run["curves"]["axes"]["tokens"][1][-1] == 2000
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page) and "@import" not in page and "url(" not in page
    assert "default-src 'none'" in page and page.count("'sha256-") == 4
    assert report(tmp_path / "a") == page  # the same run, the same file


@pytest.mark.parametrize("text", XSS)
def test_data_never_end_their_tag(text):
    data = as_script_data({"text": text, text: [text]})
    assert not set("<>&\u2028\u2029") & set(data)
    whole = text.encode(errors="replace").decode()
    assert json.loads(data) == {"text": whole, whole: [whole]}


def test_it_is_never_too_large(tmp_path):
    run = write_run(tmp_path / "a", range(1, 3001), losses=lambda step: 1 / step + step % 7)
    large, small = report(run), report(run, max_bytes=120_000)
    assert len(small.encode()) <= 120_000 < len(large.encode())
    x, y = data_of(small)["runs"][0]["curves"]["parts"]["train"]["curves"]["loss"][:2]
    assert len(x) < 1000 and max(y) > 6 and min(y) < 0.01  # the extremes are kept
    with pytest.raises(DataError, match="a report of 1 runs"):
        report(run, max_bytes=60_000)


def test_long_samples_do_not_keep_it_from_being_made(tmp_path):
    run = write_run(tmp_path / "a")
    log = MetricsLog(run)
    for step in range(21, 61):
        log.validation({"step": step, "samples": [{"prompt": "a", "text": "b" * 3000}] * 32})
    log.close()
    samples = data_of(report(run))["runs"][0]["details"]["samples"]
    assert [one["step"] for one in samples] == list(range(53, 61)) and len(samples[0]["texts"]) == 32
