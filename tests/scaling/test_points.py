"""Points from CSV files and result rows; what cannot be a point is named with its line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from automodel_cli.errors import DataError
from automodel_cli.scaling.points import make_points, read_points
from automodel_cli.scaling.results import FORMAT, RESULTS_NAME, ResultRow, append_row, read_rows

HEADER = "params,tokens,loss,budget\n"


def csv_file(tmp_path, text: str):
    path = tmp_path / "points.csv"
    path.write_bytes(text.encode())
    return path


def row(**fields):
    known = {"id": "d6", "status": "finished", "params_scaling": 30_000_000, "tokens": 10**9, "val_loss": 3.0}
    return ResultRow(format=FORMAT, **(known | fields))


def test_csv(tmp_path):
    text = "\ufeffparams, tokens, loss, budget, depth\r\n1e8,2e9,3.1,1.2e18,6\r\n\r\n2e8,1e9,3.2,1.2e18,\r\n"
    points = read_points(csv_file(tmp_path, text))
    assert points.params.tolist() == [1e8, 2e8] and points.loss.tolist() == [3.1, 3.2]
    assert points.budgets.tolist() == [1.2e18] and points.group.tolist() == [0, 0]
    assert points.extras["depth"][0] == 6 and np.isnan(points.extras["depth"][1])


def test_compute_without_a_budget_is_6nd(tmp_path):
    points = read_points(csv_file(tmp_path, "params,tokens,loss\n1e8,2e9,3.1\n2e8,1.01e9,3.2\n4e8,1e9,3\n"))
    assert points.flops == pytest.approx([1.2e18, 1.212e18, 2.4e18])
    assert points.group.tolist() == [0, 0, -1]  # whole steps do not make another budget


def test_a_continuum_is_no_budget():
    flops = np.geomspace(1e18, 1e19, 100)
    points = make_points(np.full(100, 1e8), flops / 6e8, np.full(100, 3.0))
    assert len(points.budgets) == 0 and (points.group == -1).all()


def test_outliers_and_conditions(tmp_path):
    text = "params,tokens,loss,outlier,set\n1e8,2e9,3,False,a\n2e8,1e9,oops,True,a\n1e9,1e9,3,False,b\n"
    points = read_points(csv_file(tmp_path, text), where=("set=a",))
    assert len(points) == 1
    assert points.notes == ("1 row left out by --where", "1 row left out: marked as outlier")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            HEADER + "1e8,2e9,3,1e18\n1e8,2e9,oops,1e18\n",
            r"line 3: loss is 'oops', expected a number above 0",
        ),
        (HEADER + "1e8,2e9,nan,1e18\n", "line 2: loss is 'nan'"),
        (HEADER + "1e8,inf,3,1e18\n", "line 2: tokens is 'inf'"),
        (HEADER + "-1e8,2e9,3,1e18\n", "line 2: params is '-1e8'"),
        (HEADER + "1e8,2e9,3\n", "line 2: budget is missing"),
        (HEADER + "1e8,2e9,0,0\n", r"line 2: loss is '0'.* \(and 1 more\)"),
        (HEADER + "1e8,2e9,1e300,1e18\n", r"line 2: loss is '1e300', expected a number above 0 \(and below 1e\+30\)"),
        (HEADER + "1e8,2e9,1e-300,1e18\n", "line 2: loss is '1e-300'"),
        (HEADER + "1_0,2e9,3,1e18\n", "line 2: params is '1_0'"),
        ("params,tokens,loss\n1e8,2e9,3,14\n", "line 2: 4 values in 3 columns"),  # a decimal comma
        ("params,params,tokens,loss\n1,1e8,2e9,3\n", "has the column params twice"),
        ("params;tokens;loss\n1e8;2e9;3\n", "no column params_scaling or params; it has params;tokens;loss"),
        ("params,tokens,loss\n" + "1e8,2e9,3\n" * 10_001, "has 10,001 points, at most 10,000 are fitted"),
        ("params,loss\n1e8,3\n", "has no column tokens; it has params, loss"),
        ("1e8,2e9,3\n1e8,2e9,3\n", "has no column params_scaling or params"),
        (HEADER, "has no rows"),
        ("", "has no rows"),
        ("params,tokens,loss,outlier\n1,1,1,true\n", "no point is left"),
    ],
)
def test_rubbish_is_named(tmp_path, text, message):
    with pytest.raises(DataError, match=message) as error:
        read_points(csv_file(tmp_path, text))
    assert error.value.hint


def test_files_that_are_no_csv(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_points(tmp_path / "none.csv")
    with pytest.raises(DataError, match="does not exist"):
        read_points(tmp_path)  # a folder without results
    path = tmp_path / "points.csv"
    path.write_bytes(b"params,tokens,loss\n\xff\xfe,1,1\n")
    with pytest.raises(DataError, match="UTF-8"):
        read_points(path)


@pytest.mark.parametrize("condition", ["set", "=a", "sett=a"])
def test_conditions_that_name_no_column(tmp_path, condition):
    with pytest.raises(DataError, match="COLUMN=VALUE") as error:
        read_points(csv_file(tmp_path, "params,tokens,loss,set\n1,1,1,a\n"), where=(condition,))
    assert "params, tokens, loss, set" in error.value.hint


# ---------------------------------------------------------------------------------------- result rows


def test_rows_come_back(tmp_path):
    first, second = row(budget=1e18, depth=6, settings={"model.depth": 6}), row(id="d8", status="failed")
    append_row(tmp_path, first)
    append_row(tmp_path, second)
    assert list(read_rows(tmp_path / RESULTS_NAME).items()) == [(1, first), (2, second)]


def test_runs_of_two_recipes_are_told(tmp_path):
    for number, recipe in enumerate(["aaaa", "aaaa", "bbbb"]):
        append_row(tmp_path, row(id=f"d{number}", recipe=recipe))
    (note,) = read_points(tmp_path).notes
    assert "2 recipes" in note and "--where recipe=NAME takes one of aaaa, bbbb" in note
    one = read_points(tmp_path, where=["recipe=aaaa"])
    assert len(one) == 2 and one.notes == ("1 row left out by --where",)


def test_the_last_row_of_an_id_counts(tmp_path):
    append_row(tmp_path, row(status="failed", error="out of memory"))
    append_row(tmp_path, row(val_loss=2.5))
    (found,) = read_rows(tmp_path / RESULTS_NAME).values()
    assert found.status == "finished" and found.val_loss == 2.5


@pytest.mark.parametrize("kept", [1, 30, -2])
def test_a_line_that_was_cut_off_is_no_row(tmp_path, kept):
    path = tmp_path / RESULTS_NAME
    append_row(tmp_path, row())
    append_row(tmp_path, row(id="d8"))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:kept])
    assert [found.id for found in read_rows(path).values()] == ["d6"]
    append_row(tmp_path, row(id="d10"))  # a line of its own
    assert [found.id for found in read_rows(path).values()] == ["d6", "d10"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"format": "automodel-sweep/2", "id": "a", "status": "finished"}', "line 2.*automodel-sweep/1"),
        (
            '{"format": "automodel-sweep/1", "id": "a", "status": "finished", "tokens": "many"}',
            "'tokens'|tokens",
        ),
        (
            '{"format": "automodel-sweep/1", "id": "a", "status": "finished", "val_loss": NaN}',
            "not valid JSON",
        ),
        ("[1, 2]", "line 2"),
        ("hello", "line 2 is not valid JSON"),
    ],
)
def test_damaged_rows_are_named(tmp_path, line, message):
    append_row(tmp_path, row())
    with (tmp_path / RESULTS_NAME).open("a") as handle:
        handle.write(line + "\n")
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / RESULTS_NAME)


def test_points_of_rows(tmp_path):
    counts = {"params_scaling": 30, "params_total": 100, "params_non_embedding": 20}
    append_row(tmp_path, row(**counts, flops_per_token=200.0, tokens=10, val_bpb=1.1, step_s=0.5))
    append_row(tmp_path, row(**counts, id="d8", budget=2100.0, depth=8, tokens=10, val_bpb=1.0))
    append_row(tmp_path, row(id="d10", status="failed"))
    points = read_points(tmp_path)
    assert points.params.tolist() == [30, 30] and points.loss.tolist() == [3, 3]
    assert points.flops.tolist() == [2000, 2100]
    assert points.notes == ("1 run left out: failed",)
    assert points.extras["step_s"][0] == 0.5
    other = read_points(tmp_path / RESULTS_NAME, params="total", metric="bpb", where=("id=d8",))
    assert other.params.tolist() == [100] and other.loss.tolist() == [1.0]
    assert len(read_points(tmp_path, where=("depth=8",))) == 1  # the other row has no depth


def test_rows_without_what_was_asked_for(tmp_path):
    append_row(tmp_path, row())
    append_row(tmp_path, row(id="d8"))
    with pytest.raises(DataError, match="no column val_bpb or bpb"):
        read_points(tmp_path, metric="bpb")


def test_the_file_is_plain_json_lines(tmp_path):
    append_row(tmp_path, row(budget=1e18))
    (line,) = (tmp_path / RESULTS_NAME).read_text().splitlines()
    assert json.loads(line)["budget"] == 1e18 and "depth" not in json.loads(line)
