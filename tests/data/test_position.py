"""Saved positions: equal plans fit, others are refused with the difference."""

from __future__ import annotations

import pytest

from automodel_cli.data.position import check_plan, plan_hash
from automodel_cli.errors import DataError

PLAN = {"kind": "nanogpt", "data": "xxh3:00", "seq_len": 1024, "seed": 7}


def _state(plan: dict[str, object]) -> dict[str, object]:
    return {"plan_hash": plan_hash(plan), "samples_consumed": 5, "plan": plan}


def test_key_order_does_not_matter() -> None:
    assert plan_hash(PLAN) == plan_hash(dict(reversed(PLAN.items())))
    check_plan(_state(dict(reversed(PLAN.items()))), PLAN)


def test_differences_are_listed_and_nothing_else() -> None:
    with pytest.raises(DataError) as caught:
        check_plan(_state({**PLAN, "seed": 8, "seq_len": 512}), PLAN)
    assert "seed 8 in the checkpoint, 7 now; seq_len 512 in the checkpoint, 1024 now" in caught.value.message
    assert "xxh3:00" not in caught.value.message
    with pytest.raises(DataError, match="extra 1 in the checkpoint, None now"):
        check_plan(_state({**PLAN, "extra": 1}), PLAN)


def test_a_state_without_its_plan_is_judged_by_its_hash() -> None:
    check_plan({"plan_hash": plan_hash(PLAN), "samples_consumed": 5}, PLAN)
    with pytest.raises(DataError, match=r"plan xxh3:\w+ in the checkpoint"):
        check_plan({"plan_hash": plan_hash({}), "samples_consumed": 5}, PLAN)


def test_damaged_state() -> None:
    with pytest.raises(DataError, match="'plan_hash' is missing"):
        check_plan({"position": 3}, PLAN)


@pytest.mark.parametrize(
    "change",
    [
        {"samples_consumed": value}
        for value in (-1, 2**60, 10**400, 1.5, "7", True, None, [], float("nan"), float("inf"))
    ]
    + [{"plan_hash": value} for value in (7, None, [])]
    + [{"stream": value} for value in (7, [], {}, {"epoch": -1, "dataset": {}, "dp_rank": 0, "dp_world": 1})],
)
def test_values_that_cannot_be_are_named(change: dict[str, object]) -> None:
    with pytest.raises(DataError, match=f"the saved position of the data: '?{next(iter(change))}") as caught:
        check_plan({**_state(PLAN), **change}, PLAN)
    assert "--fresh" in caught.value.hint


@pytest.mark.parametrize("state", [[], None, 7, "x"])
def test_a_state_that_is_no_mapping(state: object) -> None:
    with pytest.raises(DataError, match="the saved position of the data"):
        check_plan(state, PLAN)  # type: ignore[arg-type]
