"""One of several processes: its rank, where its error goes, and that it does not outlive its launcher."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from automodel_cli.cli import app, console, worker
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.launch.workers import ERROR_FILE_VARIABLE, LAUNCHER_VARIABLE
from automodel_cli.processes import own_rank


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in (
        "RANK",
        "WORLD_SIZE",
        "SLURM_PROCID",
        "SLURM_NTASKS",
        ERROR_FILE_VARIABLE,
        LAUNCHER_VARIABLE,
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "rank", "launcher"),
    [
        ({}, 0, None),
        ({"RANK": "3", "WORLD_SIZE": "4"}, 3, "torchrun"),
        ({"RANK": "3"}, 0, None),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, 2, "srun"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, 0, None),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "RANK": "9", "WORLD_SIZE": "16"}, 9, "torchrun"),
    ],
)
def test_contract_15(environment, rank, launcher, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (worker.rank(), own_rank().launcher) == (rank, launcher)


def test_who_is_started_again(monkeypatch):
    assert not worker.is_started_again()
    for name in ("TORCHELASTIC_RESTART_COUNT", "AUTOMODEL_ATTEMPT"):
        for count, again in (("0", False), ("2", True)):
            monkeypatch.setenv(name, count)
            assert worker.is_started_again() is again
        monkeypatch.delenv(name)


def test_an_error_goes_to_the_file_of_the_launcher_and_nowhere_else(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv(ERROR_FILE_VARIABLE, str(tmp_path / "error.txt"))
    try:
        raise DataError("x.bin is damaged", "make it anew")
    except DataError as error:
        assert worker.show_error(error) == 1
    first, empty, *traceback = (tmp_path / "error.txt").read_text().splitlines()
    said = json.loads(first)
    assert (said["rank"], said["message"], said["hint"]) == (2, "x.bin is damaged", "make it anew")
    assert abs(said["time"] - time.time()) < 60
    assert empty == "" and traceback[0].startswith("Traceback") and "test_worker.py" in "".join(traceback)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_under_another_launcher_each_rank_says_two_lines(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(worker.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert worker.show_error(ValueError("odd")) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == "[rank 2] error: ValueError: odd"
    assert second.startswith("  full traceback in ")
    assert "ValueError: odd" in Path(second.rpartition(" ")[2]).read_text().splitlines()[-1]
    assert worker.show_error(ConfigError("wrong", "mend it")) == 2
    assert capsys.readouterr().err.startswith("[rank 2] error: wrong\n  mend it; full traceback in ")
    monkeypatch.setenv("RANK", "0")
    assert worker.show_error(ConfigError("wrong", "mend it")) == 2
    assert capsys.readouterr().err == "[rank 0] error: wrong\n  mend it\n"


def test_every_command_reports_its_error_that_way(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(ERROR_FILE_VARIABLE, str(tmp_path / "error.txt"))
    assert app.run(["pretrain", "llm", "-c", str(tmp_path / "absent.yaml")]) == 2
    assert "absent.yaml" in json.loads((tmp_path / "error.txt").read_text().splitlines()[0])["message"]
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own mechanism")
def test_a_worker_does_not_outlive_its_launcher(tmp_path):
    """Even one that is killed, and so cannot end its workers."""
    inner = "import time; from automodel_cli.cli import worker; worker.enter(); print('up', flush=True); time.sleep(60)"
    outer = (
        "import os, subprocess, sys\n"
        f"env = {{**os.environ, '{LAUNCHER_VARIABLE}': str(os.getpid())}}\n"
        "worker = subprocess.Popen([sys.executable, '-c', sys.argv[1]], env=env, start_new_session=True)\n"
        "print(worker.pid, flush=True); worker.wait()\n"
    )
    launcher = subprocess.Popen([sys.executable, "-c", outer, inner], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    lines = [launcher.stdout.readline().strip() for _ in range(2)]
    pid = int(next(line for line in lines if line.isdigit()))
    assert "up" in lines
    launcher.kill()
    launcher.wait()
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text():
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the worker lives on")


FIRST_LINES = """
import contextlib, sys
from automodel_cli.cli import app, console

def first(line):
    heavy = [name for name in ("torch", "pyarrow", "transformers", "tokenizers") if name in sys.modules]
    print(line, *heavy, sep="|")
    raise SystemExit

console.print_error = first
for command in sys.stdin.read().splitlines():
    with contextlib.suppress(SystemExit):
        app.run(command.split())
"""


def test_every_long_command_says_something_before_it_loads_anything_heavy(tmp_path):
    (tmp_path / "run").mkdir()
    config = tmp_path / "cfg.yaml"
    config.write_text(
        "model: {_target_: automodel_cli.models.gpt2.build_gpt2_model, n_layer: 1}\n"
        "dataset: {_target_: automodel_cli.data.nanogpt_dataset.NanogptDataset, file_pattern: x.bin, seq_len: 8}\n"
    )
    commands = [
        f"pretrain llm -c {config}", "eval run", "eval run --tasks core", "generate run", "export hf run out",
        "preprocess nanogpt --dataset x.txt", "preprocess megatron --input x.jsonl --output-path y --tokenizer gpt2",
        "preprocess tokenizer --dataset x.txt --output-dir t", "preprocess shuffle --dataset x.jsonl --output-dir y",
    ]  # fmt: skip
    missing = ["eval none", "generate none", "export hf none out", "import none out"]
    code = [sys.executable, "-c", FIRST_LINES]
    done = subprocess.run(code, input="\n".join([*commands, *missing]), capture_output=True, text=True, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert lines[len(commands) :] == ["error: none does not exist"] * len(missing), done
    for command, line in zip(commands, lines, strict=False):
        assert line.startswith(command.split()[0]) and line.endswith(" ..."), line


def test_a_worker_of_the_launcher_leaves_the_first_line_to_it(monkeypatch, capsys):
    monkeypatch.setenv(ERROR_FILE_VARIABLE, "x")
    worker.starting("loading")
    monkeypatch.delenv(ERROR_FILE_VARIABLE)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    worker.starting("loading")
    assert capsys.readouterr().err == ""


def test_other_libraries_are_quiet_unless_the_user_wants_them(monkeypatch):
    monkeypatch.setattr(os, "environ", {"TRANSFORMERS_VERBOSITY": "info"})
    with warnings.catch_warnings():
        console.quiet_libraries()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"
    assert os.environ["TORCH_CPP_LOG_LEVEL"] == "ERROR" and os.environ["TQDM_DISABLE"] == "1"
