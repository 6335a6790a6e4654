"""Stages as Slurm jobs: the files, one submission at a time, elements that are lost; stand-ins for Slurm's programs."""

import subprocess
from pathlib import Path

import pytest
from tests.corpus.jobs import toy_command
from tests.corpus.jobs.toy_job import ToyJob
from tests.launch.slurm_stand_ins import install, run_jobs

from automodel_cli.corpus.jobs.array_element import STAGE_VARIABLE, Element, element_of
from automodel_cli.errors import AutomodelError, ConfigError
from automodel_cli.launch.array_jobs import ArrayOptions, SlurmRunner

SUM = sum(n * n for n in range(6))


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """sbatch, squeue and scancel as stand-ins, in a folder to work in."""
    monkeypatch.chdir(tmp_path)
    install(tmp_path / "bin", monkeypatch)
    return tmp_path


def command(*words: str) -> None:
    toy_command.main("toy", "6", *words)


def do_jobs(lost: str = "") -> None:
    run_jobs(lost, call=lambda words: toy_command.main(*words))


def roles() -> list[str]:
    return Path("toy/roles").read_text().splitlines()


def runner(said: list[str], folder: Path, **options) -> SlurmRunner:
    defaults = {"name": "toy", "elements": 4, "cores": 1, "time": "5", "logs": str(folder / "logs")}
    return SlurmRunner(ArrayOptions(**defaults | options), folder / ".slurm", ["automodel", "a b"], said.append)


def lines(path: Path) -> dict[str, str]:
    found = [line.removeprefix("#SBATCH --") for line in path.read_text().splitlines() if line.startswith("#SBATCH")]
    return {name: value for name, _, value in (line.partition("=") for line in found)}


def test_the_arrays_do_all_and_the_last_job_finishes(slurm, capsys):
    command("submit")
    assert capsys.readouterr().out.splitlines() == [
        "submitted squares as job 1", "submitted sums as job 2", "submitted rest as job 3",
    ]  # fmt: skip
    do_jobs()
    assert Path("toy/total").read_text() == str(SUM)
    assert roles() == ["driver ", *(f"squares {n}" for n in range(4)), *(f"sums {n}" for n in range(4)), "rest "]
    files = [slurm / "toy/.slurm" / name for name in ("1-squares.sbatch", "2-sums.sbatch", "3-rest.sbatch")]
    assert Path("submitted.txt").read_text().splitlines() == [
        f"--parsable {files[0]}",
        f"--parsable --dependency=afterany:1 {files[1]}",
        f"--parsable --dependency=afterany:2 {files[2]}",
    ]
    ran = ToyJob(Path("toy")).ran()
    assert len(ran) == len(set(ran)) == 9  # nothing twice


def test_what_lost_elements_leave_is_done_by_the_next_jobs(slurm):
    command("submit")
    do_jobs(lost="squares.0 squares.3 sums.1")
    assert Path("toy/total").read_text() == str(SUM)
    ran = ToyJob(Path("toy")).ran()
    assert sorted(ran) == sorted([f"squares {n}" for n in range(6)] + [f"sums {n}" for n in range(3)])


def test_files_by_hand_are_the_same_and_are_submitted_once(slurm, capsys):
    command()
    assert (
        capsys.readouterr().out
        == f"wrote 3 batch files to {slurm}/toy/.slurm; submit them with: sh {slurm}/toy/.slurm/submit.sh\n"
    )
    assert not Path("submitted.txt").exists()
    by_hand = subprocess.run(["sh", "toy/.slurm/submit.sh"], capture_output=True, text=True)
    assert by_hand.returncode == 0, by_hand.stderr
    do_jobs()
    assert Path("toy/total").read_text() == str(SUM)
    again = subprocess.run(["sh", "toy/.slurm/submit.sh"], capture_output=True, text=True)
    assert (again.returncode, again.stderr) == (1, "submitted already: squares 1 sums 2 rest 3 \n")


def test_jobs_that_wait_are_left_alone_and_those_that_are_over_are_followed(slurm, capsys):
    command("submit")
    Path("queue").write_text("7\n2\n")
    capsys.readouterr()
    command("submit")
    assert capsys.readouterr().out == "1 job of this run did not end yet: nothing to submit; see squeue --jobs 2\n"
    Path("queue").write_text("7\n")
    command("submit")
    assert capsys.readouterr().out.startswith(
        "the jobs 1, 2, 3 are over, and not all is done (their output is in logs);"
    )
    do_jobs()
    assert Path("toy/total").read_text() == str(SUM)


def test_what_sbatch_refuses_is_taken_back(slurm):
    Path("refuse").write_text("2")
    with pytest.raises(AutomodelError, match="invalid partition specified: fast"):
        command("submit")
    assert Path("cancelled").read_text() == "1\n"
    assert not Path("toy/.slurm/submitted").exists()


def test_what_is_done_needs_no_jobs(tmp_path):
    job, said = ToyJob(tmp_path), []
    job.begin()
    for stage in job.stages:
        for task in range(job.tasks(stage)):
            job.run_task(stage, task, lambda report: None)
    assert runner(said, tmp_path).run(job, lambda: job)
    assert said == [] and not (tmp_path / ".slurm").exists()
    (tmp_path / "sums.1").unlink()
    assert not runner(said, tmp_path).run(job, lambda: job)
    files = sorted(path.name for path in (tmp_path / ".slurm").iterdir())
    assert files == ["1-sums.sbatch", "2-rest.sbatch", "submit.sh"]  # the first stage is done
    assert lines(tmp_path / ".slurm/1-sums.sbatch")["array"] == "0-2"


def test_what_slurm_is_told(tmp_path):
    job = ToyJob(tmp_path)
    job.begin()
    options = {
        "partition": "cpu",
        "account": "lab",
        "further": ["qos=long", "mem-per-cpu=2G"],
        "setup": ["module load py"],
    }
    runner([], tmp_path, cores=3, **options).run(job, lambda: job)
    told = lines(tmp_path / ".slurm/1-squares.sbatch")
    assert told | {"array": "0-3", "cpus-per-task": "3", "time": "5", "partition": "cpu", "account": "lab"} == told
    assert told | {"qos": "long", "mem-per-cpu": "2G", "job-name": "toy-squares", "nodes": "1", "ntasks": "1"} == told
    text = (tmp_path / ".slurm/1-squares.sbatch").read_text()
    assert text.endswith(
        f"cd {Path.cwd()}\nexport AUTOMODEL_PREPROCESS_STAGE=squares\nmodule load py\nexec automodel 'a b'\n"
    )
    assert "array" not in lines(tmp_path / ".slurm/3-rest.sbatch")


def test_a_value_cannot_become_other_options(tmp_path):
    job = ToyJob(tmp_path)
    job.begin()
    for bad in ({"partition": "a --wrap=x"}, {"setup": ["a\nb"]}, {"further": ["no name=1"]}):
        with pytest.raises(ConfigError):
            runner([], tmp_path, **bad).run(job, lambda: job)


def test_nobody_to_ask_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    job = ToyJob(tmp_path)
    job.begin()
    (tmp_path / ".slurm").mkdir()
    (tmp_path / ".slurm/submitted").write_text("squares 12\nsums 13; rm -rf\nrest 14\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AutomodelError, match="jobs 12, 14 were submitted for this run, and there is no squeue"):
        runner([], tmp_path).run(job, lambda: job)


def test_no_sbatch(tmp_path, monkeypatch):
    job = ToyJob(tmp_path)
    job.begin()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AutomodelError, match="there is no sbatch on this machine"):
        runner([], tmp_path, submit=True).run(job, lambda: job)


def test_elements_are_told_by_the_environment():
    ids = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4"}
    assert element_of({}) is None
    assert element_of(ids) is None
    assert element_of({STAGE_VARIABLE: "rest"}) is None
    assert element_of({STAGE_VARIABLE: "sums", **ids}) == Element("sums", 3, 4)
    for broken in ({}, ids | {"SLURM_ARRAY_TASK_COUNT": "3"}, ids | {"SLURM_ARRAY_TASK_ID": "-1"}):
        with pytest.raises(ConfigError, match="name no element of an array"):
            element_of({STAGE_VARIABLE: "sums", **broken})
