"""file_pattern: what it finds, what it says, what it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.token_files import write_token_file

from automodel_cli.corpus.formats.manifest import CorpusManifest
from automodel_cli.corpus.formats.nanogpt_bin import HEADER_BYTES, header_bytes
from automodel_cli.data.files.token_files import open_token_files
from automodel_cli.errors import DataError

Corpus = Callable[..., CorpusManifest]
TOKENS = np.arange(100)


def _names(source: Any) -> list[str]:
    return [file.path.name for file in source.files]


def test_glob_is_sorted_and_other_files_are_left_alone(tmp_path: Path) -> None:
    for name in ("b_10.bin", "a_2.bin", "a_1.bin"):
        write_token_file(tmp_path / name, TOKENS)
    (tmp_path / "notes.txt").write_text("no tokens")
    assert _names(open_token_files(str(tmp_path / "*"))) == ["a_1.bin", "a_2.bin", "b_10.bin"]


def test_a_list_keeps_its_order_and_may_hold_globs(tmp_path: Path) -> None:
    for name in ("a.bin", "b1.bin", "b2.bin"):
        write_token_file(tmp_path / name, TOKENS)
    source = open_token_files([tmp_path / "b2.bin", str(tmp_path / "*.bin")])
    assert _names(source) == ["b2.bin", "a.bin", "b1.bin"]
    assert source.notes == ("1 file(s) were named twice and are read once",)


def test_brackets_in_a_real_name_are_no_pattern(tmp_path: Path) -> None:
    write_token_file(tmp_path / "data[1].bin", TOKENS)
    assert _names(open_token_files(str(tmp_path / "data[1].bin"))) == ["data[1].bin"]


def test_no_match_says_what_is_there(tmp_path: Path) -> None:
    write_token_file(tmp_path / "dataset.bin", TOKENS)
    with pytest.raises(DataError, match=r"no file matches .*train\.bin") as caught:
        open_token_files(str(tmp_path / "train.bin"))
    assert "dataset.bin" in caught.value.hint
    with pytest.raises(DataError, match="no file matches"):
        open_token_files(str(tmp_path / "nowhere" / "deep" / "*.bin"))
    with pytest.raises(DataError, match="empty list"):
        open_token_files([])


def test_a_file_whose_writer_was_killed_is_refused(tmp_path: Path) -> None:
    """NeMo's tool writes the count last: a killed run says 0 tokens, and reading that must not hang."""
    path = tmp_path / "dataset.bin"
    path.write_bytes(header_bytes(0, np.dtype("<u2")))
    with pytest.raises(DataError, match="holds no tokens"):
        open_token_files(str(path))
    path.write_bytes(header_bytes(0, np.dtype("<u2")) + b"\x01\x00" * 50)
    with pytest.raises(DataError, match="says it holds 0 tokens"):
        open_token_files(str(path))
    path.write_bytes(header_bytes(100, np.dtype("<u2"))[:HEADER_BYTES] + b"\x01\x00" * 50)
    with pytest.raises(DataError, match="says it holds 100 tokens"):
        open_token_files(str(path))


def test_first_shard_of_a_corpus_means_all_and_says_so(corpus: Corpus) -> None:
    shards = {"dataset.bin": TOKENS, "dataset_00001.bin": TOKENS + 1, "val.bin": TOKENS + 2}
    folder = corpus(shards).folder
    source = open_token_files(str(folder / "dataset.bin"))
    assert _names(source) == ["dataset.bin", "dataset_00001.bin"]
    assert len(source.notes) == 1
    assert "first of 2 shards" in source.notes[0]
    assert source.split == "train"
    assert _names(open_token_files([str(folder / "dataset.bin")])) == ["dataset.bin"]
    assert _names(open_token_files(str(folder / "dataset_00001.bin"))) == ["dataset_00001.bin"]
    assert _names(open_token_files(str(folder / "val.bin"))) == ["val.bin"]
    assert _names(open_token_files(folder)) == ["dataset.bin", "dataset_00001.bin"]


def test_mixed_splits_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    folder = corpus({"dataset.bin": TOKENS, "val.bin": TOKENS}).folder
    for pattern in (f"{folder}/*.bin", [str(folder / "dataset.bin"), str(folder / "val.bin")]):
        with pytest.raises(DataError, match=r"mixes training and validation files: dataset\.bin and val\.bin"):
            open_token_files(pattern)
    for name in ("fineweb_train_000001.bin", "fineweb_val_000000.bin"):  # no manifest: the names speak
        write_token_file(tmp_path / name, TOKENS)
    with pytest.raises(DataError, match="mixes"):
        open_token_files(str(tmp_path / "fineweb_*.bin"))
    assert len(open_token_files(str(tmp_path / "fineweb_val_*.bin")).files) == 1
    explicit = [tmp_path / "fineweb_train_000001.bin", tmp_path / "fineweb_val_000000.bin"]
    assert len(open_token_files(explicit).files) == 2


def test_fingerprint_survives_a_move_and_is_the_manifests(corpus: Corpus, tmp_path: Path) -> None:
    manifest = corpus({"dataset.bin": TOKENS, "dataset_00001.bin": TOKENS + 1, "val.bin": TOKENS})
    before = open_token_files(str(manifest.folder / "dataset.bin"))
    assert before.fingerprint == manifest.fingerprint("train")
    shutil.move(manifest.folder, tmp_path / "elsewhere")
    after = open_token_files(str(tmp_path / "elsewhere" / "dataset*.bin"))
    assert after.fingerprint == before.fingerprint
    alone = open_token_files([tmp_path / "elsewhere" / "dataset.bin"])
    swapped = open_token_files([tmp_path / "elsewhere" / "dataset_00001.bin", tmp_path / "elsewhere" / "dataset.bin"])
    assert len({before.fingerprint, alone.fingerprint, swapped.fingerprint}) == 3


def test_fingerprint_without_a_manifest_sees_size_head_middle_and_tail(tmp_path: Path) -> None:
    def fingerprint(tokens: np.ndarray, dtype: str = "uint16", layout: Any = "nemo") -> str:
        write_token_file(tmp_path / "x.bin", tokens, dtype=dtype, layout=layout)
        return open_token_files(str(tmp_path / "x.bin"), raw_dtype=dtype).fingerprint

    base = np.arange(20_000)
    changed = []
    for position in (0, 10_000, 19_999):
        tokens = base.copy()
        tokens[position] += 1
        changed.append(fingerprint(tokens))
    assert len({fingerprint(base), fingerprint(base[:-1]), *changed}) == 5
    assert fingerprint(base) == fingerprint(base, "uint32") == fingerprint(base, layout="raw")


def test_a_file_that_is_not_the_manifests_is_refused(corpus: Corpus) -> None:
    folder = corpus({"dataset.bin": TOKENS}).folder
    write_token_file(folder / "dataset.bin", TOKENS[:50])
    with pytest.raises(DataError, match=r"holds 50 tokens, its manifest\.json says 100"):
        open_token_files(str(folder / "dataset.bin"))


def test_raw_dtype_comes_from_the_manifest(corpus: Corpus) -> None:
    folder = corpus({"train.bin": TOKENS}, layout="raw", vocab_size=100_277, eot="append").folder
    source = open_token_files(str(folder / "train.bin"))
    assert source.files[0].dtype == np.uint32
    assert sum(file.num_tokens for file in source.files) == 100
