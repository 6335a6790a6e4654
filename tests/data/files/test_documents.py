"""Windows that begin where documents begin, against a token-by-token loop."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.effort import examples
from tests.token_files import write_token_file

from automodel_cli.corpus.formats.bos_index import bos_index_path
from automodel_cli.corpus.formats.nanogpt_bin import inspect_token_file
from automodel_cli.corpus.formats.token_reader import TokenReader
from automodel_cli.data.files.documents import aligned_starts, document_starts

BOS = 999


def _documents(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of documents that each begin with BOS, and where."""
    pieces = [np.r_[BOS, np.arange(length) % 500] for length in lengths]
    starts = np.cumsum([0, *(len(piece) for piece in pieces)])[:-1]
    return np.concatenate(pieces), starts


def _by_hand(tokens: np.ndarray, seq_len: int) -> list[int]:
    starts, position = [], 0
    while position + seq_len + 1 <= len(tokens):
        if tokens[position] == BOS:
            starts.append(position)
            position += seq_len
        else:
            position += 1
    return starts


@examples(150)
@given(lengths=st.lists(st.integers(0, 30), min_size=1, max_size=40), seq_len=st.integers(1, 40))
def test_greedy_starts_are_those_of_a_plain_loop(lengths: list[int], seq_len: int) -> None:
    tokens, documents = _documents(lengths)
    found = aligned_starts(documents.astype(np.int32), seq_len, len(tokens))
    assert found.tolist() == _by_hand(tokens, seq_len)


def _reader(path: Path) -> TokenReader:
    return TokenReader(inspect_token_file(path))


def test_index_and_scan_agree(tmp_path: Path) -> None:
    tokens, starts = _documents([5, 0, 17, 3])
    write_token_file(tmp_path / "a.bin", tokens, starts=starts)
    write_token_file(tmp_path / "b.bin", tokens)
    bos_index_path(tmp_path / "b.bin").unlink()
    for name in ("a.bin", "b.bin"):
        assert document_starts(_reader(tmp_path / name), BOS, "prepend").tolist() == starts.tolist()


@pytest.mark.parametrize("wrong", [[1024, 1030, 1031], [3, 8, 12], [0, 6, 5], [0]])
def test_a_wrong_index_is_not_trusted(tmp_path: Path, wrong: list[int], caplog: pytest.LogCaptureFixture) -> None:
    """[1024, ...] is what NeMo's tool writes: byte offsets. [0] is right as far as it goes, and kept."""
    tokens, starts = _documents([5, 0, 17, 3])
    write_token_file(tmp_path / "a.bin", tokens)
    np.array(wrong, dtype="<i4").tofile(bos_index_path(tmp_path / "a.bin"))
    with caplog.at_level(logging.WARNING):
        found = document_starts(_reader(tmp_path / "a.bin"), BOS, "prepend")
    if wrong == [0]:
        assert found.tolist() == [0]
        assert not caplog.records
    else:
        assert found.tolist() == starts.tolist()
        assert len(caplog.records) == 1
        assert "scanning" in caplog.text


def test_appended_separators(tmp_path: Path) -> None:
    """nanoGPT's raw files: a document starts just after the separator of the one before."""
    tokens = np.array([7, 8, BOS, 9, BOS, 4, 5, 6, BOS])
    write_token_file(tmp_path / "raw.bin", tokens, starts=np.array([0, 3, 5]), layout="raw")
    assert document_starts(_reader(tmp_path / "raw.bin"), BOS, "append").tolist() == [0, 3, 5]
    bos_index_path(tmp_path / "raw.bin").unlink()
    assert document_starts(_reader(tmp_path / "raw.bin"), BOS, "append").tolist() == [0, 3, 5]


def test_without_separators_the_index_is_all_there_is(tmp_path: Path) -> None:
    write_token_file(tmp_path / "a.bin", np.arange(20), starts=np.array([0, 9]))
    assert document_starts(_reader(tmp_path / "a.bin"), -1, "none").tolist() == [0, 9]
    bos_index_path(tmp_path / "a.bin").unlink()
    assert document_starts(_reader(tmp_path / "a.bin"), -1, "none").tolist() == [0]


def test_hundred_million_tokens_worth_of_documents_take_a_moment() -> None:
    documents = np.arange(0, 10**8, 650, dtype=np.int32)
    started = time.process_time()
    found = aligned_starts(documents, 1024, 10**8)
    assert time.process_time() - started < 1.0  # about 10 ms; a mask over the index per window would take minutes
    assert np.diff(found).min() >= 1024
    assert len(found) == len(documents) // 2
