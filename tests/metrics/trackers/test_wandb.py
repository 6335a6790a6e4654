"""W&B: what is sent, what is masked, that it resumes, and that its failures never reach training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from automodel_cli.metrics.trackers.interface import Entry
from automodel_cli.metrics.trackers.masking import REDACTED, redact, redact_command_line
from automodel_cli.metrics.trackers.own_files import RUN_FILES
from automodel_cli.metrics.trackers.wandb import WandbTracker, choose_run_id, init_arguments

CANARY = "canary-hunter2"
RUN_NAME = RUN_FILES["wandb"]


class TestRedact:
    @pytest.mark.parametrize(
        "key",
        [
            "key",
            "token",
            "secret",
            "password",
            "api_key",
            "WANDB_API_KEY",
            "accessToken",
            "db-password",
        ],
    )
    def test_secrets_are_masked_at_any_depth(self, key):
        assert redact({"a": [{key: CANARY}]}) == {"a": [{key: REDACTED}]}
        assert redact({key: {"inner": CANARY}}) == {key: REDACTED}
        assert redact({key: 12345}) == {key: REDACTED}

    @pytest.mark.parametrize(
        "key",
        [
            "tokenizer",
            "bos_token",
            "max_tokens",
            "num_tokens",
            "text_key",
            "best_metric_key",
            "tokens",
        ],
    )
    def test_what_only_sounds_like_one_stays(self, key):
        assert redact({key: "value"}) == {key: "value"}

    def test_values_that_hold_none_stay(self):
        assert redact({"token": None, "use_token": True}) == {"token": None, "use_token": True}

    def test_passwords_in_urls(self):
        assert redact(["s3://user:hunter2@host/x", "http://host:80/"]) == [
            f"s3://user:{REDACTED}@host/x",
            "http://host:80/",
        ]

    def test_command_line(self):
        def line(secret):
            return [
                "x.yaml",
                "--a.api_key",
                secret,
                f"b.token={secret}",
                f"--hf-token={secret}",
                "--x.y",
                "1",
            ]

        assert redact_command_line(line(CANARY)) == line(REDACTED)


class TestSettings:
    def test_section_becomes_arguments(self, tmp_path):
        settings = {"enable": True, "project": "p", "save_dir": "logs", "tags": ("a",), "resume": None}
        assert init_arguments(settings, tmp_path, "chosen") == {
            "project": "p",
            "dir": "logs",
            "tags": ("a",),
            "id": "chosen",
            "resume": "allow",
        }
        assert init_arguments({}, tmp_path, "i")["dir"] == str(tmp_path)

    def test_id_is_kept_for_the_same_project(self, tmp_path):
        stored = {"id": "abc", "entity": None, "project": "p"}
        (tmp_path / RUN_NAME).write_text(json.dumps(stored), encoding="utf-8")
        assert choose_run_id({"project": "p"}, tmp_path) == "abc"
        assert choose_run_id({"project": "other"}, tmp_path) != "abc"
        assert choose_run_id({"project": "p", "id": "mine"}, tmp_path) == "mine"

    @pytest.mark.parametrize("content", ["", "[]", "{}", "\0"])
    def test_a_damaged_id_file_means_a_new_id(self, tmp_path, content):
        (tmp_path / RUN_NAME).write_text(content, encoding="utf-8")
        assert len(choose_run_id({}, tmp_path)) == 8


class TestCalls:
    """What the package is asked to do, by one that stands for it."""

    @pytest.fixture
    def calls(self, monkeypatch):
        calls: list[tuple] = []

        class Run:
            def __getattr__(self, name):
                return lambda *arguments, **named: calls.append((name, *arguments, *named.values()))

        monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **given: calls.append(given) or Run()))
        return calls

    def test_numbers_and_the_end(self, tmp_path, calls):
        tracker = WandbTracker({"project": "p", "enable": True}, tmp_path / "run", {"hub": {"token": CANARY}})
        tracker.log(Entry("val_code", {"step": 3, "loss": 0.5, "best": True}, 0.0))
        tracker.close(ok=False)
        assert calls[0]["config"] == {"hub": {"token": REDACTED}}
        assert calls[-2:] == [("log", {"step": 3, "val_code/loss": 0.5}), ("finish", 1)]
        assert json.loads((tmp_path / "run" / RUN_NAME).read_text())["id"] == calls[0]["id"]


OFFLINE_RUN = """
import sys
from pathlib import Path
from automodel_cli.metrics.log import MetricsLog
from automodel_cli.metrics.trackers.background import Background, Trackers
from automodel_cli.metrics.trackers.wandb import WandbTracker
assert "wandb" not in sys.modules
folder, step, secret = sys.argv[1], int(sys.argv[2]), sys.argv[4]
config = {"model": {"n_layer": 2}, "wandb": {"api_key": secret}, "tokenizer": "byte"}
settings = {"project": "test", "save_dir": folder + "/wb", "name": "n", "mode": "offline"}
said = []
start = lambda: WandbTracker(settings, Path(folder), config)
log = MetricsLog(folder, remote=Trackers([Background("W&B", start, said.append)]))
log.train({"step": step, "loss": 2.5, "lr": 1e-3})
log.validation({"step": step, "name": "default", "loss": 2.75})
log.close()
sys.exit(said[0] if said else 0)
"""


def offline_run(folder: Path, step: int) -> None:
    command = [sys.executable, "-c", OFFLINE_RUN, str(folder), str(step), "--wandb.api_key", CANARY]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "WANDB_MODE": "offline"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_offline_run_is_written_redacted_and_continued(tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed")
    offline_run(tmp_path, 1)
    run_id = json.loads((tmp_path / RUN_NAME).read_text(encoding="utf-8"))["id"]
    offline_run(tmp_path, 2)
    files = sorted((tmp_path / "wb" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert files and {file.stem for file in files} == {f"run-{run_id}"}
    content = b"".join(file.read_bytes() for file in files)
    for expected in (b"train/loss", b"val/loss", b"n_layer", REDACTED.encode()):
        assert expected in content
    everything = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(CANARY.encode() in data for data in everything)
