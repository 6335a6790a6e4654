"""Where trackers send, said before they do; and that no secret goes where only a file says."""

from __future__ import annotations

import pytest

from automodel_cli.assembly import trackers
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.errors import ConfigError

BASE = {
    "model": {"_target_": "automodel_cli.models.gpt2.build_gpt2_model"},
    "dataset": {"_target_": "automodel_cli.data.nanogpt_dataset.NanogptDataset", "file_pattern": "x.bin"},
}
VARIABLES = (
    "WANDB_MODE", "COMET_API_KEY", "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD",
    "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL",
)  # fmt: skip


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch, tmp_path):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # where MLflow looks for credentials


def config(**sections) -> PretrainConfig:
    return PretrainConfig.model_validate({**BASE, **sections})


def said(tmp_path, **sections) -> list[str]:
    return [place for _, place in trackers.rows(config(**sections), tmp_path)]


def test_without_a_section_there_is_nothing(tmp_path):
    assert trackers.rows(config(), tmp_path) == []
    assert trackers.notes(config()) == []
    assert trackers.open_trackers(config(wandb={"enable": False}), tmp_path, step=0, say=pytest.fail) is None


@pytest.mark.parametrize(
    ("section", "environment", "expected"),
    [
        ({"wandb": {"project": "p", "entity": "e"}}, {}, "W&B: sends to project e/p"),
        ({"wandb": {"project": "p"}}, {"WANDB_MODE": "offline"}, "W&B: offline, in RUN"),
        ({"tensorboard": True}, {}, "TensorBoard: RUN/tensorboard"),
        ({"mlflow": True}, {}, "MLflow: sqlite:///RUN/mlflow/mlflow.db"),
        (
            {"mlflow": True},
            {"MLFLOW_TRACKING_URI": "https://me:hunter2@host"},
            "MLflow: sends to https://me:<redacted>@host",
        ),
        (
            {"mlflow": {"tracking_uri": "http://host", "artifact_location": "s3://b"}},
            {},
            "MLflow: sends to http://host, files to s3://b",
        ),
        ({"comet": {"project_name": "p"}}, {"COMET_API_KEY": "hunter2"}, "Comet: offline, in RUN/comet"),
        ({"comet": {"mode": "online"}}, {}, "Comet: offline (COMET_API_KEY is not set), in RUN/comet"),
        (
            {"comet": {"mode": "online", "workspace": "w"}},
            {"COMET_API_KEY": "hunter2"},
            "Comet: sends to project w/automodel",
        ),
        ({"trackio": True}, {}, "Trackio: local, project automodel"),
        (
            {"trackio": True},
            {"TRACKIO_SERVER_URL": "https://host/?write_token=hunter2"},
            "Trackio: sends to https://host/",
        ),
    ],
)
def test_each_says_where_it_sends(tmp_path, monkeypatch, section, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert said(tmp_path, **section) == [expected.replace("RUN", str(tmp_path))]


def test_a_missing_package_is_noted(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    (line,) = trackers.notes(config(comet=True))
    assert line.startswith("comet_ml is not installed (pip install 'automodel-cli[comet]'): Comet will not start")


class TestMlflowsCredentials:
    def test_go_to_no_server_that_only_the_file_names(self, monkeypatch):
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hunter2")
        with pytest.raises(ConfigError, match="MLFLOW_TRACKING_TOKEN holds to https://evil") as error:
            trackers.check_trackers(config(mlflow={"tracking_uri": "https://evil"}))
        assert "hunter2" not in str(error.value)

    def test_nor_do_those_of_its_file(self, tmp_path):
        (tmp_path / ".mlflow").mkdir()
        (tmp_path / ".mlflow" / "credentials").write_text("[mlflow]\n")
        with pytest.raises(ConfigError, match="credentials"):
            trackers.check_trackers(config(mlflow={"tracking_uri": "HTTPS://evil"}))

    def test_go_where_the_environment_says(self, monkeypatch):
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hunter2")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ours")
        trackers.check_trackers(config(mlflow={"tracking_uri": "https://ours"}))
        trackers.check_trackers(config(mlflow=True))

    def test_a_server_without_any_is_fine(self):
        trackers.check_trackers(config(mlflow={"tracking_uri": "https://host"}))
