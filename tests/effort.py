"""How much a run of the suite tries: what a push needs, or with ``AUTOMODEL_TESTS=nightly`` all that there is.

``make torture`` and ``make conformance`` try all. In a push the same examples come each time.
"""

import os
from collections.abc import Collection, Mapping
from typing import TypeVar

import hypothesis

Case = TypeVar("Case")

NIGHTLY = os.environ.get("AUTOMODEL_TESTS") == "nightly"

# Of torch.compile: in a push what it traces runs op by op; code for it takes a C++ compiler half a minute.
BACKEND = "inductor" if NIGHTLY else "aot_eager"


def examples(number: int) -> hypothesis.settings:
    """Settings of a property: so many examples, in a push two fifths of them."""
    tried = number if NIGHTLY else max(20, number * 2 // 5)
    return hypothesis.settings(
        max_examples=tried,
        deadline=None,
        derandomize=not NIGHTLY,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],  # a busy machine is no failure
    )


def without_contained(cases: Mapping[str, Case], contained: Collection[str]) -> dict[str, Case]:
    """Named cases; in a push without those that others contain (``hsdp`` and ``dp, tp`` are in ``hsdp, tp``)."""
    assert set(contained) <= set(cases)
    return {name: case for name, case in cases.items() if NIGHTLY or name not in contained}


def in_a_push(few: int, *, of: int) -> int:
    """``few`` cases in a push, else all ``of`` them."""
    return of if NIGHTLY else few
