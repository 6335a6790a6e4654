"""One period of a mixture: from which source each of Q windows is, so that no source is a whole window off its share.

Source ``s`` gives ``q[s]`` of them. Its window ``j`` may come once its share has passed ``j``, and has to come before
its share passes ``j + 1``; of the windows that may come, the one that has to come first is taken. That this keeps
every deadline (so that ``|given[s] - q[s] k / Q| < 1`` for all ``s`` after any ``k`` windows) is the answer to the
chairman assignment problem: R. Tijdeman, Discrete Mathematics 32, 1980; G. Steiner, S. Yeomans, Management Science 39,
1993.

Shapes: N sources, Q windows.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

LONGEST_PERIOD = 10_000  # windows; weights with up to four decimals that add up to 1 are exact


def quotas(weights: Sequence[float]) -> list[int]:
    """Windows of each source in one period: the smallest numbers that are as the weights, in ``LONGEST_PERIOD``."""
    exact = [Fraction(str(weight)) for weight in weights]
    total = sum(exact)
    shares = [weight / total for weight in exact]
    period = math.lcm(*(share.denominator for share in shares))
    return [int(share * period) for share in shares] if period <= LONGEST_PERIOD else rounded(weights, LONGEST_PERIOD)


def rounded(weights: Sequence[float], period: int) -> list[int]:
    """Numbers nearest to the weights that add up to ``period``, at least 1 for a weight above 0.

    A period has room for each source.
    """
    scaled = [weight / max(weights) for weight in weights]  # sums of large numbers are infinite
    wanted = [weight / sum(scaled) * period for weight in scaled]
    found = [max(int(share), int(weight > 0)) for share, weight in zip(wanted, weights, strict=True)]
    while missing := period - sum(found):  # at most once for each source
        needs = [share - count for share, count in zip(wanted, found, strict=True)]
        if missing > 0:
            found[needs.index(max(needs))] += 1
        else:
            found[needs.index(min(need for need, count in zip(needs, found, strict=True) if count > 1))] -= 1
    return found


def pattern(given: Sequence[int]) -> np.ndarray:
    """The source of each window of a period, int64 ``[Q]``; ``given`` are its quotas."""
    period = sum(given)
    released: list[list[tuple[int, int]]] = [[] for _ in range(period)]  # (deadline, source) of what may come from here
    for source, quota in enumerate(given):
        for window in range(quota):
            released[window * period // quota].append((-(-(window + 1) * period // quota), source))
    waiting: list[tuple[int, int]] = []
    chosen = np.empty(period, dtype=np.int64)
    for place, windows in enumerate(released):
        for deadline in windows:
            heapq.heappush(waiting, deadline)
        chosen[place] = heapq.heappop(waiting)[1]
    return chosen
