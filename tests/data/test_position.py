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
    with pytest.raises(DataError, match="expected plan_hash and samples_consumed"):
        check_plan({"position": 3}, PLAN)
