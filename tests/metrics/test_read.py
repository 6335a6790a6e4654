"""metrics.jsonl as columns."""

from __future__ import annotations

import math

import numpy as np
import pytest

from automodel_cli.errors import DataError
from automodel_cli.metrics.log import MetricsLog
from automodel_cli.metrics.log_file import METRICS_NAME, encode_record
from automodel_cli.metrics.read import distinct_tails, read_metrics, read_runs


def write_run(folder, steps):
    log = MetricsLog(folder)
    for step in steps:
        log.train({"step": step, "loss": math.nan if step == 3 else 1 / step, "skipped": step == 3})
    log.validation({"step": steps[-1], "name": "default", "loss": 0.5, "bits_per_byte": None})
    log.validation({"step": steps[-1], "name": "code", "loss": 0.25})
    log.close()
    return folder


def test_columns_come_back(tmp_path):
    run = read_metrics(write_run(tmp_path / "a", [1, 2, 3]))
    assert run.label == "a" and run.skipped_lines == 0
    assert run.train["step"].dtype == np.int64
    np.testing.assert_array_equal(run.train["step"], [1, 2, 3])
    np.testing.assert_array_equal(run.train["loss"], [1, 0.5, np.nan])
    np.testing.assert_array_equal(run.train["skipped"], [0, 0, 1])
    assert "time" not in run.train and "kind" not in run.train
    assert set(run.validation) == {"default", "code"}
    assert "bits_per_byte" not in run.validation["default"]
    np.testing.assert_array_equal(run.validation["code"]["loss"], [0.25])


def test_torn_last_line_and_garbage_are_skipped(tmp_path):
    path = write_run(tmp_path, [1, 2]) / METRICS_NAME
    path.write_bytes(path.read_bytes() + b"\0\0\0\n" + b'{"kind": "train", "step": 9, "lo')
    run = read_metrics(path)
    assert run.skipped_lines == 2
    np.testing.assert_array_equal(run.train["step"], [1, 2])


def test_the_later_line_of_a_step_wins_and_steps_are_ordered(tmp_path):
    records = [(1, 9.0), (2, 8.0), (3, 7.0), (2, 5.0)]
    path = tmp_path / METRICS_NAME
    path.write_bytes(b"".join(encode_record({"kind": "train", "step": s, "loss": x}) for s, x in records))
    train = read_metrics(tmp_path).train
    np.testing.assert_array_equal(train["step"], [1, 2, 3])
    np.testing.assert_array_equal(train["loss"], [9, 5, 7])


def test_a_key_that_some_records_lack_is_nan_there(tmp_path):
    path = tmp_path / METRICS_NAME
    records = [{"kind": "train", "step": 1}, {"kind": "train", "step": 2, "mfu": 0.5}]
    path.write_bytes(b"".join(map(encode_record, records)))
    np.testing.assert_array_equal(read_metrics(tmp_path).train["mfu"], [np.nan, 0.5])


def test_several_runs_get_labels_that_differ(tmp_path):
    first, second = write_run(tmp_path / "a" / "run", [1]), write_run(tmp_path / "b" / "run", [1])
    assert [run.label for run in read_runs([first, second])] == ["a/run", "b/run"]
    assert [run.label for run in read_runs([first, first])] == ["run", "run"]
    assert distinct_tails([("x", "y"), ("x", "z")]) == ["y", "z"]


def test_no_file_and_no_record(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_metrics(tmp_path)
    (tmp_path / METRICS_NAME).write_bytes(b"")
    with pytest.raises(DataError, match="holds no record"):
        read_metrics(tmp_path)
