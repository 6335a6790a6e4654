"""The files of a weighted blend as sources: what they are called, and what a token of each counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from automodel_cli.data.objective import refuse_reserved, shares, token_weights
from automodel_cli.data.position import MOST_SOURCES
from automodel_cli.errors import ConfigError

_KEY = "dataset.domains"


@dataclass(frozen=True)
class Domains:
    """Names of the files in their order; with an ``objective`` also the weight of a token of each, fp32 ``[N]``."""

    names: tuple[str, ...] = ()
    objective: Mapping[str, float] | None = None
    token_weights: np.ndarray | None = None


def domains_of(
    files: Sequence[str], weights: Sequence[float] | None, given: Sequence[Mapping[str, Any]] | None
) -> Domains:
    """The sources of a blend of ``files`` (their names) by ``weights``, as ``given`` or named like the files.

    Files without weights are the pieces of one source, and more than ``MOST_SOURCES`` are not told apart.

    Raises:
        ConfigError: ``given`` is not one for each file, or there are no weights.
    """
    if given is None:
        told_apart = weights is not None and 1 < len(files) <= MOST_SOURCES
        return Domains(_distinct(files)) if told_apart else Domains()
    names = [str(domain.get("name")) for domain in given]
    wanted = [domain.get("objective_weight") for domain in given]
    if weights is None or not len(files) == len(given) == len(set(names)):
        raise ConfigError(
            f"{_KEY} names {len(set(names))} sources, dataset.paths {len(files)} files"
            + ("" if weights is not None else " without weights"),
            "give each file a weight, and a name and objective_weight of its own",
        )
    if not all(isinstance(weight, (int, float)) and not isinstance(weight, bool) and weight >= 0 for weight in wanted):
        raise ConfigError(f"{_KEY} has objective weights {wanted}", "give numbers from 0 on")
    refuse_reserved(names, _KEY)
    objective = shares({name: float(weight or 0) for name, weight in zip(names, wanted, strict=True)}, _KEY)
    read = np.array([weights]) / sum(weights)
    found = token_weights(list(objective.values()), read)[0].astype(np.float32)
    return Domains(tuple(names), objective, found)


def _distinct(files: Sequence[str]) -> tuple[str, ...]:
    """Names of files; those that several have, with their numbers."""
    counts = Counter(files)
    return tuple(name if counts[name] == 1 else f"{name}#{number}" for number, name in enumerate(files, start=1))
