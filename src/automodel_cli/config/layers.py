"""One configuration laid over another, key by key, before anything is checked.

A section that names its ``_target_`` takes the place of the one below it; any other mapping is gone into; values and
lists replace what is there. What says where a run ends replaces whatever said so below.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from automodel_cli.config.schema.training_sections import HORIZONS
from automodel_cli.config.targets.target import TARGET_KEY, LocatedDict, LocatedList, Written


def lay_over(below: LocatedDict, above: LocatedDict, prefix: str = "") -> None:
    """Change ``below`` to what it is with ``above`` laid over it."""
    if prefix == "step_scheduler.":
        for name in replaced_horizons({name for name in HORIZONS if above.get(name) is not None}):
            below.remove(name)
    for key, value in above.items():
        under, path = below.get(key), f"{prefix}{key}"
        if isinstance(under, LocatedDict) and isinstance(value, LocatedDict) and TARGET_KEY not in value:
            lay_over(under, value, f"{path}.")
        else:
            below.put(key, copy.deepcopy(value), above.written.get(key, Written(above.where)))


def replaced_horizons(given: set[str]) -> list[str]:
    """What ends a run by an earlier layer, where a later one says what does; max_steps and num_epochs go together."""
    kept = given | ({"max_steps", "num_epochs"} if given & {"max_steps", "num_epochs"} else set())
    return [name for name in HORIZONS if given and name not in kept]


def located(value: Any, where: str) -> Any:
    """Plain values as a file's: every mapping and list knows ``where`` it is from."""
    if isinstance(value, Mapping):
        items = {key: located(item, where) for key, item in value.items()}
        return LocatedDict(items, where=where, written={key: Written(where) for key in items})
    if isinstance(value, (list, tuple)):
        return LocatedList([located(item, where) for item in value], where=where)
    return value
