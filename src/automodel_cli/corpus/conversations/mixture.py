"""How examples of several tasks are mixed: pure integers, the same for a seed whatever the machine.

With sizes n_k, epochs e_k and N = sum of n_k e_k (or ``examples``, where that is given):

| strategy     | examples of task k                                                   |
|--------------|----------------------------------------------------------------------|
| proportional | n_k e_k (with ``examples``: that share of them)                      |
| uniform      | N / K                                                                |
| weighted     | N w_k / sum of w                                                     |

A task that is to give more examples than it has gives all of them again, in another order; then all are shuffled.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import numpy as np

from automodel_cli.corpus.shuffle.splitting import document_hash

Strategy = Literal["proportional", "uniform", "weighted"]


def shares(
    sizes: Sequence[int],
    strategy: Strategy,
    *,
    epochs: Sequence[int],
    weights: Sequence[float],
    examples: int | None = None,
) -> list[int]:
    """Examples of each task; what does not come out even goes to the largest remainders."""
    read = [size * times for size, times in zip(sizes, epochs, strict=True)]
    total = sum(read) if examples is None else examples
    wanted = {"proportional": read, "uniform": [1] * len(read), "weighted": weights}[strategy]
    exact = [total * Fraction(share) / sum(map(Fraction, wanted)) for share in wanted]
    found = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda k: (found[k] - exact[k], k))
    for k in by_remainder[: total - sum(found)]:
        found[k] += 1
    return found


def shuffled(count: int, seed: int, purpose: str) -> np.ndarray:
    """The numbers below ``count`` in an order that depends on seed and purpose alone, int64."""
    return np.argsort(document_hash(seed, purpose, np.arange(count)), kind="stable")


def order(sizes: Sequence[int], wanted: Sequence[int], seed: int) -> np.ndarray:
    """The mixture: numbers of examples, counted through all tasks, in the order of training (int64)."""
    first = np.cumsum([0, *sizes])
    task_of = np.repeat(np.arange(len(sizes)), wanted)[shuffled(sum(wanted), seed, "order of tasks")]
    found = np.empty(len(task_of), dtype=np.int64)
    for task, (size, number) in enumerate(zip(sizes, wanted, strict=True)):
        passes = [shuffled(size, seed, f"pass {n} of task {task}") for n in range(-(-number // max(1, size)))]
        found[task_of == task] = first[task] + np.concatenate([np.empty(0, np.int64), *passes])[:number]
    return found
