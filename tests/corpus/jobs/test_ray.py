"""Tasks on Ray: what a worker refuses, how much is handed out, and a real cluster of two machines that loses one."""

import functools
import importlib.util
import os
import pickle
import socket
from pathlib import Path

import pytest
from tests.corpus.jobs.toy_job import ToyJob
from tests.recipes.preprocess.small_runs import content

from automodel_cli import __version__
from automodel_cli.cli import app
from automodel_cli.corpus.documents import parts
from automodel_cli.corpus.jobs import ray_runner, ray_worker
from automodel_cli.corpus.jobs.job import TaskReport
from automodel_cli.errors import AutomodelError, ConfigError

ROOT = Path(__file__).parents[3]
GIB = 1 << 30


class Board:
    """A board whose actor is this process."""

    def __init__(self):
        self.board, self.put = ray_worker.ReportBoard(), self

    def remote(self, task, report):
        self.board.put(task, report)


def settings(place: Path, **changed) -> ray_worker.Settings:
    opener = pickle.dumps(functools.partial(ToyJob, place / "job"))
    given = {"run": os.urandom(8), "opener": opener, "folder": str(place), "version": __version__}
    return ray_worker.Settings(**given | changed)


def test_a_worker_opens_the_job_once_and_answers_with_the_last_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ToyJob(tmp_path / "job").begin()
    known = settings(tmp_path)
    assert ray_worker.run_task(known, "squares", 3, Board()) == TaskReport(1, 10, 100)
    assert (tmp_path / "job/squares.3").read_text() == "9"
    (job,) = ray_worker._opened.values()
    ray_worker.run_task(known, "squares", 4, Board())
    assert list(ray_worker._opened.values()) == [job]


def test_a_worker_hands_errors_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = ToyJob(tmp_path / "job")
    job.arm(1, "data")
    answer = ray_worker.run_task(settings(tmp_path), "squares", 1, Board())
    assert isinstance(answer, AutomodelError) and "fault data of task 1" in answer.message


def test_a_worker_refuses_another_version_or_another_place(tmp_path):
    answer = ray_worker.run_task(settings(tmp_path, version="0.0.1"), "squares", 0, Board())
    assert isinstance(answer, ConfigError)
    assert f"has automodel-cli {__version__}, the command was given with 0.0.1" in answer.message
    answer = ray_worker.run_task(settings(tmp_path, folder=str(tmp_path / "none")), "squares", 0, Board())
    assert isinstance(answer, ConfigError) and f"has no folder {tmp_path / 'none'}" in answer.message


def test_reports_are_taken_once():
    board = ray_worker.ReportBoard()
    board.put(1, TaskReport(1))
    board.put(1, TaskReport(2))
    assert board.take() == {1: TaskReport(2)}
    assert board.take() == {}


def test_no_more_tasks_than_cores_and_memory_allow():
    assert ray_runner.room_on([{"CPU": 4.0, "memory": 64.0 * GIB}]) == (4, GIB)
    assert ray_runner.room_on([{"CPU": 64.0, "memory": 8.5 * GIB}, {"CPU": 2.0, "memory": 64.0 * GIB}]) == (10, GIB)
    assert ray_runner.room_on([{"CPU": 2.0, "memory": 0.5 * GIB}]) == (2, 0)  # else they would wait for ever
    assert ray_runner.room_on([{"memory": 64.0 * GIB}]) == (0, 0)
    assert ray_runner.room_on([]) == (0, 0)


def test_without_ray_the_command_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("some text\n")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    line = ["preprocess", "nanogpt", "--dataset", "a.txt", "--tokenizer", "byte", "--runner", "ray"]
    assert app.run(line) == 2
    assert "pip install 'automodel-cli[ray]'" in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["a.txt"]


def test_no_cluster_at_an_address_is_an_error_at_once():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(AutomodelError, match=rf"no Ray cluster answers at {address}: .*refused"):
            ray_runner._join(NoRay(), address)


class NoRay:
    def shutdown(self):
        pass


def test_a_ray_of_our_own_makes_the_bytes_of_one_process(tmp_path, monkeypatch, capfd):
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT)]))
    monkeypatch.setattr(parts, "PART_BYTES", 500)
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("some text, and a little more of it\n" * 50)
    line = ["preprocess", "nanogpt", "--dataset", "a.txt", "--document", "line", "--tokenizer", "byte"]
    assert app.run([*line, "--output-dir", "one"]) == 0
    capfd.readouterr()
    own = ["--runner", "ray", "--ray-address", "local", "--num-workers", "1"]
    assert app.run([*line, "--output-dir", "many", *own]) == 0
    out = capfd.readouterr()
    assert "(raylet)" not in out.out + out.err and "1 machine, 1 task" in out.out
    assert "plan: 4 tasks of one core each, 1 at a time" in out.out
    assert content(Path("many")) == content(Path("one"))


@pytest.mark.torture
def test_two_machines_one_of_which_is_lost(tmp_path, monkeypatch, capfd):
    """A job of a few numbers while a machine goes, then a corpus of the same bytes as without Ray."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    for name, value in (ray_runner._QUIET | ray_runner._LOOPBACK).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT)]))
    monkeypatch.chdir(tmp_path)
    machine = {"num_cpus": 1, "object_store_memory": 80 << 20}
    try:
        cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=machine | {"include_dashboard": False})
    except Exception as error:
        pytest.skip(f"Ray does not start here: {error}")
    try:
        second = cluster.add_node(**machine)
        job, said, lost = ToyJob(tmp_path / "job", 8, 0.5), [], []
        job.begin()

        def progress(event):
            if not lost:
                lost.append(cluster.remove_node(second, allow_graceful=False))

        runner = ray_runner.RayRunner(cluster.address, None, progress, said.append)
        assert runner.run(job, functools.partial(ToyJob, job.folder, 8, 0.5))
        assert job.finish() == sum(n * n for n in range(8)) and lost
        assert said[0].endswith("2 machines, 2 tasks at a time")

        cluster.wait_for_nodes()  # Ray takes some seconds to count the lost one out
        Path("a.txt").write_text("some text, and a little more of it\n" * 50)
        line = ["preprocess", "nanogpt", "--dataset", "a.txt", "--document", "line", "--tokenizer", "byte"]
        assert app.run([*line, "--output-dir", "one"]) == 0
        capfd.readouterr()
        assert app.run([*line, "--output-dir", "many", "--runner", "ray", "--ray-address", cluster.address]) == 0
        out = capfd.readouterr()
        assert "(raylet)" not in out.out + out.err and "1 machine, 1 task" in out.out
        assert content(Path("many")) == content(Path("one"))
    finally:
        cluster.shutdown()
