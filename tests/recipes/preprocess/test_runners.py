"""Preprocessing by jobs of Slurm (stand-ins): the same bytes as in one process; options that contradict each other."""

import os
import shutil
from pathlib import Path

import pytest
from tests.launch.slurm_stand_ins import install, run_jobs
from tests.recipes.preprocess.job_runs import written

from automodel_cli.cli import app
from automodel_cli.corpus.jobs.array_element import STAGE_VARIABLE

NANOGPT = ["preprocess", "nanogpt", "--dataset", "in", "--tokenizer", "byte", "--val-fraction", "0.2", "--output-dir"]
MEGATRON = ["preprocess", "megatron", "--input", "in", "--tokenizer", "byte", "--append-eod", "--output-path"]
SHUFFLE = ["preprocess", "shuffle", "--dataset", "in", "--output-dir"]
DEDUP = ["preprocess", "dedup", "in", "--near", "0.8", "--output-dir"]
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


COMMANDS = {
    "nanogpt": (NANOGPT, "tokenize arrange assemble"),
    "megatron": (MEGATRON, "tokenize arrange assemble"),
    "shuffle": (SHUFFLE, "scatter join divide assemble"),
    "dedup": (DEDUP, "read exact bands near clusters write"),
    "nanogpt --shuffle": ([*NANOGPT[:-1], "--shuffle", NANOGPT[-1]], "scatter tokenize arrange assemble"),
}


@pytest.mark.parametrize(("command", "stages"), COMMANDS.values(), ids=COMMANDS)
def test_jobs_of_slurm_make_the_bytes_of_one_process(command, stages, capsys):
    assert app.run([*command, "one"]) == 0
    assert app.run([*command, "many", *SLURM]) == 0
    said = capsys.readouterr().out.splitlines()
    names = [*stages.split(), "rest"]
    expected = [f"submitted {stage} as job {number}" for number, stage in enumerate(names, 1)]
    assert [line for line in said if line.startswith("submitted")] == expected
    run_jobs(lost=f"{names[0]}.0 {names[-2]}.1", call=app.run)
    assert written(Path("many")) == written(Path("one"))
    assert app.run([*command, "many", *SLURM]) == 0
    assert "is already there: nothing to do" in capsys.readouterr().out
    assert len(Path("submitted.txt").read_text().splitlines()) == len(names)


@pytest.mark.parametrize("command", [NANOGPT, SHUFFLE, DEDUP], ids=["nanogpt", "shuffle", "dedup"])
def test_jobs_that_come_when_others_finished_leave_all_as_it_is(command, capsys):
    """What was submitted waits, and somebody starts over on this machine meanwhile."""
    assert app.run([*command, "many", *SLURM]) == 0
    assert app.run([*command, "many", "--overwrite"]) == 0
    before = {path: path.stat().st_mtime_ns for path in Path("many").rglob("*")}
    run_jobs(call=app.run)
    assert {path: path.stat().st_mtime_ns for path in Path("many").rglob("*")} == before


@pytest.mark.parametrize("command", [NANOGPT, SHUFFLE, DEDUP], ids=["nanogpt", "shuffle", "dedup"])
def test_a_share_never_begins_a_run(command, capsys):
    assert app.run([*command, "many", *SLURM]) == 0
    shutil.rmtree("many")
    codes = []
    run_jobs(lost="rest.", call=lambda words: codes.append(app.run(words)))
    assert codes and not any(path.is_file() for path in Path("many").rglob("*")), list(Path("many").rglob("*"))
    assert set(codes) == {1} and "no plan" in capsys.readouterr().err


def test_overwrite_does_not_take_the_folder_from_jobs_that_wait(capsys):
    assert app.run([*NANOGPT, "many", *SLURM]) == 0
    before = written(Path("many"))
    Path("queue").write_text("3\n4\n")
    assert app.run([*NANOGPT, "many", *SLURM, "--overwrite"]) == 1
    assert "2 jobs of the run that is to be overwritten did not end yet" in (said := capsys.readouterr().err)
    assert "scancel 3 4" in said
    assert written(Path("many")) == before


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


@pytest.mark.parametrize(
    ("command", "job"),
    [(SHUFFLE, "shuffle.shuffle_job.ShuffleJob"), (DEDUP, "dedup.job.DedupJob")],
    ids=["shuffle", "dedup"],
)
def test_jobs_that_keep_no_journal_write_to_a_url(command, job, object_server):
    """The last job finds all that the others did in the folder that all see, and does nothing again."""

    def call(words):
        with pytest.MonkeyPatch.context() as patch:
            if os.environ[STAGE_VARIABLE] == "rest":
                patch.setattr(f"automodel_cli.corpus.{job}.run_task", lambda *_: pytest.fail("done again"))
            assert app.run(words) == 0

    url = object_server.bucket("of-jobs")
    assert app.run([*command, f"{url}/many", *SLURM, "--temp-dir", "seen"]) == 0
    run_jobs(call=call)
    assert app.run([*command, "one"]) == 0
    one = {f"many/{path.name}": path.read_bytes() for path in Path("one").iterdir() if path.name[0] != "."}
    assert object_server.objects("of-jobs") == one and len(one) > 1


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
