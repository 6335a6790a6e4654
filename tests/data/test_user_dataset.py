"""How a foreign data set is understood: its style, its own divisions, its identity."""

from __future__ import annotations

import json
from collections.abc import Iterator

import datasets
import numpy as np
import pytest
from torch.utils.data import Dataset, IterableDataset

from automodel_cli.data.interface import length_of
from automodel_cli.data.loader import TorchLoader
from automodel_cli.data.permutation import Permutation
from automodel_cli.data.sampler import BatchShape
from automodel_cli.data.user_dataset import (
    RankStream,
    Sharding,
    declared_sharding,
    has_own_state,
    identity_of,
    index_batches,
    is_iterable_style,
    shard_of_rank,
)


class Plain(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        yield from range(12)


class Declared(Plain):
    shards_ranks = True
    shards_workers = True


def test_sharding_is_what_the_class_declares() -> None:
    assert declared_sharding(Plain()) == Sharding(ranks=False, workers=False)
    assert declared_sharding(Declared()) == Sharding(ranks=True, workers=True)
    assert declared_sharding(_hub()) == Sharding(ranks=False, workers=True)


@pytest.mark.parametrize(("ranks", "workers", "words"), [(1, 1, []), (4, 0, ["shard("]), (4, 3, ["shard(", "1 of 3"])])
def test_what_is_left_to_us_is_said(ranks: int, workers: int, words: list[str]) -> None:
    loader = TorchLoader(Plain(), global_batch_size=4, local_batch_size=1, dp_world=ranks, num_workers=workers)
    assert [any(word in note for note in loader.notes) for word in words] == [True] * len(loader.notes)
    declared = TorchLoader(Declared(), global_batch_size=4, local_batch_size=1, dp_world=ranks, num_workers=workers)
    assert declared.notes == []


def test_styles_and_lengths() -> None:
    class OnlyIndex(Dataset[int]):
        def __getitem__(self, index: int) -> int:
            return index

    class NoLength(Plain):
        def __len__(self) -> int:
            raise NotImplementedError

    assert is_iterable_style(Plain())
    assert is_iterable_style(OnlyIndex())  # without a length there is no epoch to permute
    assert not is_iterable_style([1, 2])
    assert length_of([1, 2]) == 2
    assert length_of(NoLength()) is None
    assert not has_own_state(Plain())


def test_identity() -> None:
    dataset = datasets.Dataset.from_dict({"input_ids": [[1, 2]] * 3})
    found = identity_of(dataset)
    assert found["dataset"] == "Dataset"
    assert found["length"] == 3
    assert found["data"] == dataset._fingerprint
    assert identity_of(Plain()) == {"dataset": "Plain", "length": None, "data": None}
    json.dumps(found)


def test_index_batches_follow_the_sampler() -> None:
    shape = BatchShape(global_batch_size=4, local_batch_size=2)
    permutation = Permutation(5, seed=1)
    batches = list(index_batches(shape, 5, 3, 3, permutation))
    numbers = 3 + np.arange(12)
    expected = permutation(numbers % 5, numbers // 5)
    assert np.concatenate(batches).tolist() == expected.tolist()
    assert all(len(batch) == 2 for batch in batches)


def test_stream_calls_set_epoch() -> None:
    class Epochs(Plain):
        def __init__(self) -> None:
            self.epochs: list[int] = []

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

    dataset = Epochs()
    stream = RankStream(
        dataset,
        BatchShape(global_batch_size=5, local_batch_size=5),
        Sharding(ranks=False, workers=False),
        num_epochs=3,
    )
    assert list(stream) == [*range(12), *range(12), *range(12)][:35]
    assert dataset.epochs == [0, 1, 2]
    assert stream.leftover_items == 1


# ------------------------------------------------------------------------------------- Hugging Face


def _hub(rows: int = 24, shards: int = 4) -> datasets.IterableDataset:
    table = datasets.Dataset.from_dict({"input_ids": [[n, n + 1] for n in range(rows)]})
    return table.to_iterable_dataset(num_shards=shards)


def _seen(loader: TorchLoader) -> list[int]:
    return [int(row[0]) for update in loader for batch in update for row in batch.input_ids]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_hugging_face_stream_is_read_once_by_all_ranks(workers: int) -> None:
    seen = []
    for rank in range(2):
        loader = TorchLoader(
            _hub(), global_batch_size=6, local_batch_size=3, dp_rank=rank, dp_world=2, num_workers=workers
        )
        seen.append(_seen(loader))
    assert sorted(seen[0] + seen[1]) == list(range(24))
    assert not set(seen[0]) & set(seen[1])
    part, sharding = shard_of_rank(_hub(), BatchShape(global_batch_size=2, local_batch_size=1, dp_world=2))
    assert sharding == Sharding(ranks=True, workers=True)
    assert is_iterable_style(part)


def test_a_hugging_face_stream_resumes_by_its_own_state() -> None:
    def loader() -> TorchLoader:
        return TorchLoader(_hub(), global_batch_size=6, local_batch_size=3, num_epochs=2)

    whole = _seen(loader())
    first = loader()
    assert first.per_rank_state
    head: list[int] = []
    for number, update in enumerate(first, start=1):
        head += [int(row[0]) for batch in update for row in batch.input_ids]
        if number == 3:
            break
    second = loader()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert head + _seen(second) == whole


def test_a_hugging_face_table_is_map_style() -> None:
    table = datasets.Dataset.from_dict({"input_ids": [[n, n + 1] for n in range(20)]})
    assert not is_iterable_style(table)
    loader = TorchLoader(table, global_batch_size=4, local_batch_size=2, shuffle=True)
    assert sorted(_seen(loader)) == list(range(20))
