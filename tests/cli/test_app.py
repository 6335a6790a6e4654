import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from automodel_cli.cli import app

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


def run(*argv: str) -> int:
    return app.run(list(argv))


def test_help_is_complete_and_grouped(capsys):
    assert run("--help") == 0
    shown = capsys.readouterr().out
    for name, entry in app.COMMANDS.items():
        assert name in shown
        assert entry.help.split(".")[0][:40] in shown
    for panel in ("Data", "Training", "Results", "Options"):
        assert panel in shown
    for text in ("--version", "--debug", "Exit codes", "75"):
        assert text in shown


def test_without_arguments_the_help_is_shown_and_the_code_says_so(capsys):
    assert run() == 2
    assert "Usage: automodel" in capsys.readouterr().out


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("automodel ")


def test_an_unknown_command_is_told_with_the_nearest(capsys):
    assert run("pretrane") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[0] == "error: No such command 'pretrane'. Did you mean 'pretrain'?"


def test_an_unknown_option(capsys):
    assert run("plot", "--colour") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: No such option")
    assert "automodel plot --help" in error


@pytest.mark.parametrize("name", list(app.COMMANDS))
def test_every_command_that_is_there_explains_itself(name, capsys):
    assert run(name, "--help") == 0
    assert f"Usage: automodel {name}" in capsys.readouterr().out


def test_launch_flags_belong_to_pretrain(capsys):
    assert run("--nproc-per-node", "2", "plot", "x") == 2
    assert "only pretrain, branch, run, eval, sweep run and race start several processes" in capsys.readouterr().err


def test_exceptions_become_exit_codes(monkeypatch, capsys):
    def raising(error):
        def call(invocation):
            raise error

        return call

    for error, code in (
        (KeyboardInterrupt(), 130),
        (FileNotFoundError(2, "gone", "x"), 1),
        (ValueError("bug"), 1),
    ):
        monkeypatch.setattr(app, "_call", raising(error))
        assert run("plot") == code
    assert "interrupted" in capsys.readouterr().err
    monkeypatch.setattr(app, "_call", lambda invocation: 75)
    assert run("plot") == 75


def test_main_exits_with_the_code():
    with pytest.raises(SystemExit) as caught:
        app.main(["pretrane"])
    assert caught.value.code == 2


def automodel(*argv: str, **more) -> subprocess.CompletedProcess:
    environment = {**os.environ, "COLUMNS": "80"}
    return subprocess.run(
        [sys.executable, "-m", "automodel_cli", *argv],
        text=True,
        capture_output=True,
        env=environment,
        **more,
    )


def test_a_reader_that_goes_away_is_no_error():
    """``automodel ... | head -1``: no traceback, no complaint about a broken pipe."""
    code = (
        "import sys\nfrom automodel_cli.cli import app, console\n"
        "def call(invocation):\n    for number in range(100000): console.say('x' * 100)\n    return 0\n"
        "app._call = call\napp.main(['plot'])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("xxx")
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141


def test_ctrl_c_says_one_word():
    code = (
        "import time\nfrom automodel_cli.cli import app\n"
        "def call(invocation):\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "app._call = call\napp.main(['plot'])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "interrupted\n")


def test_python_dash_m_is_the_same_program():
    found = automodel("--version")
    assert found.returncode == 0
    assert found.stdout.startswith("automodel ")


def test_the_current_folder_may_be_gone(tmp_path):
    gone = tmp_path / "gone"
    code = f"import os; os.mkdir({str(gone)!r}); os.chdir({str(gone)!r}); os.rmdir({str(gone)!r})\n"
    code += "from automodel_cli.cli.app import main; main(['--version'])"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("automodel"), done.stderr
