"""Accuracy, its error, centred scores and means."""

from __future__ import annotations

import math
import statistics

import pytest

from automodel_cli.evaluation.icl.aggregate import accuracy, aggregates, centred, standard_error
from automodel_cli.evaluation.icl.tasks import CORE, GAUNTLET, TASKS


def scored(names, share=0.5):
    return {name: {"accuracy": share, "stderr": 0.1} for name in names}


def test_of_one_task():
    correct = [True, False, True, True]
    assert accuracy(correct) == 0.75
    values = [float(right) for right in correct]
    assert standard_error(correct) == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)))
    assert standard_error([True]) is None
    assert centred(0.25, 0.25) == 0 and centred(1.0, 0.62) == 1 and centred(0.0, 0.5) == -1


def test_core_is_the_mean_of_its_22():
    found = scored(CORE)
    core = aggregates(found, ["core"])["core"]
    expected = [(0.5 - TASKS[name].chance) / (1 - TASKS[name].chance) for name in CORE]
    assert core["score"] == pytest.approx(sum(expected) / 22)
    assert (core["tasks"], core["of"]) == (22, 22)
    errors = [0.1 / (1 - TASKS[name].chance) for name in CORE]
    assert core["stderr"] == pytest.approx(math.sqrt(sum(error**2 for error in errors)) / 22)


def test_what_is_missing_is_not_counted_and_said():
    found = scored(["copa", "jeopardy"])
    core = aggregates(found, ["core"])["core"]
    assert (core["tasks"], core["of"]) == (2, 22)
    assert core["score"] == pytest.approx((0.0 + 0.5) / 2)
    assert aggregates({}, ["core"])["core"]["score"] is None


def test_gauntlet_by_category_with_its_own_baselines():
    means = aggregates(scored(GAUNTLET), ["gauntlet"])
    assert set(means) == {"core", "gauntlet"}
    gauntlet = means["gauntlet"]
    assert (gauntlet["tasks"], gauntlet["of"]) == (53, 53)
    names = [name for name in GAUNTLET if TASKS[name].category == "commonsense reasoning"]
    expected = [centred(0.5, TASKS[name].baseline / 100) for name in names]
    part = gauntlet["categories"]["commonsense reasoning"]
    assert part["score"] == pytest.approx(sum(expected) / len(expected))
    scores = [entry["score"] for entry in gauntlet["categories"].values()]
    assert len(scores) == 6 and gauntlet["score"] == pytest.approx(sum(scores) / 6)
    partly = aggregates(scored(["copa"]), ["gauntlet"])["gauntlet"]
    assert partly["categories"]["safety"] == {"score": None, "stderr": None, "tasks": 0, "of": 4}


def test_names_alone_have_no_mean():
    assert aggregates(scored(["copa"]), ["copa"]) == {}
