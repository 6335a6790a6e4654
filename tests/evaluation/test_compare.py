"""Two results files side by side: the tests of significance against scipy, what may be compared with what."""

from __future__ import annotations

import math

import pytest

from automodel_cli.errors import DataError
from automodel_cli.evaluation import compare as module
from automodel_cli.evaluation.compare import Results, discordant, mcnemar, two_sided
from automodel_cli.json_files import validated


def compare(a: dict, b: dict) -> module.Comparison:
    return module.compare(*(validated(file, Results, "a file") for file in (a, b)))


def results(correct: str, *, name="piqa", data="xxh3:1", fingerprint="a", **more):
    count = len(correct)
    share = correct.count("1") / count
    entry = {
        "version": "1.x",
        "data": data,
        "shots": 10,
        "count": count,
        "accuracy": share,
        "stderr": math.sqrt(share * (1 - share) / (count - 1)),
        "correct": correct,
    }
    return {
        "format": "automodel-task-results/1",
        "checkpoint": {"path": f"run_{fingerprint}", "fingerprint": fingerprint},
        "settings": {"precision": "fp32", "context": 64},
        "tasks": {name: entry},
        "means": {},
        **more,
    }


def test_discordant_questions():
    assert discordant("110010", "101010") == (1, 1)


@pytest.mark.parametrize(("a", "b"), [(0, 0), (1, 0), (3, 3), (2, 9), (30, 12), (700, 820), (3000, 3300)])
def test_mcnemar_against_scipy(a, b):
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    expected = stats.binomtest(min(a, b), a + b).pvalue if a + b else 1.0
    assert mcnemar(a, b) == pytest.approx(expected, rel=0.02 if a + b > 2000 else 1e-9)


def test_normal_tail():
    assert two_sided(1.959963985) == pytest.approx(0.05, rel=1e-6)
    assert two_sided(-3) == two_sided(3)


def test_the_same_questions_are_compared_in_pairs():
    a, b = "1100" * 25, "1110" * 25
    (row,) = compare(results(a), results(b, fingerprint="b")).rows
    assert (row.a, row.b, row.better) == (0.5, 0.75, True)
    assert row.p == mcnemar(0, 25)
    differences = [int(right) - int(left) for left, right in zip(a, b, strict=True)]
    mean = sum(differences) / 100
    variance = sum((value - mean) ** 2 for value in differences) / 99
    assert row.stderr == pytest.approx(math.sqrt(variance / 100))


def test_other_questions_are_independent_samples():
    found = compare(results("10" * 50), results("1110" * 25, data="xxh3:2", fingerprint="b"))
    (row,) = found.rows
    assert row.stderr == pytest.approx(math.hypot(math.sqrt(0.25 / 99), math.sqrt(0.1875 / 99)))
    assert row.p == two_sided(0.25 / row.stderr)
    assert "not the same questions (data differ): piqa" in found.notes


def test_means_only_over_the_same_number_of_tasks():
    mean = {"score": 0.2, "stderr": 0.01, "tasks": 3, "of": 22}
    a = results("10" * 5, means={"core": mean})
    b = results("10" * 5, means={"core": {**mean, "score": 0.3}}, fingerprint="b")
    (_, core) = compare(a, b).rows
    assert core.name == "core" and core.p == pytest.approx(two_sided(0.1 / math.hypot(0.01, 0.01)))
    b["means"]["core"] = {**mean, "tasks": 4}
    found = compare(a, b)
    assert len(found.rows) == 1 and any("not comparable" in note for note in found.notes)


def test_losses_and_harness():
    a = {
        "format": "automodel-results/1",
        "checkpoint": {"path": "a", "fingerprint": "a"},
        "sets": [{"data": "val.bin", "loss": 3.0}],
    }
    (row,) = compare(a, {**a, "sets": [{"data": "val.bin", "loss": 2.5}]}).rows
    assert (row.name, row.a, row.b, row.p) == ("loss val.bin", 3.0, 2.5, None)
    task = {"metrics": {"acc": {"value": 0.5, "stderr": 0.1}}}
    c = results("10", fingerprint="c") | {"tasks": {}, "harness": {"arc": task}}
    d = {**c, "harness": {"arc": {"metrics": {"acc": {"value": 0.9, "stderr": 0.1}}}}}
    (row,) = compare(c, d).rows
    assert row.name == "arc acc" and row.better and row.p is not None and row.p < 0.01


def test_settings_that_differ_are_told():
    a, b = results("10"), results("10", fingerprint="b")
    b["settings"] = {"precision": "bf16", "context": 64}
    assert "precision: A fp32, B bf16" in compare(a, b).notes
    assert "both are results of the same weights" in compare(a, a).notes


@pytest.mark.parametrize("other", [{}, {"format": "something"}, results("10", name="copa") | {"tasks": {}}])
def test_nothing_to_compare(other):
    with pytest.raises(DataError):
        compare(results("10"), other)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("count", 3),
        ("count", 0),
        ("count", -1),
        ("accuracy", math.nan),
        ("accuracy", None),
        ("accuracy", "0.5"),
        ("stderr", math.inf),
        ("correct", "12"),
        ("correct", [1, 0]),
        ("version", {}),
    ],
)
def test_crafted_entries(key, value):
    crafted = results("10", fingerprint="b")
    crafted["tasks"]["piqa"][key] = value
    with pytest.raises(DataError, match=r"a file: tasks\.piqa"):
        compare(results("10"), crafted)


@pytest.mark.parametrize("section", ["checkpoint", "settings", "tasks", "means", "harness"])
@pytest.mark.parametrize("value", [3, [1], "text", {"x": 3}])
def test_crafted_sections(section, value):
    if section == "settings" and isinstance(value, dict):
        return
    with pytest.raises(DataError, match=f"a file: '?{section}"):
        compare(results("10"), results("10", fingerprint="b") | {section: value})


def test_scores_that_were_not_finite_are_left_out():
    a = results("10") | {"sets": [{"data": "v", "loss": None}], "means": {}}
    found = compare(a, a | {"sets": [{"data": "v", "loss": 2.0}]})
    assert [row.name for row in found.rows] == ["piqa"]
