"""Sizes of updates that change: all arithmetic against counting one update after another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.effort import examples

from automodel_cli.batch_sizes import BatchSizes, Staged


@st.composite
def schedules(draw: st.DrawFn) -> tuple[BatchSizes, list[int]]:
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    ends = sorted(draw(st.sets(st.integers(1, 60), min_size=len(sizes) - 1, max_size=len(sizes) - 1)))
    return BatchSizes.by_ends(sizes, ends), ends


def counted(sizes: BatchSizes, updates: int, start: int = 0) -> list[int]:
    """First samples of ``updates`` updates and the end of the last."""
    firsts = [start]
    for _ in range(updates):
        firsts.append(firsts[-1] + sizes.at(firsts[-1]))
    return firsts


@examples(150)
@given(made=schedules(), start=st.integers(0, 80), updates=st.integers(0, 40))
def test_samples_and_updates_are_what_counting_gives(made, start, updates):
    sizes, _ = made
    firsts = counted(sizes, updates, start)
    assert sizes.samples(updates, start) == firsts[-1] - start
    for samples in range(firsts[-1] - start + 12):
        whole = sum(end <= start + samples for end in counted(sizes, updates + 13, start)[1:])
        assert sizes.updates(samples, start) == whole
    for sample in range(40):
        assert sizes.end_of_update(sample) == min(end for end in counted(sizes, 50) if end >= sample)


@examples(100)
@given(made=schedules())
def test_a_stage_ends_with_the_update_that_reaches_its_end(made):
    sizes, ends = made
    grid = counted(sizes, 80)
    for (first, _), (_, before), end in zip(sizes.stages[1:], sizes.stages[:-1], ends, strict=True):
        assert first in grid  # whole updates
        assert first >= end or first - before >= 0
        assert first < end + before or grid.index(first) >= 1


def test_by_hand():
    sizes = BatchSizes.by_ends([2, 4, 8], [5, 13])
    assert sizes.stages == ((0, 2), (6, 4), (14, 8))
    assert list(sizes.stretches()) == [(0, 2, 3), (6, 4, 2), (14, 8, None)]
    assert list(sizes.stretches(7)) == [(7, 4, 2), (15, 8, None)]  # left off the grid by another configuration
    assert (sizes.last, sizes.numbers, sizes.changes) == (8, [2, 4, 8], True)
    assert BatchSizes.of(sizes) is sizes and not BatchSizes.of(3).changes


@pytest.mark.parametrize("stages", [(), ((1, 2),), ((0, 2), (0, 3)), ((0, 0),)])
def test_stages_begin_at_the_start_and_ascend(stages):
    with pytest.raises(AssertionError):
        Staged(stages)
