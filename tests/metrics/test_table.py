"""Columns that grow record by record are those of the whole list."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tests.effort import examples

from automodel_cli.metrics.read import to_columns
from automodel_cli.metrics.table import Table, seconds

whole = st.integers(-(10**400), 10**400)
values = st.one_of(st.none(), st.booleans(), whole, st.floats(), st.text(max_size=3), st.lists(st.none()))
record = st.fixed_dictionaries({"step": st.integers(0, 30)}, optional=dict.fromkeys("abc", values))
records = st.lists(record, max_size=30)


@examples(150)
@given(records, st.integers(1, 7))
def test_as_the_reader_of_whole_files(found, batch):
    table, in_order = Table(), True
    for first in range(0, len(found), batch):
        in_order &= table.append(found[first : first + batch])
    expected = to_columns(found)
    assert table.rows == len(expected.get("step", ()))
    assert in_order == all(a["step"] < b["step"] for a, b in itertools.pairwise(found))
    for name, column in expected.items():
        got = table.step if name == "step" else table.column(name)
        np.testing.assert_array_equal(got, column)
    assert all(np.isnan(table.column(name)).all() for name in set(table.names) - set(expected))


def test_many_rows_and_late_columns():
    table = Table()
    for step in range(3000):
        table.append([{"step": step, "loss": step / 2, **({"late": 1.0} if step >= 2000 else {})}])
    np.testing.assert_array_equal(table.column("loss"), np.arange(3000) / 2)
    assert np.isnan(table.column("late")[:2000]).all() and (table.column("late")[2000:] == 1).all()


def test_numbers_by_name_are_columns():
    table = Table()
    first = {"step": 1, "by": {"books": 3, "web": None, "note": "x"}}
    table.append([first, {"step": 2, "by": {"books": 2.5, "web": 1}}])
    table.append([{"step": 3, "by": "no mapping"}, {"step": 4, "by": {"books": math.nan}}])
    np.testing.assert_array_equal(table.column("by/books"), [3, 2.5, np.nan, np.nan])
    np.testing.assert_array_equal(table.column("by/web"), [np.nan, 1, np.nan, np.nan])
    assert set(table.names) == {"by/books", "by/web"}


def test_a_record_with_too_much_in_it_is_bounded():
    table, many = Table(), {f"k{number}": 1.0 for number in range(2000)}
    table.append([{"step": 1, **many, "x" * 1000: 1.0, "inner": many}])
    assert len(table.names) <= 400


def test_times():
    assert seconds("1970-01-01T00:00:01.500Z") == 1.5
    for odd in (None, "", "yesterday", 5, ["x"], "9" * 50):
        assert math.isnan(seconds(odd))


def test_many_names_cost_no_more_than_few():
    table = Table()
    table.append([{"step": step, f"key {step}": 1.0} for step in range(20_000)])  # looked up in each: minutes
    assert table.rows == 20_000 and 100 < len(table.names) <= 400
    nested = Table()
    nested.append([{"step": 1, **{f"a{i}": {f"b{j}": 1.0 for j in range(500)} for i in range(300)}}])
    assert len(nested.names) <= 400


def test_a_table_of_few_rows_is_small():
    table = Table()
    table.append([{"step": 1, "loss": 1.0}])
    assert table.column("loss").base.nbytes <= 1024
