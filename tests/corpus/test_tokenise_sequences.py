"""From a unit to sequences: sentences, keys, end of document, pieces of one document, ids around each text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from automodel_cli.corpus.sentences import SentenceRule
from automodel_cli.corpus.tokenise_sequences import SequenceTokeniser, SequenceWork
from automodel_cli.corpus.tokenizer import ByteTokenizer
from automodel_cli.corpus.units import ReadOptions, SequenceChunk, Unit

ONE = ReadOptions(lists=True)
TWO = ReadOptions("a", more_keys=("b",), lists=True)


def tokeniser(read: ReadOptions = ONE, *, append_eod: bool = True) -> SequenceTokeniser:
    return SequenceWork(Path("none"), "auto", read, "<u2", append_eod).tokeniser(ByteTokenizer())


def rows(*values: object) -> Unit:
    return Unit("jsonl", "a.jsonl", 3, {}, payload="\n".join(map(json.dumps, values)).encode(), size=77)


def sequences_of(chunk: SequenceChunk, field: int = 0) -> list[list[list[int]]]:
    before = sum(f.num_tokens for f in chunk.fields[:field])
    found = chunk.fields[field]
    flat = chunk.tokens[before : before + found.num_tokens]
    parts = (
        [part.tolist() for part in np.split(flat, np.cumsum(found.lengths)[:-1])]
        if len(found.lengths)
        else []
    )
    documents, first = [], 0
    for size in found.sizes.tolist():
        documents.append(parts[first : first + size])
        first += size
    return documents


def test_texts_lists_and_empty_documents() -> None:
    chunk = tokeniser()(rows({"text": "ab"}, {"text": ["c", "", "d"]}, {"text": ""}, {"text": []}, {"x": 1}))
    assert sequences_of(chunk) == [[[97, 98, 256]], [[99], [100, 256]], [], []]
    assert chunk.tokens.dtype == np.dtype("<u2") and chunk.fields[0].lengths.tolist() == [3, 1, 2]
    assert (chunk.file, chunk.rows, chunk.text_bytes) == (3, 5, 77)
    assert [(bad.row, bad.reason, bad.after) for bad in chunk.bad] == [(4, "no text key", 4)]
    without = tokeniser(append_eod=False)(rows({"text": "ab"}, {"text": ["c", ""]}))
    assert sequences_of(without) == [[[97, 98]], [[99]]]


def test_fields_follow_each_other() -> None:
    chunk = tokeniser(TWO)(rows({"a": "x", "b": ["y", "z"]}, {"a": "", "b": "w"}))
    assert sequences_of(chunk, 0) == [[[120, 256]], []]
    assert sequences_of(chunk, 1) == [[[121], [122, 256]], [[119, 256]]]
    assert len(chunk.tokens) == sum(field.num_tokens for field in chunk.fields) == 7


def test_many_texts_are_narrowed_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("automodel_cli.corpus.tokenise_sequences._CHARACTERS_AT_ONCE", 40)
    texts = ["x" * k for k in range(30)]
    chunk = tokeniser()(rows(*({"text": text} for text in texts)))
    assert sequences_of(chunk) == [[[120] * k + [256]] if k else [] for k in range(30)]


def test_a_document_in_pieces_gets_its_ids_around_it_once() -> None:
    class Around(ByteTokenizer):
        def added_ids(self) -> tuple[list[int], list[int]]:
            return [1], [2, 3]

    work = SequenceWork(Path("none"), "auto", ONE, "<u2", append_eod=True)
    encode = work.tokeniser(Around())
    found = [
        encode(Unit("piece", "a", 0, {}, payload=data, continues=continues, unfinished=unfinished))
        for data, continues, unfinished in ((b"a", False, True), (b"b", True, True), (b"c", True, False))
    ]
    assert [chunk.tokens.tolist() for chunk in found] == [[1, 97], [98], [99, 2, 3, 256]]
    assert [(chunk.continues, chunk.unfinished) for chunk in found] == [
        (False, True),
        (True, True),
        (True, False),
    ]
    empty = encode(rows({"text": ""}))  # a text of no tokens still is what the tokenizer adds
    assert empty.tokens.tolist() == [1, 2, 3, 256]


def test_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SentenceRule, "splitter", lambda self: lambda text: text.split("."))
    work = SequenceWork(Path("none"), "auto", ONE, "<u2", append_eod=True, sentences=SentenceRule())
    chunk = work.tokeniser(ByteTokenizer())(rows({"text": "a.b..c"}, {"text": ["d.e"]}, {"text": "."}))
    assert sequences_of(chunk) == [[[97], [98], [99, 256]], [[100, 46, 101, 256]], []]


def test_a_worker_opens_the_folder(tmp_path: Path) -> None:
    ByteTokenizer().save(tmp_path / "tokenizer")
    work = SequenceWork(tmp_path / "tokenizer", "auto", ONE, "<i4", append_eod=False)
    chunk = work.tokeniser()(rows({"text": "é"}))
    assert chunk.tokens.dtype == np.dtype("<i4") and chunk.tokens.tolist() == [0xC3, 0xA9]
