"""Which samples an update was trained on, from what a run has left: pairs (update, samples trained until then).

Between two such pairs the batch size may have changed, on a resume whose checkpoint is gone. So a stretch counts as
known where it is as long as updates of one known batch size make it.
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, Mapping

from automodel_cli.batch_sizes import BatchSizes
from automodel_cli.errors import DataError


def samples_of_step(
    step: int, known: Mapping[int, int], sizes: Collection[BatchSizes], *, now: BatchSizes
) -> tuple[int, int]:
    """First and one past the last of the samples of update ``step`` (from 1), counted as they were trained on.

    Args:
        known: samples trained after an update; after update 0 it is 0.
        sizes: global batch sizes, or schedules of them, that the run is known to have had.
        now: that of further updates.

    Raises:
        DataError: the batch size was changed near the update, and nothing says at which.
    """
    points = sorted({0: 0, **known}.items())
    at = bisect.bisect_left(points, (step, 0))
    begin, before = points[at - 1]
    if at == len(points):
        return _of(step, begin, before, now)
    end, after = points[at]
    if end - begin == 1:
        return before, after
    made = next((one for one in sizes if one.samples(end - begin, before) == after - before), None)
    if made is None:
        raise DataError(
            f"which samples update {step:,} had is not known: updates {begin + 1:,} to {end:,} had "
            f"{after - before:,}, and the batch size changed among them",
            "step_scheduler.log_every_steps: 1 keeps this known; ask for an update of another checkpoint's time",
        )
    return _of(step, begin, before, made)


def _of(step: int, begin: int, before: int, sizes: BatchSizes) -> tuple[int, int]:
    """The samples of ``step``, where ``before`` samples were trained on until after update ``begin``."""
    first = before + sizes.samples(step - 1 - begin, before)
    return first, first + sizes.at(first)
