"""A job on this machine: order, what is done already, failures and deaths of processes."""

import functools

import pytest
from tests.corpus.jobs.toy_job import ToyJob

from automodel_cli.corpus.jobs.local import LocalRunner
from automodel_cli.errors import AutomodelError, DataError

SUM = sum(n * n for n in range(6))


def run(job, num_workers=0, seen=None):
    runner = LocalRunner(num_workers, (seen if seen is not None else []).append, lambda line: None)
    assert runner.run(job, functools.partial(ToyJob, job.folder, job.count, job.seconds))
    return job.finish()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_all_stages_are_done_in_order(tmp_path, num_workers):
    job, seen = ToyJob(tmp_path), []
    job.begin()
    assert run(job, num_workers, seen) == SUM
    ran = job.ran()
    assert sorted(ran[:6]) == [f"squares {n}" for n in range(6)]
    assert sorted(ran[6:]) == [f"sums {n}" for n in range(3)]
    assert [(p.phase, p.through, p.documents, p.text_bytes) for p in seen if p.through == 1.0] == [
        ("squares", 1.0, 6, 600),
        ("sums", 1.0, 3, 300),
    ]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_is_done_is_not_done_again(tmp_path, num_workers):
    job = ToyJob(tmp_path)
    job.begin()
    for task in (0, 3):
        job.run_task("squares", task, lambda report: None)
    (tmp_path / "log").unlink()
    assert run(job, num_workers) == SUM
    assert sorted(job.ran()[:4]) == [f"squares {n}" for n in (1, 2, 4, 5)]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_passes_is_tried_again(tmp_path, num_workers):
    job = ToyJob(tmp_path)
    job.arm(2, "error", "error")
    assert run(job, num_workers) == SUM
    assert job.ran().count("squares 2") == 3


def test_a_process_that_dies_is_replaced(tmp_path):
    job = ToyJob(tmp_path)
    job.arm(1, "kill", "kill")
    job.arm(4, "kill")
    assert run(job, 2) == SUM
    assert job.ran().count("squares 1") == 3


def test_a_task_that_dies_each_time_is_named(tmp_path):
    job = ToyJob(tmp_path)
    job.arm(1, *["kill"] * 9)
    with pytest.raises(AutomodelError, match=r"task 1 of 6 of squares failed, tried 4 times.*killed by SIGKILL"):
        run(job, 2)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_bad_input_is_not_tried_again(tmp_path, num_workers):
    job = ToyJob(tmp_path)
    job.arm(2, "data", "data")
    with pytest.raises(DataError) as caught:
        run(job, num_workers)
    assert caught.value.message == "toy numbers: task 2 of 6 of squares failed: fault data of task 2"
    assert job.ran().count("squares 2") == 1


def test_a_mistake_of_ours_keeps_its_traceback(tmp_path):
    job = ToyJob(tmp_path)
    job.arm(0, "bug")
    with pytest.raises(RuntimeError, match="KeyError"):
        run(job, 2)
