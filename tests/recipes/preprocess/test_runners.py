"""Preprocessing by jobs of Slurm (stand-ins): the same bytes as in one process; options that contradict each other."""

from pathlib import Path

import pytest
from tests.launch.slurm_stand_ins import install, run_jobs
from tests.recipes.preprocess.job_runs import written

from automodel_cli.cli import app
from automodel_cli.corpus.jobs.array_element import STAGE_VARIABLE

NANOGPT = ["preprocess", "nanogpt", "--dataset", "in", "--tokenizer", "byte", "--val-fraction", "0.2", "--output-dir"]
MEGATRON = ["preprocess", "megatron", "--input", "in", "--tokenizer", "byte", "--append-eod", "--output-path"]
SLURM = ["--runner", "slurm", "--slurm-tasks", "2", "--time", "10", "--submit"]


@pytest.fixture(autouse=True)
def text(tmp_path, monkeypatch):
    """Some documents in two files, and Slurm's stand-ins."""
    monkeypatch.chdir(tmp_path)
    install(tmp_path / "bin", monkeypatch)
    Path("in").mkdir()
    for name in ("a", "b"):
        lines = [f'{{"text": "document {number} of {name}"}}\n' for number in range(40)]
        Path("in", f"{name}.jsonl").write_text("".join(lines))


@pytest.mark.parametrize("command", [NANOGPT, MEGATRON], ids=["nanogpt", "megatron"])
def test_jobs_of_slurm_make_the_bytes_of_one_process(command, capsys):
    assert app.run([*command, "one"]) == 0
    assert app.run([*command, "many", *SLURM]) == 0
    said = capsys.readouterr().out.splitlines()
    stages = ("tokenize", "arrange", "assemble", "rest")
    expected = [f"submitted {stage} as job {number}" for number, stage in enumerate(stages, 1)]
    assert [line for line in said if line.startswith("submitted")] == expected
    run_jobs(lost="tokenize.0 assemble.1", call=app.run)
    assert written(Path("many")) == written(Path("one"))
    assert app.run([*command, "many", *SLURM]) == 0
    assert "is already there: nothing to do" in capsys.readouterr().out
    assert len(Path("submitted.txt").read_text().splitlines()) == 4


def test_jobs_write_to_a_url_by_way_of_a_folder_that_all_see(object_server, capsys):
    url = object_server.bucket("of-jobs")
    assert app.run([*NANOGPT, f"{url}/many", *SLURM]) == 2
    assert "name one with --temp-dir" in capsys.readouterr().err
    assert object_server.objects("of-jobs") == {} and not Path("submitted.txt").exists()
    assert app.run([*NANOGPT, f"{url}/many", *SLURM, "--temp-dir", "seen"]) == 0
    assert "#SBATCH --job-name=many-tokenize" in Path("jobs/1").read_text()
    run_jobs(lost="tokenize.0 assemble.1", call=app.run)
    assert app.run([*NANOGPT, "one"]) == 0
    there = {name.removeprefix("many/"): data for name, data in object_server.objects("of-jobs").items()}
    one = {path.relative_to("one").as_posix(): path.read_bytes() for path in Path("one").rglob("*") if path.is_file()}
    of_data = [name for name in one if name.endswith((".bin", ".idx"))]
    assert len(of_data) > 2 and [there[name] for name in of_data] == [one[name] for name in of_data]
    assert set(there) == {name for name in one if not name.startswith(".")}


def test_overwrite_begins_once_and_not_in_every_job(capsys):
    assert app.run([*NANOGPT, "many"]) == 0
    before = written(Path("many"))
    assert app.run([*NANOGPT, "many", *SLURM, "--overwrite"]) == 0
    assert not Path("many/manifest.json").exists()
    run_jobs(call=app.run)
    assert written(Path("many")) == before
    assert len(Path("submitted.txt").read_text().splitlines()) == 4


def test_a_job_of_another_plan_is_refused(capsys):
    assert app.run([*NANOGPT, "many", *SLURM]) == 0
    assert app.run([*NANOGPT, "many", *SLURM, "--seed", "7"]) == 2
    assert "seed 42 -> 7" in capsys.readouterr().err


def test_a_share_needs_slurms_variables(monkeypatch, capsys):
    monkeypatch.setenv(STAGE_VARIABLE, "tokenize")
    assert app.run([*NANOGPT, "many", *SLURM]) == 2
    assert f"unset {STAGE_VARIABLE}" in capsys.readouterr().err
    assert app.run([*NANOGPT, "one"]) == 0  # of another runner it says nothing


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--submit"], "--submit is an option of `runner: slurm`, not of local"),
        (["--runner", "ray", "--slurm-tasks", "3"], "--slurm-tasks is an option of `runner: slurm`, not of ray"),
        (["--ray-address", "local"], "--ray-address is an option of `runner: ray`, not of local"),
        (["--runner", "ray", "--ray-address", "ray://x:1"], "--ray-address: expected auto, local or HOST:PORT"),
        (["--runner", "slurm", "--time", "soon"], "--time: expected minutes, HH:MM:SS or D-HH:MM:SS"),
        (["--runner", "slurm", "--sbatch", "no name=1"], "--sbatch: expected NAME=VALUE"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, said, capsys):
    assert app.run([*NANOGPT, "out", *options]) == 2
    assert said in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_disk_that_is_too_small_is_refused_before_anything_is_submitted(monkeypatch, capsys):
    monkeypatch.setattr("automodel_cli.corpus.build.disk_space.free_bytes", lambda folder: 100)
    assert app.run([*NANOGPT, "many", *SLURM]) == 1
    assert "use another --output-dir" in capsys.readouterr().err
    assert not Path("submitted.txt").exists()
