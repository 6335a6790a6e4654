"""The doctor: a healthy machine, each illness by a stand-in, and that the report comes whatever is broken."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from automodel_cli.cli import app
from automodel_cli.config.schema.options import DoctorOptions as Request
from automodel_cli.recipes import doctor
from automodel_cli.recipes.doctor import Finding, as_json, has_problem


def found(check, request: Request | None = None) -> dict[str, Finding]:
    return {finding.name: finding for finding in check(request or Request())}


@pytest.fixture
def answers(monkeypatch):
    """``answers({"part of a command": (code, stdout, stderr)})`` instead of other processes."""

    def set_up(known: dict[str, tuple[int, str, str]]) -> None:
        def answer(command, timeout_s):
            joined = " ".join(command)
            return next((known[part] for part in known if part in joined), (127, "", ""))

        monkeypatch.setattr(doctor, "_in_a_process", answer)
        monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/bin/{name}")

    return set_up


def test_this_machine_end_to_end(tmp_path, capsys, monkeypatch):
    """The tests run here, so training does; two gloo processes really meet."""
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert app.run(["doctor", str(tmp_path / "not" / "there"), "--offline", "--timeout", "150", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    names = {finding["name"]: finding for finding in report["findings"]}
    assert report["ok"] is True
    assert "2 processes" in names["all_reduce"]["found"] or "NCCL" in names["all_reduce"]["found"]
    assert {"torch", "CPU", "open files", "free disk", "mmap", "file locks", "file system clock"} <= set(names)
    assert not list(tmp_path.iterdir())


def test_the_screen_and_the_exit_code(capsys, monkeypatch):
    report = [
        Finding("a", "well"),
        Finding("b", "so so", "warning", "mend it"),
        Finding("c", "ill", "problem", "do"),
    ]
    monkeypatch.setattr(doctor, "run", lambda request: report)
    assert app.run(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["ok", "a", "well"]
    assert lines[2].strip() == "-> mend it"
    assert lines[3].startswith("PROBLEM")
    assert lines[-1] == "1 problem will keep training from running here"
    report.pop()
    assert app.run(["doctor"]) == 0
    assert as_json(report)["ok"] and not has_problem(report)


def test_a_check_that_breaks_is_a_finding(monkeypatch):
    def _check_of_mine(request):
        raise RuntimeError("odd")
        yield

    monkeypatch.setattr(doctor, "CHECKS", (_check_of_mine, doctor._limits))
    first, *others = doctor.run(Request())
    assert (first.name, first.found, first.status) == ("check of mine", "RuntimeError: odd", "warning")
    assert others


GPU = {"name": "NVIDIA H200", "total": 140 << 30, "free": 139 << 30, "capability": [9, 0], "peers": [1]}


def ask_torch(*devices, cuda="12.8") -> tuple[int, str, str]:
    return 0, json.dumps({"cuda": cuda, "hip": None, "nccl": "2.27", "devices": list(devices)}), ""


def test_gpus(answers):
    other = {**GPU, "peers": [], "free": 3 << 30, "capability": [7, 5]}
    answers(
        {
            "driver_version": (0, "570.1, NVIDIA H200\n570.1, NVIDIA T4", ""),
            "compute-apps": (0, "17, 100 MiB, python", ""),
            "import json, torch": ask_torch(GPU, other),
        }
    )
    report = found(doctor._devices)
    assert report["CUDA"].found == "12.8, NCCL 2.27, driver 570.1"
    assert report["GPU 0"].status == "ok" and "bf16, fp8" in report["GPU 0"].found
    assert report["GPU 1"].status == "warning" and "no bf16" in report["GPU 1"].found
    assert "17" in report["GPU users"].found
    assert report["peer access"].status == "warning" and "GPU 1" in report["peer access"].found


@pytest.mark.parametrize(
    ("driver", "torch", "status", "advice"),
    [
        ("", ask_torch(), "ok", ""),
        ("570.1, NVIDIA H200", ask_torch(cuda=None), "problem", "built without CUDA"),
        ("570.1, NVIDIA H200", ask_torch(), "problem", "CUDA_VISIBLE_DEVICES"),
        ("", (1, "", "ImportError: libcudart.so"), "problem", "reinstall"),
        ("", (-9, "", "no answer after 60 s"), "problem", "driver"),
    ],
)
def test_no_gpus_and_why(answers, driver, torch, status, advice):
    answers({"driver_version": (0, driver, ""), "import json, torch": torch})
    (finding,) = doctor._devices(Request())
    assert finding.status == status
    assert advice in finding.advice


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import sys; sys.exit('the network is down')", "2 processes, gloo: the network is down"),
        ("import time; time.sleep(60)", "no answer after 1 s"),
    ],
)
def test_a_collective_that_fails_or_hangs(script, said, monkeypatch):
    monkeypatch.setattr(doctor, "_ALL_REDUCE", script)
    started = time.monotonic()
    finding = doctor._all_reduce(Request(timeout=1.0), gpus=0)
    assert finding.status == "problem" and said in finding.found
    assert "GLOO_SOCKET_IFNAME" in finding.advice
    assert time.monotonic() - started < 30


def test_limits(monkeypatch):
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda _: (1024, 1_000_000))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(total=64 << 20, free=1))
    report = found(doctor._limits)
    assert "ulimit -n 65536" in report["open files"].advice
    assert "--shm-size" in report["shared memory"].advice


def test_disk(tmp_path, monkeypatch):
    request = Request(folder=str(tmp_path))
    assert {finding.status for finding in doctor._disk(request)} <= {"ok", "warning"}
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(total=1 << 40, free=1 << 20))
    assert found(doctor._disk, request)["free disk"].status == "problem"
    monkeypatch.setattr(doctor.time, "time", lambda: 0.0)
    assert found(doctor._disk, request)["file system clock"].status == "warning"

    def no_mapping(*_, **__):
        raise OSError(19, "No such device")

    monkeypatch.setattr(doctor.mmap, "mmap", no_mapping)
    assert "dataset.mmap" in found(doctor._disk, request)["mmap"].advice
    monkeypatch.setattr(doctor, "_is_held", lambda path: False)
    assert found(doctor._disk, request)["file locks"].status == "warning"


def test_a_folder_that_cannot_be_written(monkeypatch, tmp_path):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryDirectory", refused)
    (finding,) = doctor._disk(Request(folder=str(tmp_path)))
    assert (finding.status, str(tmp_path) in finding.found) == ("problem", True)


def test_surroundings(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setattr(doctor.socket, "gethostname", lambda: "no.such.host.invalid")
    report = found(doctor._environment)
    assert report["launcher"].status == "warning"
    assert "NCCL_DEBUG=INFO" in report["environment"].found
    assert report["host name"].status in ("ok", "warning")


def test_the_hub(answers, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    answers({"open_tokenizer": (1, "", "Traceback\nDataError: no way\nset HF_HOME")})
    report = found(doctor._hub)
    assert report["hub cache"].status == "ok" and str(tmp_path) in report["hub cache"].found
    assert report["tokenizer"].status == "warning"
    answers({"open_tokenizer": (0, "", "")})
    assert found(doctor._hub)["tokenizer"].status == "ok"
    assert "tokenizer" not in found(doctor._hub, Request(offline=True))


def test_other_processes_are_never_waited_for_long():
    started = time.monotonic()
    code, _, said = doctor._in_a_process([sys.executable, "-c", "import time; time.sleep(60)"], 0.5)
    assert code == -9 and "no answer" in said
    assert doctor._in_a_process(["/no/such/program"], 1.0)[0] == 127
    assert doctor._in_a_process([sys.executable, "-c", "print(1)"], 60.0)[:2] == (0, "1\n")
    assert time.monotonic() - started < 60


def test_no_child_imports_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    for name in ("torch", "json", "os", "automodel_cli", "runpy", "encodings", "time"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w').close()\n")
    monkeypatch.setattr(doctor, "_ASK_TORCH", 'import json, os, time; print(\'{"devices": [], "cuda": null}\')')
    assert [finding.name for finding in doctor._devices(Request(timeout=60))] == ["GPU"]
    assert not (tmp_path / "canary").exists()


def test_every_python_that_is_started_leaves_the_current_folder_out():
    """Wherever this package starts another Python, it says so."""
    root = Path(doctor.__file__).parents[1]
    started = {
        path.relative_to(root).as_posix(): line.strip()
        for path in root.rglob("*.py")
        for line in path.read_text().splitlines()
        if "sys.executable" in line and '"-P"' not in line
    }
    assert started == {}
