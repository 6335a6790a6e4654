"""Shares and order of mixtures."""

import numpy as np
import pytest

from automodel_cli.corpus.conversations.mixture import order, shares, shuffled

README = {"smoltalk": 460_000, "mmlu_auxiliary": 99_842, "gsm8k": 7_473}


def test_the_mixture_of_the_readme() -> None:
    sizes = list(README.values())
    wanted = shares(sizes, "proportional", epochs=[1, 1, 1], weights=[1, 1, 1])
    assert wanted == sizes and sum(wanted) == 567_315
    assert [round(100 * share / sum(wanted), 1) for share in wanted] == [81.1, 17.6, 1.3]


@pytest.mark.parametrize(
    ("strategy", "options", "expected"),
    [
        ("proportional", {}, [100, 30, 7]),
        ("proportional", {"epochs": [1, 3, 4]}, [100, 90, 28]),
        ("proportional", {"examples": 20}, [15, 4, 1]),
        ("uniform", {}, [46, 46, 45]),
        ("uniform", {"examples": 30}, [10, 10, 10]),
        ("weighted", {"weights": [1, 1, 2]}, [34, 34, 69]),
        ("weighted", {"weights": [0.5, 0.25, 0.25], "examples": 8}, [4, 2, 2]),
        ("weighted", {"weights": [1e308, 1e308, 1e-308], "examples": 8}, [4, 4, 0]),
        ("proportional", {"epochs": [1, 1, 10**16]}, [100, 30, 7 * 10**16]),
    ],
)
def test_shares_by_strategy(strategy, options, expected) -> None:
    options = {"epochs": [1, 1, 1], "weights": [1, 1, 1], **options}
    found = shares([100, 30, 7], strategy, **options)
    assert found == expected
    assert sum(found) == options.get("examples", np.dot([100, 30, 7], options["epochs"]))


def test_every_example_comes_as_often_as_it_should() -> None:
    sizes, wanted = [10, 4, 3], [10, 9, 2]
    found = order(sizes, wanted, seed=3)
    assert len(found) == 21 and found.dtype == np.int64
    times = np.bincount(found, minlength=17)
    assert times[:10].tolist() == [1] * 10
    assert sorted(times[10:14]) == [2, 2, 2, 3]  # two passes and one more
    assert sorted(times[14:]) == [0, 1, 1]
    assert found.tolist() == order(sizes, wanted, seed=3).tolist() != order(sizes, wanted, seed=4).tolist()


def test_passes_differ_and_tasks_are_mixed() -> None:
    found = order([50, 50], [100, 50], seed=0)
    first = found[found < 50]
    assert sorted(first[:50]) == sorted(first[50:]) == list(range(50))
    assert first[:50].tolist() != first[50:].tolist()
    assert 0.5 < (found[:75] < 50).mean() < 0.85  # two thirds


def test_an_order_is_that_of_its_seed_for_ever() -> None:
    assert shuffled(8, 42, "x").tolist() == shuffled(8, 42, "x").tolist()
    assert order([4, 3], [4, 3], seed=42).tolist() == FROZEN


FROZEN = [4, 5, 1, 6, 0, 2, 3]
