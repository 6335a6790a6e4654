"""From right answers to scores: accuracy with its error, centred scores, CORE, averages of the Gauntlet.

    centred     (accuracy - chance) / (1 - chance): 0 is guessing, 1 is perfect
    CORE        mean of the centred scores of its 22 tasks
    Gauntlet    mean of the centred scores of a category's tasks, and the mean of these categories

A task without data takes part in no mean; each mean says over how many of how many tasks it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from automodel_cli.evaluation.icl.tasks import CATEGORIES, CORE, GAUNTLET, TASKS


def accuracy(correct: Sequence[bool]) -> float:
    """Share of right answers."""
    return sum(correct) / len(correct)


def standard_error(correct: Sequence[bool]) -> float | None:
    """Of the accuracy, items being a sample of all that could have been asked; None for a single item."""
    count, share = len(correct), accuracy(correct)
    return math.sqrt(share * (1 - share) / (count - 1)) if count > 1 else None


def centred(share: float, chance: float) -> float:
    """Accuracy on the scale where guessing is 0."""
    return (share - chance) / (1 - chance)


def aggregates(found: Mapping[str, Mapping[str, Any]], asked: Sequence[str]) -> dict[str, Any]:
    """The means of the groups among ``asked``, from each scored task's ``accuracy`` and ``stderr``.

    CORE is part of the Gauntlet, so who asks for this gets both.
    """
    means: dict[str, Any] = {}
    if "core" in asked or "gauntlet" in asked:
        means["core"] = mean_centred(found, CORE, {name: TASKS[name].chance for name in CORE})
    if "gauntlet" in asked:
        means["gauntlet"] = _gauntlet(found)
    return means


def _gauntlet(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    chances = {name: TASKS[name].baseline / 100 for name in GAUNTLET}
    categories = {
        category: mean_centred(found, [name for name in GAUNTLET if TASKS[name].category == category], chances)
        for category in CATEGORIES
    }
    whole = mean_centred(found, GAUNTLET, chances)
    scores = [mean["score"] for mean in categories.values() if mean["score"] is not None]
    return {
        "score": sum(scores) / len(scores) if scores else None,
        "categories": categories,
        "tasks": whole["tasks"],
        "of": whole["of"],
        "mean_of_tasks": whole["score"],
    }


def mean_centred(
    found: Mapping[str, Mapping[str, Any]], names: Sequence[str], chances: Mapping[str, float]
) -> dict[str, Any]:
    """Mean centred score of those of ``names`` that were scored, its standard error, and over how many it is."""
    there = [name for name in names if name in found]
    scores = [centred(found[name]["accuracy"], chances[name]) for name in there]
    errors = [(found[name]["stderr"] or 0.0) / (1 - chances[name]) for name in there]
    return {
        "score": sum(scores) / len(scores) if scores else None,
        "stderr": math.sqrt(sum(error**2 for error in errors)) / len(errors) if errors else None,
        "tasks": len(there),
        "of": len(names),
    }
