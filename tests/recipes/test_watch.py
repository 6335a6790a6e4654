"""The commands that show runs, from settings to a page or a file."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading

import pytest

from automodel_cli.assembly.run_plan import plan_of
from automodel_cli.checkpoint.inspect.describe import describe_run
from automodel_cli.checkpoint.layout import read_step_manifest
from automodel_cli.config.schema.results import InspectConfig
from automodel_cli.config.schema.watching import ReportConfig, WatchConfig
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.recipes import inspect_ckpt, report, watch


def test_a_page_from_start_to_end(undisturbed):
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("uvicorn", reason="the extra [web] is not installed")
    command = [sys.executable, "-X", "importtime", "-m", "automodel_cli", "watch", str(undisturbed.run), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    imported: list[str] = []
    threading.Thread(target=lambda: imported.extend(process.stderr), daemon=True).start()
    address, _, found = process.stdout.readline().strip().rpartition(": ")
    try:
        assert found == "1 run"
        assert "watch.js" in httpx.get(address).text
        (run,) = httpx.get(f"{address}/api/runs").json()["runs"]
        assert run["run"] == "run"
    finally:
        process.send_signal(signal.SIGINT)
    assert process.wait(20) in (0, 130)
    assert not [line for line in imported if line.rpartition("| ")[2].strip() in ("torch", "transformers")]


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"host": "0.0.0.0"}, ConfigError, "no API key"),
        ({"host": "203.0.113.7", "api_key": "x"}, ConfigError, "cannot listen on 203.0.113.7"),
        ({"runs": ("nowhere",)}, DataError, "nowhere is not a folder"),
    ],
)
def test_where_it_may_not_listen(tmp_path, settings, error, says, monkeypatch):
    pytest.importorskip("uvicorn", reason="the extra [web] is not installed")
    monkeypatch.delenv("AUTOMODEL_API_KEY", raising=False)
    with pytest.raises(error, match=says):
        watch.run(WatchConfig(**{"runs": (str(tmp_path),), **settings}), say=print)


def test_the_plan_of_a_run(undisturbed, tmp_path):
    plan = plan_of(undisturbed.run / "config.yaml")
    assert plan["steps"] == 12 and plan["seq_len"] == 32 and plan["tokens"] == 12 * 8 * 32
    (stored,) = {save["name"] for save in describe_run(undisturbed.run)["steps"][-1:]}
    counts = read_step_manifest(undisturbed.run / stored)["facts"]["param_counts"]
    assert plan["params"] == sum(counts.values())
    assert plan["flops_per_token"] == 6 * (plan["params"] - counts["position"]) + 12 * 2 * 32 * 32
    (tmp_path / "config.yaml").write_text("nonsense: 1")
    assert plan_of(tmp_path / "config.yaml") == {} and plan_of(tmp_path / "none.yaml") == {}


def test_a_report_of_runs(undisturbed, tmp_path):
    (path,) = report.run(
        ReportConfig(runs=(str(undisturbed.folder),), output=str(tmp_path / "both.html"), title="<Twelve>")
    )
    page = path.read_text()
    assert '"steps":12' in page and '"title":"\\u003cTwelve\\u003e"' in page
    with pytest.raises(ConfigError, match=r"does not end with \.html"):
        report.run(ReportConfig(runs=(str(undisturbed.run),), output=str(tmp_path / "x.pdf")))
    with pytest.raises(DataError, match="there is no run in"):
        report.run(ReportConfig(runs=(str(tmp_path),)))


def test_inspect_ckpt_shows_the_same_log(undisturbed):
    assert "log" not in inspect_ckpt.run(InspectConfig(path=str(undisturbed.run)))
    found = inspect_ckpt.run(InspectConfig(path=str(undisturbed.run), json=True))["log"]
    assert found["parts"]["train"]["last"]["step"] == 12 and found["parts"]["val/default"]["records"] == len(
        undisturbed.records("val")
    )
    assert found["events"] == [] and json.dumps(found, allow_nan=False)
