"""Samples that are skipped, against sets."""

from __future__ import annotations

import numpy as np
import pytest
from tests.token_files import write_token_file

from automodel_cli.data.nanogpt_dataset import NanogptDataset
from automodel_cli.data.skipped import MOST_RANGES, Skipped
from automodel_cli.data.token_loader import TokenLoader
from automodel_cli.errors import ConfigError, DataError


def test_what_is_left_is_all_but_the_ranges():
    rng = np.random.default_rng(0)
    for _ in range(200):
        ranges = [
            (first, first + int(rng.integers(0, 9))) for first in rng.integers(0, 60, rng.integers(0, 6)).tolist()
        ]
        skipped, gone = Skipped.of(ranges), {sample for first, end in ranges for sample in range(first, end)}
        left = [sample for sample in range(120) if sample not in gone]
        assert skipped.samples(np.arange(len(left))).tolist() == left
        assert [skipped.left_before(sample) for sample in range(120)] == [
            sum(one < sample for one in left) for sample in range(120)
        ]
        assert all(skipped.covers(*one) for one in ranges if one[0] < one[1])
        assert Skipped.of(reversed(skipped.ranges)) == skipped
    assert not Skipped() and not Skipped().covers(0, 1)


@pytest.fixture
def dataset(tmp_path):
    write_token_file(tmp_path / "a.bin", np.arange(4 * 40 + 1) % 1000)  # 40 windows; the first token tells which
    return NanogptDataset(str(tmp_path / "a.bin"), seq_len=4)


def windows_of(loader: TokenLoader, updates: int | None = None) -> list[list[int]]:
    """The windows of each update; as many as asked for."""
    found = []
    for batches in loader:
        found.append([int(row[0]) // 4 for batch in batches for row in batch.input_ids])
        if len(found) == updates:
            break
    return found


def loader(dataset, rank=0, ranks=1, size=4, **more):
    return TokenLoader(
        dataset, global_batch_size=size, local_batch_size=size // ranks, dp_rank=rank, dp_world=ranks, **more
    )


def test_a_loader_goes_around_what_it_was_told_to_skip(dataset):
    told = loader(dataset, skip=[(6, 9), (20, 24)])
    left = [window for window in range(40) if not (6 <= window < 9 or 20 <= window < 24)]
    assert told.remaining_steps == 33 // 4 and told.dropped_samples == 1
    assert windows_of(told) == [left[n : n + 4] for n in range(0, 32, 4)]
    assert told.samples_consumed == left[31] + 1
    halves = [windows_of(loader(dataset, rank, 2, skip=[(6, 9), (20, 24)])) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == [left[n : n + 4] for n in range(0, 32, 4)]


def test_a_position_keeps_what_is_skipped(dataset):
    told, other = loader(dataset, skip=[(6, 9)], num_epochs=None), loader(dataset, num_epochs=None)
    first = windows_of(told, 2)
    assert first == [[0, 1, 2, 3], [4, 5, 9, 10]] and told.last_samples == (4, 11)
    state = told.state_dict()
    assert state["samples_consumed"] == 11 and state["skipped"] == [[6, 9]]
    other.load_state_dict(state)
    assert windows_of(other, 8) == windows_of(told, 8)
    assert other.epoch_ended and other.epoch == 1
    assert "skipped" not in loader(dataset).state_dict()


def test_an_epoch_whose_end_is_skipped_ends(dataset):
    told = loader(dataset, skip=[(36, 44)], num_epochs=None)
    ended = []
    for _ in told:
        ended.append(told.epoch_ended)
        if len(ended) == 12:
            break
    assert ended == [False] * 9 + [True, False, False]


def test_more_ranges_than_a_position_keeps_are_refused(dataset):
    odd = [(2 * n + 41, 2 * n + 42) for n in range(MOST_RANGES)]
    full = loader(dataset, skip=odd)
    loader(dataset).load_state_dict(full.state_dict())
    loader(dataset, skip=[*odd, (40, 41)]).load_state_dict(full.state_dict())  # which touches the first
    with pytest.raises(ConfigError, match=r"1,001 separate ranges .* at most 1,000"):
        loader(dataset, skip=[*odd, (38, 39)])
    with pytest.raises(ConfigError, match="1,001 separate ranges"):
        loader(dataset, skip=[(38, 39)]).load_state_dict(full.state_dict())


def test_what_was_trained_on_cannot_be_skipped_any_more(dataset):
    before = loader(dataset)
    windows_of(before, 2)
    state = before.state_dict()
    with pytest.raises(ConfigError, match=r"samples 6 to 9, the run is at sample 8"):
        loader(dataset, skip=[(6, 9)]).load_state_dict(state)
    after = loader(dataset, skip=[(8, 12)])
    after.load_state_dict(state)
    assert windows_of(after, 1) == [[12, 13, 14, 15]]
    with pytest.raises(DataError, match="position of the data"):
        after.load_state_dict({**state, "skipped": [[4]]})
