"""What is sent: flat names for numbers, texts apart, the configuration as parameters."""

from __future__ import annotations

import math

import pytest

from automodel_cli.metrics.trackers.interface import Entry, flatten
from automodel_cli.metrics.trackers.mlflow import artifact_location, metric_name


def test_numbers_by_name():
    record = {"step": 3, "loss": 0.5, "name": "code", "missing": None, "best": True, "odd": math.inf, "samples": []}
    assert Entry("val_code", record, 0.0).numbers() == {"val_code/loss": 0.5, "val_code/odd": math.inf}


def test_losses_by_source_are_numbers_of_their_own():
    record = {"step": 3, "loss": 3.0, "loss_by_source": {"web": 3.5, "code": 2.5}, "tokens_by_source": {"web": 8}}
    numbers = Entry("train", record, 0.0).numbers()
    assert numbers == {"train/loss": 3.0, "train/loss/web": 3.5, "train/loss/code": 2.5}


def test_samples():
    record = {"step": 1, "samples": [{"prompt": "a", "text": "b"}]}
    assert Entry("eval", record, 0.0).samples() == [("a", "b")]
    assert Entry("train", {"step": 1}, 0.0).samples() == []


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (None, {"a": 1, "b.c": 2, "b.d.e": "x", "b.d.f": "[1, 2]", "g": True}),
        (1, {"a": 1, "b.c": 2, "b.d": '{"e": "x", "f": [1, 2]}', "g": True}),
        (0, {"a": 1, "b": '{"c": 2, "d": {"e": "x", "f": [1, 2]}}', "g": True}),
    ],
)
def test_a_configuration_is_opened_so_deep(depth, expected):
    config = {"a": 1, "b": {"c": 2, "d": {"e": "x", "f": [1, 2]}}, "g": True, "none": None}
    assert flatten(config, depth) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("val_default (ema)/loss", "val_default _ema_/loss"),
        ("train/loss/../x", "train/loss/_/x"),
        ("train/loss/a//b:c", "train/loss/a/_/b_c"),
        ("x" * 300, "x" * 250),
    ],
)
def test_names_that_mlflow_takes(name, expected):
    assert metric_name(name) == expected


def test_files_of_mlflow_lie_beside_its_database_unless_a_server_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert artifact_location({}, tmp_path) == f"file://{tmp_path}/mlflow/artifacts"
    assert artifact_location({"tracking_uri": "https://host"}, tmp_path) is None
    assert artifact_location({"tracking_uri": "https://host", "artifact_location": "s3://b"}, tmp_path) == "s3://b"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://host")
    assert artifact_location({}, tmp_path) is None
