"""Ids without a row in the model: named (id, file, position) in the batch that meets them, whatever the data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.token_files import write_megatron_file, write_token_file

from automodel_cli.data.eval_loader import EvalLoader
from automodel_cli.data.files import token_dataset
from automodel_cli.data.megatron_dataset import MegatronPretraining
from automodel_cli.data.nanogpt_dataset import NanogptDataset
from automodel_cli.data.token_loader import TokenLoader
from automodel_cli.errors import DataError

VOCABULARY, COUNT, AT = 100, 6000, 4321


@pytest.fixture(autouse=True)
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the sample before a run misses the one wrong id."""
    monkeypatch.setattr(token_dataset, "_SAMPLES", 2)
    monkeypatch.setattr(token_dataset, "_SAMPLE_TOKENS", 64)


def _ids(wrong: int) -> np.ndarray:
    ids = np.arange(COUNT) % VOCABULARY
    ids[AT] = wrong
    return ids


def _nanogpt(folder: Path, wrong: int, **arguments: Any) -> NanogptDataset:
    write_token_file(folder / "a.bin", _ids(wrong), dtype="uint32" if wrong > 65_535 else "uint16")
    if arguments.pop("shards", False):
        write_token_file(folder / "b.bin", _ids(0), dtype=arguments.pop("other", "uint16"))
    return NanogptDataset(f"{folder}/*.bin", 16, **arguments)


def _megatron(folder: Path, wrong: int, **arguments: Any) -> MegatronPretraining:
    ids = _ids(wrong).tolist()
    documents = [[ids[first : first + 40]] for first in range(0, COUNT, 40)]
    write_megatron_file(folder / "a", documents, dtype="int32")
    return MegatronPretraining({"train": [str(folder / "a")]}, 16, **arguments)


SETS = {
    "file order": lambda folder, wrong: _nanogpt(folder, wrong),
    "shuffled": lambda folder, wrong: _nanogpt(folder, wrong, shuffle_files=True),
    "not mapped": lambda folder, wrong: _nanogpt(folder, wrong, mmap=False),
    "shards": lambda folder, wrong: _nanogpt(folder, wrong, shuffle_files=True, shards=True),
    "shards of two types": lambda folder, wrong: _nanogpt(
        folder, wrong, shuffle_files=True, shards=True, other="uint32"
    ),
    "megatron": lambda folder, wrong: _megatron(folder, wrong),
    "stateless": lambda folder, wrong: _megatron(folder, wrong, order="stateless"),
}


@pytest.mark.parametrize("wrong", [VOCABULARY, 60_000])
@pytest.mark.parametrize("kind", SETS)
def test_an_id_beyond_is_named_when_it_is_met(tmp_path: Path, kind: str, wrong: int) -> None:
    dataset = SETS[kind](tmp_path, wrong)
    dataset.check_vocab(VOCABULARY)
    message = rf"a\.bin holds token id {wrong:,} at position {AT:,}, the model has {VOCABULARY} ids"
    for loader in (
        TokenLoader(dataset, global_batch_size=4, local_batch_size=4),
        EvalLoader(dataset, local_batch_size=4),
    ):
        with pytest.raises(DataError, match=message):
            for _ in loader:
                pass


def test_negative_ids_are_named(tmp_path: Path) -> None:
    dataset = _megatron(tmp_path, -7)
    dataset.check_vocab(VOCABULARY)
    with pytest.raises(DataError, match=f"token id -7 at position {AT:,}"):
        for _ in TokenLoader(dataset, global_batch_size=4, local_batch_size=4):
            pass


@pytest.mark.parametrize("kind", SETS)
def test_sound_files_give_the_same_rows_checked_or_not(tmp_path: Path, kind: str) -> None:
    dataset = SETS[kind](tmp_path, 5)
    rows = [np.empty((24, 17), dtype=np.int64) for _ in range(2)]
    dataset.read_windows(dataset.sample_offsets(np.arange(24)), rows[0])
    dataset.check_vocab(VOCABULARY)
    dataset.read_windows(dataset.sample_offsets(np.arange(24)), rows[1])
    np.testing.assert_array_equal(*rows)


def test_padding_is_no_id(tmp_path: Path) -> None:
    write_megatron_file(tmp_path / "a", [[list(range(50))]], dtype="uint16")
    dataset = MegatronPretraining(
        {"valid": [str(tmp_path / "a")]},
        16,
        splits_to_build="validation",
        drop_last_partial_validation_sequence=False,
    )
    dataset.check_vocab(VOCABULARY)
    assert len(list(EvalLoader(dataset, local_batch_size=2))) == 2


def test_a_model_of_more_ids_than_uint16_holds_needs_to_be_told(tmp_path: Path) -> None:
    (np.arange(3000) % 999).astype("<u2").tofile(tmp_path / "a.bin")
    dataset = NanogptDataset(tmp_path / "a.bin", 16)
    assert any("read as uint16" in note for note in dataset.notes)
    dataset.check_vocab(65_536)
    with pytest.raises(DataError, match="has no header") as caught:
        dataset.check_vocab(100_000)
    assert "raw_dtype: uint32" in caught.value.hint
    told = NanogptDataset(tmp_path / "a.bin", 16, raw_dtype="uint16")
    told.check_vocab(100_000)
    assert told.notes == []


def test_the_largest_id_is_looked_for_in_the_split_alone(tmp_path: Path) -> None:
    write_megatron_file(tmp_path / "a", [[[number] * 20] for number in range(10)], dtype="uint16")
    found = {
        split: MegatronPretraining(str(tmp_path / "a"), 16, split="90,10,0", splits_to_build=split).max_token_id()
        for split in ("train", "validation")
    }
    assert found == {"train": 8, "validation": 9}
