"""What the server of the page answers, and to whom."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tests.serving.watch.conftest import XSS, watching, write_run

pytest.importorskip("httpx")
pytest.importorskip("uvicorn", reason="the extra [web] is not installed")

import httpx

from automodel_cli.metrics.log_file import METRICS_NAME
from automodel_cli.serving.web.guard import Rules


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "a")
    write_run(folder / "<b>odd & \"name'", range(1, 4))
    (folder / "secret.txt").write_text("do not tell")
    with watching(folder) as server, httpx.Client(base_url=server.url) as client:
        yield client


def test_the_page_and_its_files(served):
    page = served.get("/")
    assert page.status_code == 200 and "text/html" in page.headers["content-type"]
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    for name in ("watch.css", "chart.js", "data.js", "watch.js"):
        assert served.get(f"/{name}").status_code == 200
        assert f'"{name}"' in page.text
    assert "<script>" not in page.text and "style=" not in page.text and "http:" not in page.text


def test_runs_and_their_details(served):
    answer = served.get("/api/runs").json()
    assert [run["run"] for run in answer["runs"]] == ["<b>odd & \"name'", "a"]
    details = served.get("/api/run", params={"run": "a"}).json()
    assert details["parts"]["train"]["last"]["step"] == 20 and details["config"] == {}


def test_curves(served):
    answer = served.get("/api/curves", params={"run": "a", "axis": "step", "low": 5, "high": 6}).json()
    assert answer["parts"]["train"]["curves"]["loss_by_source/books"] == [[4, 5, 6, 7], [3, 3, 3, 3]]
    logged = served.get("/api/curves", params={"run": "a", "axis": "time", "log": "1", "buckets": 2}).json()
    assert logged["axis"] == "time"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/run?run=../secret.txt", 404), ("/api/run?run=/etc", 404), ("/api/run", 404), ("/api/run?run=a%00", 404),
        ("/api/curves?run=a&axis=loss", 400), ("/api/curves?run=a&buckets=0", 400), ("/api/curves?run=a&low=nan", 400),
        ("/api/curves?run=a&buckets=9999999", 400), ("/api/curves?run=a&high=x", 400),
        ("/../secret.txt", 404), ("/%2e%2e/secret.txt", 404), ("/a/metrics.jsonl", 404), ("/page", 404), ("/docs", 404),
    ],
)  # fmt: skip
def test_what_is_refused(served, path, status):
    answer = served.get(path)
    assert answer.status_code == status and "do not tell" not in answer.text
    assert answer.json()["error"]["message"]


def test_nothing_can_be_changed(served):
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert served.request(method, "/api/runs").status_code == 405


def test_other_sites_and_names(served):
    assert served.get("/api/runs", headers={"origin": "http://evil.example"}).status_code == 403
    assert served.get("/api/runs", headers={"host": "evil.example"}).status_code == 403


def test_a_key(tmp_path):
    from automodel_cli.serving.watch.app import OPEN_PATHS

    write_run(tmp_path / "a")
    with watching(tmp_path, rules=Rules(key="sesame", open_paths=OPEN_PATHS)) as server:
        assert httpx.get(f"{server.url}/").status_code == 200
        for path in ("/api/runs", "/api/run?run=a", "/api/curves?run=a", "/api/events"):
            assert httpx.get(server.url + path).status_code == 401
        assert httpx.get(f"{server.url}/api/runs", headers={"authorization": "Bearer sesame"}).status_code == 200


def test_a_stream_of_news(tmp_path):
    write_run(tmp_path / "a")
    with watching(tmp_path) as server, httpx.Client(base_url=server.url, timeout=20) as client:
        place = client.get("/api/runs").json()["place"]
        with client.stream("GET", "/api/events", headers={"last-event-id": place}) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            write_run(tmp_path / "a", range(21, 22))
            messages = (json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: "))
            rows = next(one for one in messages if one["what"] == "rows" and one["rows"] == 21)
        assert rows["run"] == "a" and rows["x"]["step"][-1] == 21


def write_hostile_runs(folder: Path) -> list[str]:
    """A run for each text, which is in it wherever a text may be; the texts."""
    good = [text for text in XSS if "\ud800" not in text]
    for number, text in enumerate(good):
        run = folder / str(number)
        run.mkdir()
        records = [
            {"kind": "train", "step": 1, "loss": 1.0, text: 1.0, "loss_by_source": {text: 2.0}},
            {"kind": "val", "step": 1, "name": text, "loss": 1.0},
            {"kind": text, "step": 1, "event": text},
            {"kind": "eval", "step": 1, "samples": [{"prompt": text, "text": text}]},
        ]
        (run / METRICS_NAME).write_text("".join(json.dumps(record) + "\n" for record in records))
        (run / "config.yaml").write_text(yaml.safe_dump({text: text}))
        (run / "branch.json").write_text(json.dumps({text: text}))
        (run / "results.json").write_text(json.dumps({"tasks": {text: {"accuracy": 0.5, "stderr": 0.1}}}))
    return good


def test_odd_texts_come_back_as_they_are(tmp_path):
    good = write_hostile_runs(tmp_path)
    with watching(tmp_path) as server, httpx.Client(base_url=server.url) as client:
        for number, text in enumerate(good):
            details = client.get("/api/run", params={"run": str(number)}).json()
            assert details["samples"][0]["texts"] == [{"prompt": text, "text": text}]
            assert details["events"][0]["text"] == text
            curves = client.get("/api/curves", params={"run": str(number)}).json()["parts"]
            assert f"val/{text}" in curves and f"loss_by_source/{text}" in curves["train"]["curves"]
