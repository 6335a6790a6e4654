"""Megatron's indices: against arrays that megatron-core made, and against a walk over the tokens."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from automodel_cli.corpus.formats.megatron_bin import inspect_prefix
from automodel_cli.corpus.formats.megatron_index import MegatronIndex
from automodel_cli.data.megatron.gpt_index import (
    SPLITS,
    Epochs,
    SampleShape,
    build_indices,
    count_epochs,
    document_index,
    normalize,
    parse_split,
    sample_index,
    shuffle_index,
    split_range,
)
from automodel_cli.errors import ConfigError, DataError

SHARED = Path(__file__).resolve().parents[3] / "../shared/data/megatron_golden"


# ------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("90,5,5", ((0, 0.9), (0.9, 0.9500000000000001), (0.9500000000000001, 1.0))),
        ("0.99, 0.01, 0.00", ((0, 0.99), (0.99, 1.0), None)),
        ("100", ((0, 1.0), None, None)),
        ([8, 1, 1], ((0, 0.8), (0.8, 0.9), (0.9, 1.0))),
        ("900,50,50", ((0, 0.9), (0.9, 0.9500000000000001), (0.9500000000000001, 1.0))),
        ("0,1,0", (None, (0.0, 1.0), None)),
        ("99999,1e0,0", ((0, 0.99999), (0.99999, 1.0), None)),
    ],
)
def test_splits(split: Any, expected: Any) -> None:
    assert parse_split(split) == expected


def test_a_small_share_in_scientific_notation_is_what_it_says() -> None:
    """megatron-core reads "1e-05" as the two shares 1 and 05."""
    train, valid, test = parse_split([1 - 1e-5, 1e-5, 0])
    assert train == (0, 1 - 1e-5)
    assert valid is not None and test is None
    assert parse_split("0.99999, 1e-05, 0") == parse_split([0.99999, 1e-5, 0])


@pytest.mark.parametrize("split", ["", "a,b", "0,0,0", "1,2,3,4", "-1,2,0", [1, -1, 0], "1..2,3", [math.inf]])
def test_what_is_no_split(split: Any) -> None:
    with pytest.raises(ConfigError, match="is not a share"):
        parse_split(split)


def test_halves_round_to_even() -> None:
    assert split_range((0, 0.5), 5) == (0, 2)
    assert split_range((0.5, 1.0), 7) == (4, 7)


# ------------------------------------------------------------------------------------------- epochs


def test_epochs_are_the_fewest_that_hold_the_samples() -> None:
    random = np.random.default_rng(0)
    for _ in range(2000):
        tokens, samples = int(random.integers(1, 500)), int(random.integers(0, 300))
        seq_len, extra = int(random.integers(1, 40)), bool(random.integers(2))
        shape = SampleShape(seq_len, extra)
        found = count_epochs(tokens, samples, shape)
        epochs = 1
        while epochs * tokens < samples * seq_len + extra:
            epochs += 1
        assert found.count == epochs
        assert shape.count(epochs * tokens) >= samples


def test_a_last_epoch_that_is_hardly_used_is_shuffled_by_itself() -> None:
    # 101 tokens are 10 samples of 10 + 1; three epochs are 30, 70 % of the last would be 27
    assert count_epochs(101, 27, SampleShape(10)).before_last == 20
    assert count_epochs(101, 28, SampleShape(10)).before_last is None
    assert count_epochs(101, None, SampleShape(10)) == Epochs(101, 1, None)


def test_no_tokens_are_an_error_where_megatron_core_never_returns() -> None:
    with pytest.raises(DataError, match="the train split of x holds no tokens, 5 samples are wanted"):
        count_epochs(0, 5, SampleShape(8), where="the train split of x")
    assert count_epochs(0, None, SampleShape(8)).count == 1


def test_samples_are_counted_in_integers_unless_float32_is_asked_for() -> None:
    keep, rounded = {"keep_partial": True}, {"keep_partial": True, "float32": True}
    assert SampleShape(2048, **keep).count(2_147_495_993) == 1_048_583
    assert SampleShape(2048, **rounded).count(2_147_495_993) == 1_048_582  # the tail is lost
    assert SampleShape(3, **keep).count(67_108_864) == 22_369_621
    assert SampleShape(3, **rounded).count(67_108_864) == 22_369_622  # one that is empty
    assert SampleShape(16).count(33) == SampleShape(16, **keep).count(33) == 2
    assert SampleShape(16, **keep).count(34) == 3
    assert SampleShape(16, **keep).count(0) == 0


# ------------------------------------------------------------------------------------------- sample index


def walk(lengths: np.ndarray, documents: np.ndarray, seq_len: int, extra: bool) -> list[tuple[int, int]]:
    """Boundaries found by taking the tokens one by one."""
    rows, taken = [(0, 0)], 0
    for entry, document in enumerate(documents.tolist()):
        for token in range(int(lengths[document])):
            if extra and taken and taken % seq_len == 0:
                rows.append((entry, token))
            taken += 1
            if not extra and taken % seq_len == 0:
                rows.append((entry, token + 1))
    return rows


def test_sample_index_is_a_walk_over_the_tokens() -> None:
    random = np.random.default_rng(1)
    for _ in range(600):
        count = int(random.integers(1, 30))
        lengths = random.integers(0, random.choice([3, 12, 80]), count).astype(np.int32)
        documents = random.permutation(np.tile(np.arange(count), int(random.integers(1, 4)))).astype(np.int32)
        tokens = int(lengths[documents].sum())
        seq_len, extra = int(random.choice([1, 2, 5, 16, 70])), bool(random.integers(2))
        shape = SampleShape(seq_len, extra)
        samples = shape.count(tokens)
        found = sample_index(lengths, documents, samples, shape)
        assert found.dtype == np.int32
        assert found.tolist() == [list(row) for row in walk(lengths, documents, seq_len, extra)[: samples + 1]]


def test_a_partial_last_sample_ends_with_the_last_token() -> None:
    lengths, documents = np.array([3, 4, 2], np.int32), np.array([1, 0, 2], np.int32)
    shape = SampleShape(5, keep_partial=True)
    samples = shape.count(9)
    assert sample_index(lengths, documents, samples, shape).tolist() == [[0, 0], [1, 1], [2, 1]]
    empty = np.array([3, 4, 2, 0], np.int32)
    last_is_empty = np.array([1, 0, 2, 3], np.int32)
    assert sample_index(empty, last_is_empty, samples, shape).tolist() == [[0, 0], [1, 1], [2, 1]]


def test_long_data_is_counted_in_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two documents of 2**31 - 1 tokens; the positions do not fit 32 bits, the rows do."""
    monkeypatch.setattr("automodel_cli.data.megatron.gpt_index._SLICE", 3)  # pieces do not show
    lengths = np.full(2, 2**31 - 1, np.int32)
    seq_len = 2**29
    shape = SampleShape(seq_len)
    samples = shape.count(2 * (2**31 - 1))
    rows = sample_index(lengths, np.array([1, 0], np.int32), samples, shape)
    assert rows.tolist() == [
        [0, 0], [0, 2**29], [0, 2**30], [0, 3 * 2**29],
        [1, 1], [1, 2**29 + 1], [1, 2**30 + 1], [1, 3 * 2**29 + 1],
    ]  # fmt: skip


def test_nothing_to_index() -> None:
    lengths = np.zeros(3, np.int32)
    assert sample_index(lengths, np.arange(3, dtype=np.int32), 0, SampleShape(4)).tolist() == [[0, 0]]
    empty = build_indices(lengths, (1, 1), Epochs(0, 1, None), SampleShape(4), seed=0)
    assert len(empty) == 0 and len(empty.document_index) == 0


# ------------------------------------------------------------------------------------------- shuffles


def test_every_sequence_once_an_epoch_and_the_last_epoch_behind() -> None:
    epochs = Epochs(100, 3, 20)
    documents = document_index(5, 25, epochs, np.random.RandomState(1))
    assert documents.dtype == np.int32
    assert sorted(documents[:40]) == sorted([*range(5, 25), *range(5, 25)])
    assert sorted(documents[40:]) == list(range(5, 25))
    shuffled = shuffle_index(30, 20, np.random.RandomState(1))
    assert shuffled.dtype == np.uint32
    assert sorted(shuffled[:20]) == list(range(20))
    assert sorted(shuffled[20:]) == list(range(20, 30))


def test_weights_are_added_up_as_numpy_does() -> None:
    assert normalize([30, 70]) == [0.3, 0.7]
    assert math.isclose(sum(normalize(list(range(1, 100)))), 1)


# ------------------------------------------------------------------------------------------- references


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is not there")
@pytest.mark.parametrize("case", ["single", "blend_weighted", "blend_unweighted"])
def test_reference_arrays(case: str) -> None:
    stored = np.load(SHARED / f"{case}.npz")
    bounds = json.loads(str(stored["split_matrix"]))
    compared = 0
    for number, split in enumerate(SPLITS):
        if f"{split}/num_datasets" not in stored.files:
            assert bounds[number] is None or f"{split}/len" not in stored.files
            continue
        for dataset in range(int(stored[f"{split}/num_datasets"])):
            description = json.loads(str(stored[f"{split}/{dataset}/description"]))
            assert list(parse_split(description["split"]))[number] == tuple(bounds[number])
            prefix = SHARED / Path(description["dataset_path"]).name
            file = inspect_prefix(prefix)
            lengths = MegatronIndex(file).lengths()
            begin, end = split_range(tuple(bounds[number]), file.num_sequences)
            assert [begin, end] == stored[f"{split}/{dataset}/indices"].tolist()
            tokens = int(lengths[begin:end].sum())
            epochs = count_epochs(tokens, description["num_samples"], SampleShape(64))
            found = build_indices(lengths, (begin, end), epochs, SampleShape(64), seed=1234)
            for name in ("document_index", "sample_index", "shuffle_index"):
                expected = stored[f"{split}/{dataset}/{name}"]
                assert getattr(found, name).dtype == expected.dtype
                np.testing.assert_array_equal(getattr(found, name), expected)
            compared += 1
    assert compared >= 2
