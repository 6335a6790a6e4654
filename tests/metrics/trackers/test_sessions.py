"""What the real packages hold of a run that was killed and resumed, read with their own readers."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from automodel_cli.metrics.log_file import METRICS_NAME, decode_line, lines_of

SESSION = Path(__file__).with_name("session.py")
CANARY = b"canary-hunter2"  # of session.py
KILLED_AT, CHECKPOINT, END = 12, 8, 16
SAMPLE = "Hello *wor<b>ld*"
MLFLOW = {
    "experiment_name": "trial",
    "run_name": "mine",
    "tracking_uri": None,
    "artifact_location": None,
    "tags": {"k": "v"},
    "description": "words",
    "resume": True,
    "flatten_depth": 1,
}
COMET = {"mode": "offline", "project_name": "p", "workspace": None, "experiment_name": "n", "tags": ["t"]}
TRACKIO = {"project": "trial", "name": None, "group": None}


def needs(package: str, why: str = "") -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed{why}")


def session(folder: Path, tool: str, settings: dict, begin: int, end: int, *, killed: float | None = None) -> str:
    arguments = {
        "folder": str(folder),
        "tool": tool,
        "settings": settings,
        "begin": begin,
        "end": end,
        "killed": killed,
    }
    where = folder.parent / "arguments.json"
    where.write_text(json.dumps(arguments))
    environment = {**os.environ, "TRACKIO_DIR": str(folder.parent / "trackio-files")}
    for name in ("MLFLOW_TRACKING_URI", "COMET_API_KEY", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        environment.pop(name, None)
    command = [sys.executable, str(SESSION), str(where)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == (0 if killed is None else -signal.SIGKILL), done.stderr
    return done.stdout.strip()


def killed_and_resumed(folder: Path, tool: str, settings: dict, *, killed: float) -> None:
    """Killed past its checkpoint, with or without time to reach the tool; resumed from there, to the end."""
    session(folder, tool, settings, 0, KILLED_AT, killed=killed)
    assert session(folder, tool, settings, CHECKPOINT, END) == ""  # nothing failed, nothing was dropped
    held = [path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()]
    assert not any(CANARY in content for content in held)


def expected(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Series as ``metrics.jsonl`` has them."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line, _ in lines_of(folder / METRICS_NAME):
        record = decode_line(line)
        assert record is not None
        if record["kind"] == "train":
            found.setdefault("train/loss", []).append((record["step"], record["loss"]))
            code = record["loss_by_source"]["code"]
            found.setdefault("train/loss/code", []).append((record["step"], code))
        elif record["kind"] == "val":
            name = "val" if record["name"] == "default" else f"val_{record['name']}"
            found.setdefault(f"{name}/loss", []).append((record["step"], record["loss"]))
    return found


def comparable(points) -> list[tuple[int, float | str]]:
    """NaN equals itself here."""
    return [(step, "nan" if math.isnan(value) else value) for step, value in points]


@pytest.mark.parametrize("killed", [0, 1.5])
def test_tensorboard_shows_each_step_once(tmp_path, killed):
    needs("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    killed_and_resumed(folder, "tensorboard", {}, killed=killed)
    reader = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    reader.Reload()
    for name, points in expected(folder).items():
        found = [(event.step, event.value) for event in reader.Scalars(name)]
        assert comparable(found) == comparable((step, float(np.float32(value))) for step, value in points), name
    assert "train/loss/web (a/b)" in reader.Tags()["scalars"]
    (text,) = reader.Tensors("eval/sample 1")[-1].tensor_proto.string_val
    assert text.decode() == f"    {SAMPLE}"
    assert b"model.n_layer" in reader.PluginTagToContent("hparams")["_hparams_/session_start_info"]


def test_mlflow_holds_each_step_once(tmp_path):
    needs("mlflow")
    needs("sqlalchemy")
    from mlflow.tracking import MlflowClient

    folder = tmp_path / "run"
    killed_and_resumed(folder, "mlflow", MLFLOW, killed=0.5)
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("trial").experiment_id])
    assert (run.info.run_id, run.info.status, run.info.run_name) == (
        json.loads((folder / "mlflow_run.json").read_text())["id"],
        "FINISHED",
        "mine",
    )
    for name, points in expected(folder).items():
        known_as = name.replace("(", "_").replace(")", "_")
        found = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, known_as)]
        assert comparable(sorted(found)) == comparable(points), name
    assert run.data.params["model.n_layer"] == "2" and run.data.params["model.deep"] == '{"x": [1, 2]}'
    assert (run.data.tags["k"], run.data.tags["mlflow.note.content"]) == ("v", "words")
    (text,) = (folder / "mlflow" / "artifacts").rglob("step_00000016.txt")
    assert text.read_text() == "[Hello ]*wor<b>ld*"


def test_comet_archives_hold_every_step_of_one_experiment(tmp_path):
    needs("comet_ml")
    folder = tmp_path / "run"
    killed_and_resumed(folder, "comet", COMET, killed=0.5)
    key = json.loads((folder / "comet_run.json").read_text())["id"]
    archives = sorted((folder / "comet").glob("*.zip"), key=lambda path: len(path.name))
    assert [path.name.startswith(key) for path in archives] == [True, True]
    found: dict[str, set] = {}
    for archive in archives:
        with zipfile.ZipFile(archive) as content:
            messages = [json.loads(line) for line in content.read("messages.json").splitlines()]
        for payload in (message["payload"] for message in messages if message["type"] == "metric_msg"):
            metric = payload["metric"]
            found.setdefault(metric["metricName"], set()).add((metric["step"], float(metric["metricValue"])))
    for name, points in expected(folder).items():
        assert set(comparable(found[name])) == set(comparable(points)), name


def test_trackio_holds_every_step_of_one_run(tmp_path):
    needs("trackio", ", and no extra of the development environment: it pins an older pillow")
    folder = tmp_path / "run"
    killed_and_resumed(folder, "trackio", TRACKIO, killed=0)
    code = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as S\n"
        "runs = S.get_runs('trial'); print(json.dumps([runs, S.get_logs('trial', runs[0])]))"
    )
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio-files")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    runs, logs = json.loads(done.stdout)
    assert len(runs) == 1
    for name, points in expected(folder).items():
        found = {(entry["step"], float(entry[name])) for entry in logs if name in entry}
        assert set(comparable(found)) == set(comparable(points)), name
