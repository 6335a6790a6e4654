"""Which samples an update was trained on, from what a run has left: pairs (update, samples trained until then).

Between two such pairs the batch size may have changed, on a resume whose checkpoint is gone. So a stretch counts as
known where it is as long as updates of one known batch size make it.
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, Mapping

from automodel_cli.errors import DataError


def samples_of_step(step: int, known: Mapping[int, int], sizes: Collection[int], *, now: int) -> tuple[int, int]:
    """First and one past the last of the samples of update ``step`` (from 1), counted as they were trained on.

    Args:
        known: samples trained after an update; after update 0 it is 0.
        sizes: global batch sizes that the run is known to have had.
        now: the one that further updates have.

    Raises:
        DataError: the batch size was changed near the update, and nothing says at which.
    """
    points = sorted({0: 0, **known}.items())
    at = bisect.bisect_left(points, (step, 0))
    begin, before = points[at - 1]
    if at == len(points):
        return before + (step - 1 - begin) * now, before + (step - begin) * now
    end, after = points[at]
    size, rest = divmod(after - before, end - begin)
    if rest or (end - begin > 1 and size not in sizes):
        raise DataError(
            f"which samples update {step:,} had is not known: updates {begin + 1:,} to {end:,} had "
            f"{after - before:,}, and the batch size changed among them",
            "step_scheduler.log_every_steps: 1 keeps this known; ask for an update of another checkpoint's time",
        )
    return before + (step - 1 - begin) * size, before + (step - begin) * size
