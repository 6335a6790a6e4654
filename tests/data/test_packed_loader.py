"""Packed rows of map-style and iterable data sets: order, ranks, workers, positions."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tests.data import user_sets
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from automodel_cli.batch import IGNORE_INDEX
from automodel_cli.data import packing as packing_module
from automodel_cli.data.eval_loader import EvalLoader
from automodel_cli.data.packed_loader import PackedLoader
from automodel_cli.data.packing import Packing
from automodel_cli.errors import DataError

ROWS, SIZE = 90, 16


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(packing_module, "WINDOW_PACKS", 5)


def row(number):
    """Row ``number``: its own number again and again, so that a pack shows whose tokens it holds."""
    length = 2 + number * 7 % 11
    return {"input_ids": [number + 1] * length, "labels": [number + 1001] * length}


class Rows(Dataset):
    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        return row(index)


class Stream(IterableDataset):
    def __iter__(self):
        yield from map(row, range(ROWS))


class Stateful(user_sets.Stateful):
    def __init__(self, rows=ROWS):
        super().__init__(row, rows)


class Shardable(user_sets.Sharded):
    def __init__(self):
        super().__init__(row, ROWS)


class ByWorker(Stream):
    shards_workers = True

    def __iter__(self):
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        yield from map(row, range(first, ROWS, step))


def loader(dataset, size=4, rows=2, **options):
    return PackedLoader(
        dataset,
        packing=options.pop("packing", Packing(SIZE)),
        global_batch_size=size,
        local_batch_size=rows,
        **options,
    )


def updates(one, count=None):
    found = []
    for update in one:
        found.append([ids for batch in update for ids in batch.input_ids.tolist()])
        if len(found) == count:
            break
    return found


def together(loaders):
    """Rows of all ranks, update by update."""
    return [[row for part in parts for row in part] for parts in zip(*map(updates, loaders), strict=True)]


def whole_rows(packs):
    """How often each row was seen; every one of them whole."""
    found = np.zeros(ROWS, dtype=int)
    for pack in packs:
        numbers, counts = np.unique([token for token in pack if token], return_counts=True)
        for number, count in zip(numbers - 1, counts, strict=True):
            length = len(row(number)["input_ids"])
            assert count % length == 0
            found[number] += count // length
    return found


@pytest.mark.parametrize("dataset", [Rows, Stream, Stateful])
def test_every_row_once_an_epoch(dataset):
    one = loader(dataset(), size=1, rows=1, num_epochs=3)
    packs = [pack for update in updates(one) for pack in update]
    assert (whole_rows(packs) == 3).all()
    tokens = sum(len(row(number)["input_ids"]) for number in range(ROWS))
    assert sum(token > 0 for pack in packs for token in pack) == 3 * tokens
    assert len(packs) <= 132  # 118 if nothing were lost; padded, it would be 3 x 90


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("dataset", "shuffle"), [(Rows, False), (Rows, True), (Stream, False)])
def test_order_is_the_same_for_any_ranks_and_workers(dataset, shuffle, workers):
    alone = updates(loader(dataset(), num_epochs=2, shuffle=shuffle))
    ranks = [
        loader(dataset(), num_epochs=2, shuffle=shuffle, dp_rank=rank, dp_world=2, num_workers=workers)
        for rank in range(2)
    ]
    assert together(ranks) == alone


CASES = {
    "map-style": (Rows, {"shuffle": True}),
    "map-style, workers": (Rows, {"shuffle": True, "num_workers": 2}),
    "iterable": (Stream, {}),
    "iterable, workers": (Stream, {"num_workers": 2}),
    "own state": (Stateful, {}),
    "own state, short epochs": (lambda: Stateful(9), {"num_epochs": 20}),
    "own workers": (ByWorker, {"num_workers": 2}),
    "sharded": (Shardable, {"dp_rank": 1, "dp_world": 2, "rows": 1}),
}


@pytest.mark.parametrize(
    ("case", "stop"),
    [(case, stop) for case in CASES for stop in (1, 2, 7, 12) if "workers" not in case or stop == 7],
)
def test_resumes_exactly_wherever_it_stopped(case, stop):
    dataset, options = CASES[case]
    options = {"num_epochs": 2, **options}
    whole = updates(loader(dataset(), **options))
    first = loader(dataset(), **options)
    head = updates(first, stop)
    state = json.loads(json.dumps(first.state_dict()))
    second = loader(dataset(), **options)
    second.load_state_dict(state)
    assert second.state_dict() == state
    assert len(whole) > stop
    assert head + updates(second) == whole
    assert len(json.dumps(state)) < 1500


def test_own_state_spares_reading_again(caplog):
    first = loader(Stateful(), num_epochs=20)
    updates(first, 60)
    dataset = Stateful()
    second = loader(dataset, num_epochs=20)
    second.load_state_dict(first.state_dict())
    updates(second, 1)
    assert dataset.served < 64  # at most a chunk before the window, and the window
    assert not caplog.records


@pytest.mark.parametrize(("dataset", "shuffle"), [(Rows, True), (Stream, False), (Stateful, False)])
def test_another_number_of_ranks_goes_on_at_the_same_place(dataset, shuffle):
    options = {"shuffle": shuffle, "num_epochs": 2}
    whole = updates(loader(dataset(), **options))
    first = loader(dataset(), **options)
    head = updates(first, 7)
    ranks = [loader(dataset(), **options, rows=1, dp_rank=r, dp_world=2) for r in range(2)]
    for one in ranks:
        one.load_state_dict(first.state_dict())
    assert head + together(ranks) == whole


def test_sharded_ranks_stop_together():
    """Shards of as many rows may make unequally many packs: who has more stops with the others."""
    steps = iter(range(20))
    one = loader(Shardable(), rows=1, dp_world=2, any_rank=lambda ended: ended or next(steps) == 5)
    assert len(updates(one)) == 5 < len(updates(loader(Shardable(), rows=1, dp_world=2)))


def test_another_way_of_packing_is_refused():
    state = loader(Rows()).state_dict()
    with pytest.raises(DataError, match=r"packing .*'size': 16.* in the checkpoint, .*'size': 12"):
        loader(Rows(), packing=Packing(12)).load_state_dict(state)


def test_epochs_end_where_their_rows_do():
    one = loader(Rows(), size=2, rows=1, num_epochs=3)
    ends = [one.epoch_ended for _ in one]
    per_epoch = sum(len(window.packs) for window in one.all_windows(np.array(one.lengths(0, 1)), 1))
    assert sum(ends) == 3
    assert next(n for n, end in enumerate(ends, 1) if end) == -(-per_epoch // 2)


def test_epochs_never_go_back_where_workers_have_unequal_parts():
    class Unequal(Stream):
        shards_workers = True

        def __iter__(self):
            worker = get_worker_info()
            yield from map(row, range(40 if worker and worker.id else ROWS))

    one = loader(Unequal(), size=1, rows=1, num_workers=2, num_epochs=3)
    epochs, ends = zip(*((one.epoch, one.epoch_ended) for _ in one), strict=True)
    assert list(epochs) == sorted(epochs)
    assert sum(ends) in (2, 3)  # the last is not known where it fills its window


def test_packs_are_counted_beforehand():
    one = loader(Rows(), size=1, rows=1, shuffle=True, num_epochs=3)
    lengths = np.empty(ROWS, dtype=np.int64)
    for rank in range(2):
        lengths[rank::2] = one.lengths(rank, 2)
    assert sum(len(window.packs) for window in one.all_windows(lengths, 3)) == len(updates(one))


def test_share_of_real_tokens_and_long_rows_are_known(caplog):
    one = loader(Rows(), packing=Packing(10), num_epochs=1)
    for update in one:
        real = sum(int((batch.labels != IGNORE_INDEX).sum()) for batch in update)
        assert one.efficiency == real / (4 * 10)
    long = sum(len(row(number)["input_ids"]) > 10 for number in range(ROWS))
    assert one.long_rows == long
    assert "rows of Rows have more than packed_sequence_size 10 tokens: left out" in caplog.text
    caplog.clear()
    scored = EvalLoader(Rows(), 4, packing=Packing(10))
    assert len(list(scored)) == len(list(scored)) > 5
    assert len(caplog.records) == 1


def test_loading_draws_nothing_from_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    updates(loader(Rows(), shuffle=True))
    loader(Rows()).first_window()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dataset", [Rows, Stream])
@pytest.mark.parametrize("limit", [None, 3])
def test_validation_in_packs_divides_over_ranks(dataset, limit):
    def evaluated(ranks):
        ones = [
            EvalLoader(dataset(), 2, packing=Packing(SIZE), limit_batches=limit, dp_rank=rank, dp_world=ranks)
            for rank in range(ranks)
        ]
        return [
            [ids for ids, labels in zip(batch.input_ids.tolist(), batch.labels, strict=True) if (labels > 0).any()]
            for parts in zip(*ones, strict=True)
            for batch in parts
        ]  # fmt: skip

    alone = [pack for batch in evaluated(1) for pack in batch]
    shared = [pack for batch in evaluated(2) for pack in batch]
    assert shared[: len(alone)] == alone[: len(shared)]
    if limit is None:
        assert (whole_rows(shared) == 1).all()
