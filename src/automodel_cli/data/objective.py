"""What a model is trained for where that is not what it reads: weights of tokens by their source.

Sources are read by shares q and count in the objective by shares p, both adding up to 1. A token of source s weighs
p[s] / q[s] in the gradient (importance weights), so that the gradient's mean over the tokens that are read is, in the
mean, that over tokens drawn by p. The weights' mean over tokens is 1.

Shapes: N sources, K pieces of the order in which shares are fixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from automodel_cli.errors import ConfigError

WEIGHTED = "weighted"
"""The name of the mean of the sources' losses by the objective's shares; no source may be called so."""


def shares(objective_weights: Mapping[str, float], key: str) -> dict[str, float]:
    """The weights, which stand at ``key`` of a configuration, as shares of 1.

    Raises:
        ConfigError: they add up to nothing.
    """
    total = sum(objective_weights.values())
    if not total > 0:
        raise ConfigError(f"{key}: the objective weights add up to {total:g}", "give at least one source more than 0")
    return {name: weight / total for name, weight in objective_weights.items()}


def token_weights(objective: Sequence[float], read: np.ndarray) -> np.ndarray:
    """The weight of a token of each source in each piece, fp64 ``[K, N]``; 0 for a source that the piece does not read.

    Where a piece leaves sources out, the objective's shares of the others are raised to add up to 1, so that the mean
    weight is 1 in every piece.

    Args:
        objective: share of each source in the objective, ``[N]``.
        read: share of each source in each piece, ``[K, N]``.

    Raises:
        ConfigError: a piece reads only sources without a share in the objective.
    """
    wanted = np.where(read > 0, np.asarray(objective, dtype=np.float64), 0.0)
    totals = wanted.sum(1, keepdims=True)
    if not (totals > 0).all():
        raise ConfigError(
            "a stage of the mixture reads only sources whose objective_weight is 0",
            "give one of them more, or leave that stage out",
        )
    return np.divide(wanted / totals, read, out=np.zeros_like(wanted), where=read > 0)


def weighted_loss(
    objective: Mapping[str, float] | None, losses: Mapping[str, float], *, all_of_them: bool = False
) -> float | None:
    """The mean of ``losses`` by the objective's shares of those that are there; None where there is nothing to mean.

    ``all_of_them``: None also where the loss of a source is missing.
    """
    wanted = {name: share for name, share in (objective or {}).items() if share > 0}
    known = [(share, losses[name]) for name, share in wanted.items() if name in losses]
    if not known or (all_of_them and len(known) < len(wanted)):
        return None
    return sum(share * loss for share, loss in known) / sum(share for share, _ in known)


def losses_by_source(
    names: Sequence[str], sums: Sequence[Sequence[float]] | None, objective: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Fields of a record for ``sums``, nll and label tokens of each source: only of sources that have tokens.

    With an ``objective`` also the mean of their losses by it.
    """
    if sums is None:
        return {}
    found = {name: (nll / tokens, int(tokens)) for name, nll, tokens in zip(names, *sums, strict=True) if tokens > 0}
    losses = {name: loss for name, (loss, _) in found.items()}
    weighted = weighted_loss(objective, losses)
    return {
        "loss_by_source": losses,
        "tokens_by_source": {name: tokens for name, (_, tokens) in found.items()},
        **({} if weighted is None else {WEIGHTED: weighted}),
    }


def refuse_reserved(names: Iterable[str], key: str) -> None:
    """Refuse a source that is called as the mean is.

    Raises:
        ConfigError: one is.
    """
    if WEIGHTED in names:
        raise ConfigError(f"{key}: {WEIGHTED!r} is the name of the mean over sources", "give it another name")
