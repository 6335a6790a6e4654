"""Which runs there are, and what they are called."""

from __future__ import annotations

from tests.serving.watch.conftest import write_run

from automodel_cli.serving.watch.runs import RunSet


def names(*folders):
    runs = RunSet(folders)
    runs.find()
    return {run.name: run.folder for run in runs}


def test_runs_in_and_below_folders(tmp_path):
    outer = write_run(tmp_path / "runs" / "outer")
    write_run(outer / "inner")
    write_run(tmp_path / "else" / "outer")
    assert names(tmp_path / "runs") == {"outer": outer, "outer/inner": outer / "inner"}
    assert list(names(outer)) == ["outer", "inner"]
    both = names(tmp_path / "runs", tmp_path / "else")
    assert list(both) == ["outer", "outer/inner", str(tmp_path / "else" / "outer")]
    assert list(names(outer, outer)) == ["outer", "inner"]
    assert names(tmp_path / "nothing") == {}


def test_links_are_not_followed(tmp_path):
    write_run(tmp_path / "outside" / "a")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "outside" / "a")
    assert names(tmp_path / "runs") == {}


def test_there_may_be_only_so_many(tmp_path, monkeypatch):
    monkeypatch.setattr("automodel_cli.serving.watch.runs.MOST_RUNS", 3)
    for number in range(5):
        write_run(tmp_path / str(number), range(1, 2))
    runs = RunSet([tmp_path])
    assert len(runs.find()) == len(runs) == 3 and runs.left_out == 2
    assert runs.find() == [] and runs.left_out == 2


def test_curves_and_rows_of_a_run(tmp_path):
    runs = RunSet([write_run(tmp_path / "a")])
    (run,) = runs.find()
    run.read_all()
    answer = run.curves("tokens", None, None, 100, log_x=False)
    assert answer["parts"]["train"]["rows"] == 20 and answer["parts"]["train"]["x"] == [100, 2000]
    assert answer["parts"]["val/default"]["curves"]["loss"] == [[1000, 2000], [0.6, 0.3]]
    rows = run.rows("train", 18, 20)
    assert rows["x"]["tokens"] == [1900, 2000] and rows["columns"]["loss"] == [0.263158, 0.25]
    assert run.axes(100)["tokens"] == [[float(n) for n in range(1, 21)], [100.0 * n for n in range(1, 21)]]
    assert run.overview()["parts"]["train"]["records"] == 20 and run.details()["events"] == []
