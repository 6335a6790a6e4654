"""What the log of a run says, while it grows and after it was rewound."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from automodel_cli.metrics.log import MetricsLog
from automodel_cli.metrics.log_file import METRICS_NAME, encode_record, json_safe, rewind
from automodel_cli.metrics.read import read_metrics
from automodel_cli.metrics.run_view import RunView

START = datetime(2026, 1, 1, tzinfo=UTC)


def clock(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def train(step: int, at: float | None = None, **more) -> dict:
    record = {"kind": "train", "step": step, "time": clock(step if at is None else at), "loss": 5 / step}
    return {**record, "tokens_seen": 100 * step, "tps": 50.0, "eta_s": 9.0, "skipped": False, **more}


def append(folder, *records) -> None:
    with (folder / METRICS_NAME).open("ab") as handle:
        handle.writelines(map(encode_record, records))


def test_curves_by_part(tmp_path):
    log = MetricsLog(tmp_path)
    for step in range(1, 6):
        log.train({"step": step, "loss": math.nan if step == 3 else 1 / step, "lr": 0.1, "by": {"a": step, "b": 2}})
    log.validation({"step": 5, "name": "default", "loss": 0.5})
    log.validation({"step": 5, "name": "code", "loss": 0.25})
    log.evaluation({"step": 5, "core": 0.1, "samples": [{"prompt": "p", "text": "t"}]})
    log.close()
    view = RunView(tmp_path).read_all()
    assert list(view.parts) == ["train", "val/default", "val/code", "eval"]
    curves = view.curves("train")
    assert set(curves) == {"loss", "lr", "by/a", "by/b"}
    assert curves["loss"].x.tolist() == [1, 2, 4, 5] and curves["by/a"].y.tolist() == [1, 2, 3, 4, 5]
    whole = read_metrics(tmp_path)
    np.testing.assert_array_equal(view.parts["train"].column("loss"), whole.train["loss"])
    np.testing.assert_array_equal(view.parts["val/code"].column("loss"), whole.validation["code"]["loss"])
    assert view.samples()[0]["texts"] == [{"prompt": "p", "text": "t"}]
    assert "samples" not in view.last["eval"]


def test_axes(tmp_path):
    append(tmp_path, *(train(step, at=2 * step) for step in range(1, 5)))
    append(tmp_path, {"kind": "val", "step": 0, "name": "default", "loss": 6, "time": clock(0)})
    append(tmp_path, {"kind": "val", "step": 3, "name": "default", "loss": 2, "time": clock(7)})
    view = RunView(tmp_path).read_all()
    assert view.x_of("train", "step").tolist() == [1, 2, 3, 4]
    assert view.x_of("train", "tokens").tolist() == [100, 200, 300, 400]
    assert view.x_of("train", "time").tolist() == [2, 4, 6, 8]
    assert view.x_of("val/default", "tokens").tolist() == [0, 300]
    assert view.x_of("val/default", "time").tolist() == [0, 7]
    assert view.curves("train")["step_s"].y.tolist() == [2, 2, 2, 2]  # 100 tokens at 50 a second
    assert view.curves("train", low=3, high=3)["loss"].x.tolist() == [2, 3, 4]


def test_what_changes_tells_what_has_changed(tmp_path):
    view = RunView(tmp_path)
    assert not view.update()
    append(tmp_path, train(1), train(2))
    (added,) = view.update().added
    assert (added.part, added.first, added.rows) == ("train", 0, 2)
    append(tmp_path, train(3))
    (added,) = view.update().added
    assert (added.first, added.rows) == (2, 3) and not view.update()
    before = view.generation
    rewind(tmp_path, 1)
    changes = view.update()
    assert changes.restarted and view.generation == before + 1 and view.parts["train"].step.tolist() == [1]
    append(tmp_path, train(2, at=50))
    assert view.update().added and view.parts["train"].step.tolist() == [1, 2]
    append(tmp_path, train(2, at=60, loss=0.5))  # two runs write into one folder
    assert view.update().restarted and view.parts["train"].column("loss").tolist() == [5, 0.5]


def test_events(tmp_path):
    append(tmp_path, *(train(step) for step in range(1, 6)))
    rewind(tmp_path, 3)
    append(tmp_path, train(4, at=1000, eta_s=None), train(5, at=1001, skipped=True, loss=math.nan))
    append(tmp_path, {"kind": "spike", "step": 5, "time": clock(1001), "z": 6.25, "action": "<b>rewind</b>"})
    append(tmp_path, {"kind": "event", "event": "data changed", "step": 5, "time": clock(1002)})
    view = RunView(tmp_path).read_all()
    events = [(event["step"], event["kind"], event["text"]) for event in view.events()]
    assert (4, "resume", "steps 4 to 5 were made again from a checkpoint") in events
    assert (4, "resume", "a new process goes on after no record for 0:16:37") in events
    assert (5, "skip", "skipped: loss or gradient was not finite") in events
    assert (5, "spike", "z 6.25, action <b>rewind</b>") in events
    assert (5, "event", "data changed") in events
    assert len(events) == 5 and view.parts["train"].step.tolist() == [1, 2, 3, 4, 5]


def test_a_pause_of_the_same_process(tmp_path):
    append(tmp_path, *(train(step) for step in range(1, 6)), train(6, at=4003))
    (event,) = RunView(tmp_path).read_all().events()
    assert event["kind"] == "pause" and event["text"] == "no record for 1:06:38"


def test_the_summary_is_json(tmp_path):
    append(tmp_path, train(1, loss=math.inf, big=10**400, note="n" * 9000, by={"a": 1}))
    summary = RunView(tmp_path).read_all().summary()
    assert json.loads(json.dumps(summary, allow_nan=False)) == json_safe(summary)
    assert summary["parts"]["train"]["last"]["loss"] is None and len(json.dumps(summary)) < 2000
    assert RunView(tmp_path / "nothing").read_all().summary()["parts"] == {}


@pytest.mark.parametrize("time", [5, None, "soon"])
def test_a_stranger_s_log_is_bounded(tmp_path, time):
    append(tmp_path, *({"kind": "val", "step": 1, "name": f"n{n}", "loss": 1.0} for n in range(500)))
    append(tmp_path, *({"kind": f"k{n}", "step": n, "text": "x" * 5000} for n in range(1500)))
    texts = [{"prompt": "p" * 9999, "text": 5}] * 99
    append(tmp_path, *({"kind": "eval", "step": n, "samples": texts} for n in range(70)))
    append(tmp_path, {"kind": "eval", "step": 99, "samples": ["text", {"no": "prompt"}], "time": time})
    view = RunView(tmp_path).read_all()
    assert len(view.parts) <= 200 and len(view.events()) <= 1000 and len(view.samples()) <= 60
    assert view.samples()[-1]["texts"] == [{"prompt": "", "text": ""}]
    assert len(view.samples()[-2]["texts"]) <= 32 and len(view.samples()[-2]["texts"][0]["prompt"]) <= 4000


def test_a_step_is_a_number_whatever_the_line_says_of_it(tmp_path):
    (tmp_path / METRICS_NAME).write_text('{"step": 1, "nonfinite": {"step": "nan"}}\n{"step": 2, "loss": 1.0}\n')
    view = RunView(tmp_path).read_all()
    assert view.parts["train"].step.tolist() == [2] and view.skipped_lines == 1


def test_the_last_record_is_bounded(tmp_path):
    keys = {f"key {i}": i for i in range(10_000)}
    (tmp_path / METRICS_NAME).write_text(json.dumps({"step": 1, **keys}) + "\n")
    assert len(RunView(tmp_path).read_all().last["train"]) == 400


def test_changes_of_the_data_are_placed_by_tokens_if_the_log_counts_alike(tmp_path):
    log = MetricsLog(tmp_path)
    for step in range(1, 11):
        log.train({"step": step, "tokens_seen": 100 * step})
    log.close()
    view = RunView(tmp_path).read_all()
    known = {"changes": [{"tokens": 400, "text": "a 1"}], "step": 8, "tokens": 800}
    (event,) = view.data_events(known)
    assert (event["step"], event["kind"], event["text"]) == (5, "data", "a 1")  # the first update that reads it
    assert view.data_events({**known, "tokens": 700}) == view.data_events({**known, "step": 11}) == []
    assert view.data_events({}) == RunView(tmp_path / "none").data_events(known) == []
