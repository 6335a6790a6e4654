"""The batch file: what it tells Slurm, that bash reads it, what it does with each exit code (stand-ins for Slurm)."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from automodel_cli.cli import app
from automodel_cli.cli.argv import parse_argv
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.options import SlurmOptions
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.errors import AutomodelError, ConfigError
from automodel_cli.launch.batch_file import submit
from automodel_cli.launch.plan import plan_launch
from automodel_cli.recipes.slurm import BatchJob, batch_file, choose_signal

YAML = """\
model: {_target_: automodel_cli.models.gpt2.build_gpt2_model, n_layer: 1}
dataset: {_target_: automodel_cli.data.nanogpt_dataset.NanogptDataset, file_pattern: x.bin, seq_len: 8}
checkpoint: {checkpoint_dir: runs/mine}
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("cfg.yaml").write_text(YAML)
    return tmp_path


def job(flags: dict[str, str] | None = None, **options) -> BatchJob:
    command = ["automodel", "pretrain", "llm", "-c", "my cfg.yaml"]
    return BatchJob(SlurmOptions(time="1:00:00", **options), command, flags or {"nproc-per-node": "8"}, name="mine")


def directives(text: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_what_slurm_is_told():
    found = directives(batch_file(job(flags={"nproc-per-node": "8", "nnodes": "1:4"}, sbatch=("qos=long",))))
    assert found["nodes"] == "4"
    assert (found["ntasks-per-node"], found["gpus-per-node"]) == ("1", "8")
    assert found["signal"] == "USR1@300"  # not B:, so that it goes to the launchers
    assert found["requeue"] == "" and found["open-mode"] == "append"
    assert (found["qos"], found["time"], found["job-name"]) == ("long", "1:00:00", "mine")


def test_the_signal_is_one_that_the_run_listens_to():
    cfg = load_config(PretrainConfig, "cfg.yaml", [])
    assert choose_signal(cfg.step_scheduler.preemption_signal) == "SIGUSR1"
    assert choose_signal(("SIGTERM",)) == "SIGTERM"
    assert choose_signal(("SIGINT", "SIGUSR2")) == "SIGUSR2"
    for none in ((), ("SIGINT",)):
        with pytest.raises(ConfigError, match="names no signal"):
            choose_signal(none)


STAND_INS = {
    "srun": 'printf "%s\\n" "$@" > srun.txt; env > env.txt; exit $(cat code)',
    "scontrol": 'if [ "$1" = show ]; then echo node7; echo node8; else echo "$@" >> requeued.txt; fi',
    "squeue": "cat state",
    "sbatch": 'SLURM_JOB_ID=1234567 SLURM_NNODES=2 SLURM_JOB_NODELIST="node[7-8]" bash "$1"',
}


@pytest.fixture
def slurm(monkeypatch):
    """Slurm's programs, which write down what they were asked."""
    Path("bin").mkdir()
    for name, body in STAND_INS.items():
        (Path("bin") / name).write_text(f"#!/bin/bash\n{body}\n")
        (Path("bin") / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path('bin').absolute()}{os.pathsep}{os.environ['PATH']}")

    def execute(*, code: int, state: str = "RUNNING", **more) -> int:
        Path("code").write_text(str(code))
        Path("state").write_text(state)
        Path("requeued.txt").unlink(missing_ok=True)
        Path("job.sbatch").write_text(batch_file(job(**more)))
        assert subprocess.run(["bash", "-n", "job.sbatch"]).returncode == 0
        return subprocess.run(["sbatch", "job.sbatch"], capture_output=True).returncode

    return execute


def test_preempted_goes_back_into_the_queue_and_nothing_else_does(slurm):
    assert slurm(code=75) == 75
    assert Path("requeued.txt").read_text() == "requeue 1234567\n"
    for code in (0, 1, 2, 137):
        assert slurm(code=code) == code
        assert not Path("requeued.txt").exists()
    assert slurm(code=75, state="COMPLETING") == 75  # scancel
    assert not Path("requeued.txt").exists()


def test_the_launchers_get_a_command_line_that_they_understand(slurm):
    flags = {"nproc-per-node": "4", "nnodes": "2", "max-restarts": "2", "log-dir": "my logs"}
    slurm(code=0, flags=flags, lead=120, setup=["export SET_UP=$((1 + 1))"])
    words = Path("srun.txt").read_text().splitlines()
    assert words[:6] == ["--kill-on-bad-exit=0", "automodel", "pretrain", "llm", "-c", "my cfg.yaml"]
    invocation = parse_argv(words[2:])
    assert invocation.arguments == ("pretrain", "llm", "-c", "my cfg.yaml")
    plan = plan_launch(invocation.launch, processes=4)
    assert (plan.endpoint, plan.run_id) == ("node7:24567", "1234567")
    assert (plan.max_nodes, plan.max_restarts, plan.shutdown_timeout_s, str(plan.log_dir)) == (
        2,
        2,
        120.0,
        "my logs",
    )
    assert "SET_UP=2" in Path("env.txt").read_text()


def test_one_machine_meets_nobody(slurm):
    slurm(code=0)
    assert "--rdzv-endpoint" not in Path("srun.txt").read_text()


def test_the_command(capsys, slurm):
    line = "slurm --time 4:00:00 --partition gpu --sbatch qos=long --nproc-per-node 8 --max-restarts 1"
    assert app.run([*line.split(), "pretrain", "llm", "-c", "cfg.yaml", "--model.n_layer", "3"]) == 0
    text = capsys.readouterr().out
    found = directives(text)
    assert (found["partition"], found["qos"], found["job-name"]) == ("gpu", "long", "mine")
    (launch,) = [shlex.split(line) for line in text.splitlines() if line.startswith("srun")]
    assert launch[2] == sys.executable
    assert launch[3:12] == [
        "-P",
        "-m",
        "automodel_cli",
        "pretrain",
        "llm",
        "-c",
        "cfg.yaml",
        "--model.n_layer",
        "3",
    ]
    assert app.run([*line.split(), "-o", "a.sbatch", "cfg.yaml", "model.n_layer=3"]) == 0
    assert "submit it with: sbatch a.sbatch" in capsys.readouterr().out
    assert Path("a.sbatch").is_file() and Path("logs").is_dir()
    Path("code").write_text("0")
    assert app.run([*line.split(), "--submit", "cfg.yaml"]) == 0
    assert Path("mine.sbatch").is_file() and Path("srun.txt").is_file()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("slurm --nproc-per-node 8", "the command of the job is missing"),
        ("slurm --nproc-per-node 8 eval run", "the command of the job is missing"),
        ("slurm --nproc-per-node 8 cfg.yaml --model.n_layrs 3", "did you mean n_layer?"),
        ("slurm --nproc-per-node 8 --time soon cfg.yaml", "--time: expected"),
        ("slurm --nproc-per-node 8 --sbatch 9=x cfg.yaml", "expected NAME=VALUE"),
        ("slurm --nproc-per-node 8 cfg.yaml --fresh", "start over each time"),
        ("slurm --nproc-per-node gpu cfg.yaml", "number of GPUs per machine"),
        ("slurm --nproc-per-node 8 cfg.yaml --step_scheduler.preemption_signal null", "names no signal"),
        ("slurm --nproc-per-node 8 --nnodes 4:2 cfg.yaml", "--nnodes: expected"),
    ],
)
def test_mistakes_are_said_now_and_not_when_the_job_starts(line, message, capsys):
    assert app.run(line.split()) == 2
    assert message in capsys.readouterr().err


def test_what_is_printed_has_its_log_folder(capsys):
    """``automodel slurm ... > job.sh``: Slurm makes no folders, and a job without one ends without a word."""
    assert app.run(["slurm", "--nproc-per-node", "8", "--logs", "out/logs", "pretrain", "llm", "-c", "cfg.yaml"]) == 0
    assert directives(capsys.readouterr().out)["output"] == "out/logs/%x-%j.out"
    assert Path("out/logs").is_dir()
    Path("file").touch()
    assert app.run(["slurm", "--nproc-per-node", "8", "--logs", "file/logs", "pretrain", "llm", "-c", "cfg.yaml"]) == 1
    assert "cannot make the log folder file/logs" in capsys.readouterr().err


@pytest.mark.parametrize(("more", "processes"), [("", "cpu"), (" --nproc-per-node 4", "4")])
def test_without_gpus_the_processes_are_the_cpus(more, processes, capsys):
    assert app.run(f"slurm --gpus-per-node 0{more} pretrain llm -c cfg.yaml".split()) == 0
    text = capsys.readouterr().out
    assert "gpus-per-node" not in directives(text)
    assert f"--nproc-per-node {processes}" in text


def test_without_slurm(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(AutomodelError, match="no sbatch on this machine"):
        submit(Path("x"))


HOSTILE = [
    "a\ntouch CANARY",
    "a\r#SBATCH --wrap=touch",
    "$(touch CANARY)",
    "`touch CANARY`",
    "a' ; touch CANARY '",
    "a b",
]


@pytest.mark.parametrize("value", HOSTILE)
def test_no_value_becomes_a_line_of_the_batch_file(value, here, capsys):
    """In a value of the file, of the command line, of an option of sbatch: quoted, or refused; never run."""
    Path("evil.yaml").write_text(YAML.replace("runs/mine", json.dumps(f"runs/{value}")))
    for arguments in (
        ["slurm", "--nproc-per-node", "8", "-o", "job.sbatch", "pretrain", "llm", "-c", "evil.yaml"],
        [
            "slurm",
            "--nproc-per-node",
            "8",
            "-o",
            "job.sbatch",
            "cfg.yaml",
            "--checkpoint.checkpoint_dir",
            value,
        ],
        ["slurm", "--nproc-per-node", "8", "-o", "job.sbatch", "--partition", value, "cfg.yaml"],
        ["slurm", "--nproc-per-node", "8", "-o", "job.sbatch", "--job-name", value, "cfg.yaml"],
        ["slurm", "--nproc-per-node", "8", "-o", "job.sbatch", "--logs", value, "cfg.yaml"],
        ["slurm", "--nproc-per-node", value, "-o", "job.sbatch", "cfg.yaml"],
    ):
        Path("job.sbatch").unlink(missing_ok=True)
        code = app.run(arguments)
        assert code in (0, 2), capsys.readouterr().err
        if code == 0:
            text = Path("job.sbatch").read_text()
            known = (
                "#!/bin/bash",
                "#SBATCH --",
                "trap ",
                "srun ",
                "code=$?",
                "if [",
                "    ",
                "fi",
                "exit ",
                "",
            )
            assert all(line.startswith(known) for line in text.splitlines())
            env = {"PATH": f"{here}:/usr/bin:/bin"}
            Path("srun").write_text("#!/bin/sh\nexit 0\n")
            Path("srun").chmod(0o755)
            subprocess.run(["bash", "job.sbatch"], env=env, check=False)
        assert not Path("CANARY").exists()
