"""Loaders: the same samples in the same order whatever the ranks, micro-batches and interruptions."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.data import user_sets
from tests.effort import examples
from tests.token_files import write_token_file
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from automodel_cli.batch import IGNORE_INDEX, Batch
from automodel_cli.batch_sizes import BatchSizes, Staged
from automodel_cli.data.collate import default_collate
from automodel_cli.data.eval_loader import EvalLoader
from automodel_cli.data.loader import TorchLoader
from automodel_cli.data.nanogpt_dataset import NanogptDataset
from automodel_cli.data.token_loader import TokenLoader
from automodel_cli.errors import ConfigError, DataError

SEQ = 4


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Shards of 20, 11 and 23 windows of distinct tokens: 54 windows; first tokens tell windows apart."""
    folder = tmp_path_factory.mktemp("corpus")
    first = 0
    for number, windows in enumerate((20, 11, 23)):
        size = windows * SEQ + 1
        write_token_file(folder / f"s{number}.bin", np.arange(first, first + size))
        first += size
    return f"{folder}/*.bin"


def _dataset(pattern: str, shuffle: bool = True, seed: int = 3) -> NanogptDataset:
    return NanogptDataset(pattern, SEQ, shuffle_files=shuffle, seed=seed)


def _firsts(update: list[Batch]) -> list[int]:
    return [int(row[0]) for batch in update for row in batch.input_ids]


def _flat(lists: Iterable[list[int]]) -> list[int]:
    return [*itertools.chain.from_iterable(lists)]


def _stream(loader: Any, updates: int | None = None) -> list[list[int]]:
    out = []
    for update in loader:
        out.append(_firsts(update))
        if len(out) == updates:
            break
    return out


# ------------------------------------------------------------------------------------ token windows


@examples(40)
@given(
    ranks=st.integers(1, 4),
    rows=st.integers(1, 3),
    accum=st.integers(1, 3),
    shuffle=st.booleans(),
    epochs=st.integers(1, 3),
)
def test_every_window_once_an_epoch_for_any_ranks_and_micro_batches(
    pattern: str, ranks: int, rows: int, accum: int, shuffle: bool, epochs: int
) -> None:
    size = ranks * rows * accum
    dataset = _dataset(pattern, shuffle)
    loaders = [
        TokenLoader(
            dataset,
            global_batch_size=size,
            local_batch_size=rows,
            dp_rank=rank,
            dp_world=ranks,
            num_epochs=epochs,
        )
        for rank in range(ranks)
    ]
    assert loaders[0].remaining_steps == epochs * 54 // size
    streams = [_stream(loader) for loader in loaders]
    updates = [[first for part in parts for first in part] for parts in zip(*streams, strict=True)]
    assert len(updates) == epochs * 54 // size
    seen = np.concatenate(updates)
    in_order = dataset.sample_offsets(np.arange(len(seen)))
    assert seen.tolist() == _first_tokens(dataset, in_order)
    for epoch in range(len(seen) // 54):
        assert len(set(seen[epoch * 54 : (epoch + 1) * 54])) == 54
    assert loaders[0].dropped_samples == epochs * 54 - len(seen) < size
    assert loaders[0].remaining_steps == 0


def _first_tokens(dataset: NanogptDataset, offsets: np.ndarray) -> list[int]:
    out = np.empty((len(offsets), SEQ + 1), np.int64)
    dataset.read_windows(offsets, out)
    return out[:, 0].tolist()


@examples(30)
@given(stop=st.integers(0, 20), rows=st.sampled_from([1, 2, 3, 6]), shuffle=st.booleans())
def test_resume_at_any_step_equals_undisturbed(pattern: str, stop: int, rows: int, shuffle: bool) -> None:
    def loader(local: int) -> TokenLoader:
        return TokenLoader(_dataset(pattern, shuffle), global_batch_size=6, local_batch_size=local, num_epochs=3)

    whole = _stream(loader(2))
    first = loader(2)
    head = _stream(first, stop) if stop else []
    state = json.loads(json.dumps(first.state_dict()))  # as a checkpoint keeps it
    second = loader(rows)
    second.load_state_dict(state)
    assert second.samples_consumed == 6 * stop
    assert head + _stream(second) == whole


def test_another_global_batch_size_goes_on_from_the_same_sample(pattern: str) -> None:
    first = TokenLoader(_dataset(pattern), global_batch_size=6, local_batch_size=3, num_epochs=2)
    head = _stream(first, 5)
    second = TokenLoader(_dataset(pattern), global_batch_size=4, local_batch_size=2, num_epochs=2)
    second.load_state_dict(first.state_dict())
    assert second.remaining_steps == (108 - 30) // 4
    assert second.dropped_samples == (108 - 30) % 4
    tail = _stream(second)
    whole = _first_tokens(_dataset(pattern), _dataset(pattern).sample_offsets(np.arange(106)))
    assert [first for part in head + tail for first in part] == whole


def test_another_order_is_refused_with_the_difference(pattern: str) -> None:
    state = TokenLoader(_dataset(pattern, seed=3), global_batch_size=2, local_batch_size=1).state_dict()
    other = TokenLoader(_dataset(pattern, seed=4), global_batch_size=2, local_batch_size=1)
    with pytest.raises(DataError, match="seed 3 in the checkpoint, 4 now"):
        other.load_state_dict(state)


def test_batches_are_shifted_views_and_stay_valid_until_the_next_update(pattern: str) -> None:
    loader = TokenLoader(_dataset(pattern), global_batch_size=6, local_batch_size=3, prefetch=True)
    previous: list[tuple[torch.Tensor, torch.Tensor]] = []
    for update in loader:
        for held, copy in previous:
            assert torch.equal(held, copy)  # even while the next one is in use
        assert len(update) == 2
        for batch in update:
            assert batch.labels is not None
            assert batch.input_ids.shape == batch.labels.shape == (3, SEQ)
            assert torch.equal(batch.input_ids[:, 1:], batch.labels[:, :-1])
        previous = [(batch.input_ids, batch.input_ids.clone()) for batch in update]


SIZES = BatchSizes.by_ends([2, 6, 4], [5, 30])


@pytest.mark.parametrize(("ranks", "rows"), [(1, 1), (1, 2), (2, 1)])
def test_a_schedule_of_batch_sizes_reads_the_same_samples(pattern: str, ranks: int, rows: int) -> None:
    """The samples of one size, in the same order, cut into updates of the schedule's; resumed anywhere."""
    dataset = _dataset(pattern)
    whole = [
        first for update in _stream(TokenLoader(dataset, global_batch_size=1, local_batch_size=1)) for first in update
    ]

    def loaders() -> list[TokenLoader]:
        sizes = {"global_batch_size": SIZES, "local_batch_size": rows, "dp_world": ranks}
        return [TokenLoader(dataset, dp_rank=rank, **sizes) for rank in range(ranks)]  # type: ignore[arg-type]

    merged = [_flat(parts) for parts in zip(*map(_stream, loaders()), strict=True)]
    assert [len(update) for update in merged] == [2, 2, 2, 6, 6, 6, 6, 4, 4, 4, 4, 4, 4]
    assert _flat(merged) == whole[:54]
    for done in range(13):
        first, *_ = loaders()
        for _ in zip(range(done), first, strict=False):
            pass
        again = loaders()
        for loader in again:
            loader.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert [_flat(parts) for parts in zip(*map(_stream, again), strict=True)] == merged[done:]
        assert again[0].dropped_samples == 0


def test_sizes_that_do_not_divide_are_refused_before_the_first_update(pattern: str) -> None:
    with pytest.raises(ConfigError, match="global_batch_size 6 is not a multiple of local_batch_size 4"):
        TokenLoader(_dataset(pattern), global_batch_size=BatchSizes.by_ends([6, 8], [7]), local_batch_size=4)


def test_rows_are_cut_shorter_by_stages(pattern: str) -> None:
    lengths = Staged(((0, 1), (4, 2), (8, SEQ)))
    whole = list(_stream_tokens(TokenLoader(_dataset(pattern), global_batch_size=4, local_batch_size=2), 3))
    loader = TokenLoader(_dataset(pattern), global_batch_size=4, local_batch_size=2, row_lengths=lengths)
    for update, expected, width in zip(_stream_tokens(loader, 3), whole, (1, 2, SEQ), strict=True):
        for (inputs, labels), (all_inputs, all_labels) in zip(update, expected, strict=True):
            assert inputs.shape == labels.shape == (2 * SEQ // width, width)
            assert torch.equal(inputs.reshape(2, SEQ), all_inputs) and torch.equal(labels.reshape(2, SEQ), all_labels)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_cut_rows_are_the_rows_of_shorter_windows(width: int, tmp_path: Path) -> None:
    write_token_file(tmp_path / "a.bin", np.random.default_rng(0).integers(0, 5, 12 * 8 + 1))

    def batches(seq_len: int, lengths: Staged | None) -> list[Batch]:
        dataset = NanogptDataset(str(tmp_path / "a.bin"), seq_len, intra_document=True, bos_token=0)
        size = 4 * 8 // seq_len
        loader = TokenLoader(dataset, global_batch_size=size, local_batch_size=size, row_lengths=lengths)
        return [batch for update in loader for batch in update]

    for cut, short in zip(batches(8, Staged(((0, width), (10**6, 8)))), batches(width, None), strict=True):
        assert torch.equal(cut.input_ids, short.input_ids) and torch.equal(cut.position_ids, short.position_ids)
        assert torch.equal(_same_document(cut.segment_ids), _same_document(short.segment_ids))


def _same_document(segments: torch.Tensor) -> torch.Tensor:
    return segments[:, :, None] == segments[:, None, :]


def _stream_tokens(loader: TokenLoader, updates: int) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    for _, update in zip(range(updates), loader, strict=False):
        yield [(batch.input_ids.clone(), batch.labels.clone()) for batch in update if batch.labels is not None]


@pytest.mark.parametrize("prefetch", [True, False, "auto"])
def test_state_counts_what_was_handed_out_not_what_was_read_ahead(pattern: str, prefetch: Any) -> None:
    loader = TokenLoader(_dataset(pattern), global_batch_size=6, local_batch_size=3, prefetch=prefetch)
    for number, _ in enumerate(loader, start=1):
        assert loader.state_dict()["samples_consumed"] == 6 * number


def test_epochs_and_steps(pattern: str) -> None:
    loader = TokenLoader(_dataset(pattern), global_batch_size=12, local_batch_size=3, num_epochs=2)
    assert loader.samples_per_epoch == 54
    assert loader.remaining_steps == 9
    epochs = [loader.epoch for _ in loader]
    assert epochs == [0, 0, 0, 0, 1, 1, 1, 1, 1]  # the fifth ends in the second epoch
    assert TokenLoader(_dataset(pattern), global_batch_size=60, local_batch_size=60).remaining_steps == 0


def test_an_endless_loader_goes_on(pattern: str) -> None:
    loader = TokenLoader(_dataset(pattern), global_batch_size=54, local_batch_size=54, num_epochs=None)
    assert loader.remaining_steps is None
    assert loader.dropped_samples == 0
    assert all(len(set(update)) == 54 for update in _stream(loader, 5))


def test_batch_larger_than_the_data_and_iterating_again(pattern: str) -> None:
    loader = TokenLoader(_dataset(pattern), global_batch_size=100, local_batch_size=10, num_epochs=4)
    assert len(_stream(loader, 1)[0]) == 100
    assert loader.samples_consumed == 100
    assert len(_stream(loader)) == 1  # a second iteration goes on where the first stopped
    assert loader.dropped_samples == 16


# ----------------------------------------------------------------------------------- user data sets


class Rows(Dataset[dict[str, Any]]):
    """Map-style: row ``n`` is [n, n + 1, n + 2]."""

    def __init__(self, length: int = 30) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        assert index < self.length
        return {"input_ids": [index, index + 1, index + 2], "labels": [index + 1, index + 2, index + 3]}


class Stream(IterableDataset[dict[str, Any]]):
    """Knows nothing of ranks, workers or positions."""

    def __init__(self, length: int = 30) -> None:
        self.length = length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in range(self.length):
            yield {"input_ids": [number, number + 1]}


class Stateful(user_sets.Stateful):
    def __init__(self, length: int = 30) -> None:
        super().__init__(lambda number: {"input_ids": [number, 0]}, length)


class ByWorker(Stream):
    """Divides itself over workers, as torch's documentation shows, and says so."""

    shards_workers = True

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        step, first = (1, 0) if info is None else (info.num_workers, info.id)
        for number in range(first, self.length, step):
            yield {"input_ids": [number, 0]}


class Shardable(user_sets.Sharded):
    def __init__(self, length: int = 30) -> None:
        super().__init__(lambda number: {"input_ids": [number, 0]}, length)


def _torch(dataset: Any, size: int = 6, rows: int = 3, **options: Any) -> TorchLoader:
    return TorchLoader(dataset, global_batch_size=size, local_batch_size=rows, **options)


def _together(loaders: list[Any]) -> list[int]:
    streams = [_stream(loader) for loader in loaders]
    return [first for parts in zip(*streams, strict=True) for part in parts for first in part]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", [False, True])
def test_map_style_every_item_once_for_any_ranks_and_workers(workers: int, shuffle: bool) -> None:
    alone = _together([_torch(Rows(), shuffle=shuffle, num_epochs=2)])
    ranks = [
        _torch(Rows(), shuffle=shuffle, num_epochs=2, dp_rank=r, dp_world=2, num_workers=workers) for r in range(2)
    ]
    assert _together(ranks) == alone
    assert sorted(alone[:30]) == sorted(alone[30:]) == list(range(30))
    assert (alone[:30] == list(range(30))) is not shuffle


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 7])
def test_map_style_resumes_exactly(workers: int, stop: int) -> None:
    whole = _stream(_torch(Rows(), shuffle=True, num_epochs=2))
    first = _torch(Rows(), shuffle=True, num_epochs=2)
    head = _stream(first, stop) if stop else []
    second = _torch(Rows(), shuffle=True, num_epochs=2, num_workers=workers)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert head + _stream(second) == whole


def test_map_style_refuses_another_set() -> None:
    with pytest.raises(DataError, match="length 30 in the checkpoint, 31 now"):
        _torch(Rows(31)).load_state_dict(_torch(Rows(30)).state_dict())
    with pytest.raises(DataError, match="Rows is empty"):
        _torch(Rows(0))


def test_loading_draws_nothing_from_the_global_generator() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    _stream(_torch(Rows(), shuffle=True))
    _stream(_torch(Stream()))
    list(EvalLoader(Rows(), 4))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("ranks", [1, 2])
def test_iterable_order_is_that_of_one_process(workers: int, ranks: int) -> None:
    loaders = [
        _torch(Stream(32), rows=3, dp_rank=r, dp_world=ranks, num_workers=workers, num_epochs=2) for r in range(ranks)
    ]
    seen = _together(loaders)
    assert seen == [*range(32), *range(32)][:60]  # batches straddle epochs; 4 items are dropped at the end
    assert loaders[0].dropped_samples == (4 if workers == 0 else 0)  # in other processes nobody knows


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_incomplete_last_update_is_dropped_by_all_ranks(ranks: int) -> None:
    loaders = [_torch(Stream(9), rows=3, dp_rank=r, dp_world=ranks) for r in range(ranks)]
    assert _together(loaders) == list(range(6))  # rank 0 has its rows of the second update, rank 1 has not


def test_iterable_with_own_state_resumes_without_reading_again(caplog: pytest.LogCaptureFixture) -> None:
    whole = _stream(_torch(Stateful(20), num_epochs=3))
    first = _torch(Stateful(20), num_epochs=3)
    head = _stream(first, 5)
    assert first.per_rank_state
    state = json.loads(json.dumps(first.state_dict()))
    assert state["stream"]["dataset"] == {"position": 10}
    dataset = Stateful(20)
    second = _torch(dataset, num_epochs=3)
    second.load_state_dict(state)
    assert second.state_dict() == state  # a checkpoint right after resuming says the same
    assert head + _stream(second) == whole
    assert dataset.served == 30
    assert not caplog.records


def test_own_state_that_is_the_same_on_all_ranks_goes_on_with_another_number() -> None:
    first = _torch(Stateful(20), num_epochs=3)
    head = _stream(first, 4)
    ranks = [_torch(Stateful(20), rows=3, num_epochs=3, dp_rank=rank, dp_world=2) for rank in range(2)]
    for one in ranks:
        one.load_state_dict(first.state_dict())
    whole = _together([_torch(Stateful(20), num_epochs=3)])
    assert [number for update in head for number in update] + _together(ranks) == whole


def test_own_state_of_a_part_is_refused_on_another_rank() -> None:
    class OwnPart(Stateful):
        shards_ranks = True

    first = _torch(OwnPart(20), rows=3, dp_rank=0, dp_world=2)
    _stream(first, 1)
    second = _torch(OwnPart(20), rows=3, dp_rank=1, dp_world=2)
    with pytest.raises(DataError, match="rank 0 of 2, this is rank 1 of 2"):
        second.load_state_dict(first.state_dict())


def test_own_state_must_be_json() -> None:
    class Bad(Stateful):
        def state_dict(self) -> dict[str, Any]:
            return {"tensor": torch.zeros(1)}

    loader = _torch(Bad())
    _stream(loader, 1)
    with pytest.raises(DataError, match="is not JSON"):
        loader.state_dict()


@pytest.mark.parametrize("workers", [0, 2])
def test_iterable_without_state_is_replayed_with_a_warning(workers: int, caplog: pytest.LogCaptureFixture) -> None:
    whole = _stream(_torch(Stream(32), num_epochs=2))
    first = _torch(Stream(32), num_epochs=2)
    head = _stream(first, 7)
    second = _torch(Stream(32), num_epochs=2, num_workers=workers)
    second.load_state_dict(first.state_dict())
    assert head + _stream(second) == whole
    assert "reading 42 items again" in caplog.text


def test_replay_may_change_the_ranks() -> None:
    first = _torch(Stream(32), num_epochs=2)
    _stream(first, 3)
    ranks = [_torch(Stream(32), num_epochs=2, dp_rank=r, dp_world=2) for r in range(2)]
    for loader in ranks:
        loader.load_state_dict(first.state_dict())
    assert _together(ranks) == [*range(32), *range(32)][18:60]


def test_a_set_that_divides_itself_over_workers_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    loader = _torch(ByWorker(24), rows=3, num_workers=2)
    whole = _stream(loader)
    assert sorted(first for part in whole for first in part) == list(range(24))
    first = _torch(ByWorker(24), rows=3, num_workers=2)
    head = _stream(first, 2)
    second = _torch(ByWorker(24), rows=3, num_workers=2)
    second.load_state_dict(first.state_dict())
    assert head + _stream(second) == whole
    with pytest.raises(DataError, match="num_workers 2 in the checkpoint, 1 now"):
        _torch(ByWorker(24), rows=3, num_workers=1).load_state_dict(first.state_dict())


def test_a_set_that_divides_itself_and_does_not_say_so_loses_nothing() -> None:
    class Silent(ByWorker):
        shards_workers = False

    loader = _torch(Silent(24), rows=3, num_workers=2)
    assert [first for update in _stream(loader) for first in update] == list(range(24))


def test_shard_method_is_used() -> None:
    loaders = [_torch(Shardable(24), rows=3, dp_rank=r, dp_world=2) for r in range(2)]
    streams = [_stream(loader) for loader in loaders]
    assert [first for part in streams[0] for first in part] == list(range(0, 24, 2))
    assert [first for part in streams[1] for first in part] == list(range(1, 24, 2))


def test_ranks_with_unequally_many_items_stop_together() -> None:
    steps = iter(range(10))
    loader = _torch(Shardable(24), rows=3, dp_world=2, any_rank=lambda ended: next(steps) == 2)
    assert len(_stream(loader)) == 2  # of 4: another rank has no more
    assert len(_stream(_torch(Rows(24), any_rank=lambda ended: True))) == 4  # all know where an index ends


def test_iterable_that_yields_nothing_is_an_error_not_a_hang() -> None:
    with pytest.raises(DataError, match="yields nothing in epoch 0"):
        _stream(_torch(Stream(0), num_epochs=None))


def test_length_decides_whether_epochs_can_be_counted() -> None:
    loader = _torch(Stream(32))
    assert loader.samples_per_epoch is None
    assert loader.remaining_steps is None
    assert _torch(Rows(32)).remaining_steps == 5


def test_settings_that_cannot_work() -> None:
    with pytest.raises(ConfigError, match="shuffle: true has no effect"):
        _torch(Stream(), shuffle=True)
    with pytest.raises(ConfigError, match=r"dataloader\.batch_size is 8"):
        _torch(Rows(), batch_size=8)
    with pytest.raises(ConfigError, match="cannot be resumed"):
        _torch(Rows(), sampler=[3, 2, 1])
    with pytest.raises(ConfigError, match="cannot be resumed"):
        _torch(Rows(), in_order=False)
    assert len(_stream(_torch(Rows(), batch_size=3, persistent_workers=True, drop_last=True))) == 5


def test_own_collate_function_and_unshifted_labels() -> None:
    def stacked(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {name: torch.tensor([item[name] for item in items]) for name in items[0]}

    assert _stream(_torch(Rows(), collate_fn=stacked)) == _stream(_torch(Rows(), collate_fn=default_collate))

    def copied(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([item["input_ids"] for item in items])
        return {"input_ids": ids, "labels": ids.clone()}

    with pytest.raises(DataError, match="not shifted"):
        _stream(_torch(Rows(), collate_fn=copied))


# --------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("shuffle", [False, True])
def test_evaluation_is_one_pass_in_file_order(pattern: str, ranks: int, shuffle: bool) -> None:
    loaders = [EvalLoader(_dataset(pattern, shuffle), 8, dp_rank=r, dp_world=ranks) for r in range(ranks)]
    assert _evaluated(loaders) == _first_tokens(_dataset(pattern), _dataset(pattern).window_offsets(np.arange(54)))
    assert _evaluated(loaders) == _evaluated(loaders)  # a second pass is the same


def _evaluated(loaders: list[EvalLoader]) -> list[int]:
    """First tokens of the rows that count, in global order; all ranks must yield equally many batches."""
    passes = [
        [[int(row[0]) for row, labels in zip(b.input_ids, b.labels, strict=True) if _counts(labels)] for b in loader]  # type: ignore[arg-type]
        for loader in loaders
    ]
    assert {len(batches) for batches in passes} == {loaders[0].num_batches or len(passes[0])}
    return [first for parts in zip(*passes, strict=True) for part in parts for first in part]


def _counts(labels: torch.Tensor) -> bool:
    return bool((labels != IGNORE_INDEX).any())


def test_last_short_batch_and_limits(pattern: str) -> None:
    loader = EvalLoader(_dataset(pattern), 8)
    assert [len(batch.input_ids) for batch in loader] == [8, 8, 8, 8, 8, 8, 6]
    assert loader.num_batches == 7
    assert len(list(EvalLoader(_dataset(pattern), 8, limit_batches=2))) == 2
    with pytest.raises(ConfigError, match="limit_val_batches is 0"):
        EvalLoader(_dataset(pattern), 8, limit_batches=0)
    with pytest.raises(ConfigError, match="local_batch_size is 0"):
        EvalLoader(_dataset(pattern), 0)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("make", [Rows, Stream])
def test_evaluation_on_a_users_set(ranks: int, make: Any) -> None:
    loaders = [EvalLoader(make(29), 4, dp_rank=r, dp_world=ranks) for r in range(ranks)]
    assert _evaluated(loaders) == list(range(29))
    limited = [EvalLoader(make(29), 4, dp_rank=r, dp_world=ranks, limit_batches=1) for r in range(ranks)]
    assert _evaluated(limited) == list(range(4 * ranks))


def test_evaluation_with_workers_and_a_collate_function() -> None:
    assert _evaluated([EvalLoader(Rows(10), 3, num_workers=1, collate_fn=default_collate)]) == list(range(10))


def test_nothing_to_evaluate_on_is_an_error_not_zero(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="validation set \\(Rows\\) is empty"):
        EvalLoader(Rows(0), 4)
    with pytest.raises(DataError, match="validation set \\(Stream\\) is empty"):
        list(EvalLoader(Stream(0), 4))
