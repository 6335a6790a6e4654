"""Windows over token files, against plain numpy on what was written."""

from __future__ import annotations

import logging
import pickle
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.effort import examples
from tests.token_files import write_token_file
from torch.utils.data import DataLoader

from automodel_cli.corpus.formats.bos_index import bos_index_path
from automodel_cli.corpus.formats.manifest import CorpusManifest, describe_file
from automodel_cli.corpus.formats.nanogpt_bin import header_bytes
from automodel_cli.corpus.formats.token_reader import TokenReader
from automodel_cli.data.nanogpt_dataset import NanogptDataset
from automodel_cli.errors import ConfigError, DataError

Corpus = Callable[..., CorpusManifest]
EOT = 50256


def _windows(shards: list[np.ndarray], seq_len: int) -> np.ndarray:
    """All windows the plain way."""
    rows = [shard[start : start + seq_len + 1] for shard in shards for start in range(0, len(shard) - seq_len, seq_len)]
    return np.stack(rows).astype(np.int64)


def _filled(dataset: NanogptDataset, numbers: np.ndarray) -> np.ndarray:
    out = np.full((len(numbers), dataset.seq_len + 1), -7, dtype=np.int64)
    dataset.read_samples(numbers, out)
    return out


def _shards(folder: Path, sizes: list[int], **options: Any) -> list[np.ndarray]:
    """Shards of distinct tokens, so that any misplaced row shows."""
    ends = np.cumsum(sizes)
    shards = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    for number, tokens in enumerate(shards):
        write_token_file(folder / f"s{number:04d}.bin", tokens, dtype="uint32", **options)
    return shards


@pytest.mark.parametrize("layout", ["nemo", "legacy", "raw"])
@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize("mmap", [True, False, "auto"])
def test_every_layout_and_way_of_reading(tmp_path: Path, layout: Any, dtype: str, mmap: Any) -> None:
    if (layout, dtype) == ("legacy", "uint32"):
        dtype = "uint16"  # the legacy header knows no other
    tokens = np.arange(1000) * 61
    write_token_file(tmp_path / "x.bin", tokens, dtype=dtype, layout=layout)
    dataset = NanogptDataset(str(tmp_path / "x.bin"), 32, mmap=mmap, raw_dtype=dtype)
    assert np.array_equal(_filled(dataset, np.arange(len(dataset))), _windows([tokens], 32))
    offset = 0 if layout == "raw" else 1024
    reference = np.memmap(tmp_path / "x.bin", dtype, "r", offset=offset)[64:97]  # as nanoGPT reads
    item = dataset[2]
    assert item["input_ids"].tolist() == reference[:-1].tolist()
    assert item["labels"].tolist() == reference[1:].tolist()
    assert item["input_ids"].dtype == item["labels"].dtype == torch.int64


def test_header_bytes_written_by_hand(tmp_path: Path) -> None:
    """Independent of our writer: NeMo's header as its documentation has it."""
    head = np.zeros(256, "<i4")
    head[:4] = 278895051, 1, 11, 2
    (tmp_path / "x.bin").write_bytes(head.tobytes() + np.arange(11, dtype="<u2").tobytes())
    dataset = NanogptDataset(str(tmp_path / "x.bin"), 5)
    assert [item["input_ids"].tolist() for item in dataset] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert dataset[1]["labels"].tolist() == [6, 7, 8, 9, 10]


@examples(60)
@given(
    sizes=st.lists(st.integers(1, 80), min_size=1, max_size=6),
    seq_len=st.integers(1, 12),
    shuffle=st.booleans(),
    seed=st.integers(0, 5),
)
def test_every_window_once_an_epoch_and_never_across_shards(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seq_len: int, shuffle: bool, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    shards = _shards(folder, sizes)
    if all(size <= seq_len for size in sizes):
        with pytest.raises(DataError, match="no window"):
            NanogptDataset(f"{folder}/*.bin", seq_len)
        return
    dataset = NanogptDataset(f"{folder}/*.bin", seq_len, shuffle_files=shuffle, seed=seed)
    expected = _windows([shard for shard in shards if len(shard) > seq_len], seq_len)
    assert len(dataset) == len(expected)
    for epoch in range(3):
        rows = _filled(dataset, epoch * len(dataset) + np.arange(len(dataset)))
        if not shuffle:
            assert np.array_equal(rows, expected)
        assert np.array_equal(rows[np.argsort(rows[:, 0])], expected)


def test_shuffle_differs_by_epoch_and_seed_and_is_the_same_again(tmp_path: Path) -> None:
    _shards(tmp_path, [2000, 3000])
    pattern = f"{tmp_path}/*.bin"
    one, again = (NanogptDataset(pattern, 8, shuffle_files=True, seed=1) for _ in range(2))
    other = NanogptDataset(pattern, 8, shuffle_files=True, seed=2)
    numbers = np.arange(len(one))
    first = _filled(one, numbers)
    assert np.array_equal(first, _filled(again, numbers))
    assert not np.array_equal(first, _filled(other, numbers))
    assert not np.array_equal(first, _filled(one, numbers + len(one)))
    assert abs(np.corrcoef(first[:, 0], numbers)[0, 1]) < 0.15


def test_runs_cross_shards_and_epochs(tmp_path: Path) -> None:
    shards = _shards(tmp_path, [21, 40, 21])
    dataset = NanogptDataset(f"{tmp_path}/*.bin", 5)
    expected = _windows(shards, 5)
    numbers = np.arange(3 * len(dataset))
    for size in (1, 2, 3, 7, len(numbers)):
        rows = np.concatenate([_filled(dataset, part) for part in np.array_split(numbers, size)])
        assert np.array_equal(rows, np.tile(expected, (3, 1)))


@examples(40)
@given(lengths=st.lists(st.integers(0, 25), min_size=3, max_size=30), seq_len=st.integers(1, 20))
def test_aligned_windows_start_at_bos(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], seq_len: int
) -> None:
    folder = tmp_path_factory.mktemp("aligned")
    tokens = np.concatenate([np.r_[EOT, np.arange(length)] for length in lengths])
    write_token_file(folder / "a.bin", tokens, starts=np.flatnonzero(tokens == EOT))
    write_token_file(folder / "b.bin", tokens)
    bos_index_path(folder / "b.bin").unlink()
    try:
        dataset = NanogptDataset(f"{folder}/*.bin", seq_len, align_to_bos=True, bos_token=EOT)
    except DataError:
        assert len(tokens) <= seq_len or not (tokens[: len(tokens) - seq_len] == EOT).any()
        return
    rows = _filled(dataset, np.arange(len(dataset)))
    half = len(dataset) // 2  # with an index and without: the same windows
    assert np.array_equal(rows[:half], rows[half:])
    assert (rows[:, 0] == EOT).all()


def test_alignment_takes_its_token_from_the_manifest(corpus: Corpus) -> None:
    tokens = np.tile(np.r_[EOT, np.arange(30)], 20)
    folder = corpus({"dataset.bin": tokens}).folder
    dataset = NanogptDataset(str(folder / "dataset.bin"), 16, align_to_bos=True)
    assert dataset.bos_token == EOT
    assert (_filled(dataset, np.arange(len(dataset)))[:, 0] == EOT).all()
    appended = corpus({"train.bin": np.tile(np.r_[np.arange(30), EOT], 20)}, "raw", layout="raw", eot="append")
    dataset = NanogptDataset(str(appended.folder / "train.bin"), 16, align_to_bos=True)
    assert (_filled(dataset, np.arange(len(dataset)))[:, 0] == 0).all()
    assert len(dataset) == 20


def test_alignment_without_a_token_or_with_a_wrong_one(tmp_path: Path) -> None:
    write_token_file(tmp_path / "x.bin", np.arange(100))
    with pytest.raises(ConfigError, match=r"needs dataset\.bos_token"):
        NanogptDataset(str(tmp_path / "x.bin"), 8, align_to_bos=True)
    bos_index_path(tmp_path / "x.bin").unlink()
    with pytest.raises(DataError, match="no window that starts at token 50256"):
        NanogptDataset(str(tmp_path / "x.bin"), 8, align_to_bos=True, bos_token=EOT)


def test_plan_names_what_decides_the_order_and_nothing_else(tmp_path: Path) -> None:
    _shards(tmp_path, [100, 100])
    pattern = f"{tmp_path}/*.bin"
    base = NanogptDataset(pattern, 8)
    assert NanogptDataset(pattern, 8, seed=5, mmap=False).plan_hash == base.plan_hash  # no shuffle: no seed
    shuffled = NanogptDataset(pattern, 8, shuffle_files=True, seed=5)
    others = [
        shuffled,
        NanogptDataset(pattern, 8, shuffle_files=True, seed=6),
        NanogptDataset(pattern, 9),
        NanogptDataset(f"{tmp_path}/s0000.bin", 8),
    ]
    assert len({base.plan_hash, *(other.plan_hash for other in others)}) == 5
    assert shuffled.plan()["order"] == "feistel-8/1"


def test_short_shards_are_noted_and_left_out(tmp_path: Path) -> None:
    _shards(tmp_path, [100, 5, 100])
    dataset = NanogptDataset(f"{tmp_path}/*.bin", 20)
    assert len(dataset) == 8
    assert dataset.notes == [
        "1 shard(s) without a window of 20 + 1 tokens are left out: 5 tokens in all (first: s0001.bin)"
    ]
    with pytest.raises(DataError, match=r"no window of 100 \+ 1 tokens fits: .* holds 100 tokens"):
        NanogptDataset(f"{tmp_path}/*.bin", 100)
    with pytest.raises(ConfigError, match="seq_len is 0"):
        NanogptDataset(f"{tmp_path}/*.bin", 0)


def test_notes_on_all_shards_and_on_old_keys(corpus: Corpus) -> None:
    folder = corpus({"dataset.bin": np.arange(100), "dataset_00001.bin": np.arange(100)}).folder
    dataset = NanogptDataset(str(folder / "dataset.bin"), 8, drop_last=True, infinite=False)
    assert len(dataset.notes) == 1
    assert "all of them are read" in dataset.notes[0]
    assert len(dataset.token_files) == 2
    assert dataset.named_split == "train"
    asked = NanogptDataset([folder / "dataset.bin"], 8, drop_last=False, infinite=True)
    assert [note.split(" has")[0] for note in asked.notes] == ["dataset.drop_last: false", "dataset.infinite"]


def test_vocabulary_is_checked(corpus: Corpus, tmp_path: Path) -> None:
    tokens = np.zeros(300_000, dtype=np.int64)
    tokens[250_001] = 60_000
    write_token_file(tmp_path / "x.bin", tokens, dtype="uint16")
    dataset = NanogptDataset(str(tmp_path / "x.bin"), 128)
    assert dataset.max_token_id() == 60_000
    dataset.check_vocab(60_001)
    with pytest.raises(DataError, match=r"token id 60,000, the model has 60,000 ids") as caught:
        dataset.check_vocab(60_000)
    assert "at least 60001" in caught.value.hint
    folder = corpus({"dataset.bin": np.arange(100)}).folder
    known = NanogptDataset(str(folder / "dataset.bin"), 8)
    known.check_vocab(50304)
    with pytest.raises(DataError, match=r"tokenized with gpt2 \(50,257 ids\), the model has 65"):
        known.check_vocab(65)


def test_vocabulary_sample_covers_all_of_small_shards(tmp_path: Path) -> None:
    for number, place in enumerate((0, 12_345, 19_999)):
        tokens = np.zeros(20_000, dtype=np.int64)
        tokens[place] = 100 + number
        write_token_file(tmp_path / f"{number}.bin", tokens)
    dataset = NanogptDataset(f"{tmp_path}/*.bin", 8)
    assert dataset._sampled_maxima() == {0: 100, 1: 101, 2: 102}


def test_no_mmap_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shards = _shards(tmp_path, [50] * 5)

    def refuse(*_: object, **__: object) -> None:
        raise OSError("No such device")

    monkeypatch.setattr("automodel_cli.corpus.formats.watched_file.mmap.mmap", refuse)
    dataset = NanogptDataset(f"{tmp_path}/*.bin", 8)
    with caplog.at_level(logging.WARNING):
        rows = _filled(dataset, np.arange(len(dataset)))
    assert np.array_equal(rows, _windows(shards, 8))
    assert len(caplog.records) == 1
    with pytest.raises(DataError, match="cannot memory-map"):
        _filled(NanogptDataset(f"{tmp_path}/*.bin", 8, mmap=True), np.arange(2))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
def test_open_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = _shards(tmp_path, [40] * 60)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (150, 150))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    dataset = NanogptDataset(f"{tmp_path}/*.bin", 8, shuffle_files=True)
    before = len(list(Path("/proc/self/fd").iterdir()))
    rows = _filled(dataset, np.arange(len(dataset)))
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 22
    assert np.array_equal(rows[np.argsort(rows[:, 0])], _windows(shards, 8))


def test_nothing_is_mapped_at_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _shards(tmp_path, [2000] * 30)
    opened: list[Path] = []
    original = TokenReader.__init__

    def counting(self: TokenReader, file: Any, **options: Any) -> None:
        if options.get("mmap") is not False:  # the fingerprint's samples are read and closed
            opened.append(file.path)
        original(self, file, **options)

    monkeypatch.setattr(TokenReader, "__init__", counting)
    dataset = NanogptDataset(f"{tmp_path}/*.bin", 8)
    assert not opened
    dataset[0]
    assert [path.name for path in opened] == ["s0000.bin"]


def test_works_in_torch_dataloader_workers(tmp_path: Path) -> None:
    shards = _shards(tmp_path, [60, 60])
    dataset = NanogptDataset(f"{tmp_path}/*.bin", 8)
    dataset[0]  # opened before the fork
    loader = DataLoader(dataset, batch_size=3, num_workers=2)
    rows = torch.cat([batch["input_ids"] for batch in loader])
    assert np.array_equal(rows.numpy(), _windows(shards, 8)[:, :-1])
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy[5]["labels"].tolist() == dataset[5]["labels"].tolist()
    with pytest.raises(IndexError):
        dataset[-1]


def test_files_beyond_two_billion_tokens(tmp_path: Path) -> None:
    """nanoGPT's OpenWebText file has 9e9 tokens; a sparse file stands in for it."""
    path = tmp_path / "train.bin"
    with path.open("wb") as handle:
        handle.truncate(2 * 5_000_000_000)
        handle.seek(2 * 4_999_999_000)
        handle.write(np.arange(1000, dtype="<u2").tobytes())
    dataset = NanogptDataset(str(path), 999, shuffle_files=False)
    assert len(dataset) == (5_000_000_000 - 1) // 999
    start = (len(dataset) - 1) * 999
    assert start == 4_999_998_996
    assert dataset[len(dataset) - 1]["input_ids"][-3:].tolist() == [992, 993, 994]
    shuffled = NanogptDataset(str(path), 999, shuffle_files=True)
    offsets = shuffled.sample_offsets(np.arange(1000))
    assert offsets[:, 1].max() > 2**32


def test_legacy_header_is_always_two_bytes(tmp_path: Path) -> None:
    path = tmp_path / "fineweb_val_000000.bin"
    body = np.arange(41, dtype="<u2")
    path.write_bytes(header_bytes(41, np.dtype("<u2"), "legacy") + body.tobytes())
    assert len(NanogptDataset(str(path), 8)) == 5


def test_the_manifest_knows_the_separator(corpus: Corpus) -> None:
    """A corpus with beginning-of-text before its documents; another ``bos_token`` would find nothing."""
    made = corpus({"dataset.bin": np.tile(np.r_[EOT, np.arange(30)], 20)}, bos_id=5)
    path = str(made.folder / "dataset.bin")
    assert NanogptDataset(path, 16, align_to_bos=True).bos_token == EOT
    for options in ({"align_to_bos": True}, {"intra_document": True}):
        with pytest.raises(ConfigError, match=r"bos_token is 5, but the manifest says that token 50256 \(eos\)"):
            NanogptDataset(path, 16, bos_token=5, **options)
    tokens = np.tile(np.r_[5, np.arange(10, 40)], 20)
    write_token_file(made.folder / "dataset.bin", tokens, starts=np.arange(0, len(tokens), 31), dtype="uint16")
    entry = describe_file(made.folder, "dataset.bin", "tokens", "train", tokens=len(tokens), documents=20)
    replace(made, files=(entry,), separator="bos").write()
    dataset = NanogptDataset(path, 16, align_to_bos=True)
    assert dataset.bos_token == 5 and (_filled(dataset, np.arange(len(dataset)))[:, 0] == 5).all()
