"""Units to ids: end-of-text, pieces of a document, keys, sentences, ids around each text, cuts that change nothing."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import regex
import tiktoken_ext.openai_public as published

from automodel_cli.corpus.build import tokenize
from automodel_cli.corpus.build.tokenize import EncodeTask, UnitEncoder
from automodel_cli.corpus.documents.sentences import SentenceRule
from automodel_cli.corpus.documents.units import ReadOptions, TokenChunk, Unit
from automodel_cli.corpus.tokenizer import ByteTokenizer
from automodel_cli.corpus.tokenizers.train_bpe import train_bpe


def between(eot: str) -> UnitEncoder:
    """As nanoGPT's files have it: one text a document, 256 before it, after it, or nowhere."""
    side = {"prepend": "before", "append": "after"}.get(eot)
    around = {side: (256,)} if side else {}
    return EncodeTask(Path("none"), "auto", ReadOptions(), "<u2", tokenizer=ByteTokenizer(), **around).open()


def ids(eot: str, texts: list[str], **rest: bool) -> TokenChunk:
    tokens, field = between(eot).encode(texts, **rest)
    return TokenChunk(tokens, [field])


@pytest.mark.parametrize(
    ("eot", "expected"),
    [("prepend", [256, 97, 256, 256, 98]), ("append", [97, 256, 256, 98, 256]), ("none", [97, 98])],
)
def test_end_of_text(eot: str, expected: list[int]) -> None:
    chunk = ids(eot, ["a", "", "b"])
    assert chunk.tokens.tolist() == expected and chunk.tokens.dtype == np.uint16
    assert chunk.lengths.sum() == len(expected) and len(chunk.lengths) == 3


@pytest.mark.parametrize("eot", ["prepend", "append", "none"])
def test_pieces_of_a_document_join_to_the_whole(eot: str) -> None:
    whole = ids(eot, ["abcdef"]).tokens.tolist()
    parts = [
        ids(eot, ["ab"], unfinished=True),
        ids(eot, ["cd"], continues=True, unfinished=True),
        ids(eot, ["ef"], continues=True),
    ]
    assert [i for part in parts for i in part.tokens.tolist()] == whole


def test_narrowing_in_steps_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"text {k} " * (k % 5) for k in range(50)]
    whole = ids("prepend", texts)
    monkeypatch.setattr(tokenize, "_IDS_AT_ONCE", 10)
    again = ids("prepend", texts)
    assert np.array_equal(again.tokens, whole.tokens) and np.array_equal(again.lengths, whole.lengths)


def test_a_unit_without_documents_is_empty() -> None:
    unit = Unit("jsonl", "a", 0, {}, payload=b'{"text": null}\n', size=15)
    chunk = between("prepend")(unit)
    assert len(chunk.tokens) == len(chunk.lengths) == 0
    assert (chunk.rows, len(chunk.bad), chunk.text_bytes) == (1, 1, 15)


ONE = ReadOptions(lists=True)
TWO = ReadOptions("a", more_keys=("b",), lists=True)


def encoder(read: ReadOptions = ONE, *, append_eod: bool = True) -> UnitEncoder:
    end = (256,) if append_eod else ()
    return EncodeTask(Path("none"), "auto", read, "<u2", end=end, tokenizer=ByteTokenizer()).open()


def rows(*values: object) -> Unit:
    return Unit("jsonl", "a.jsonl", 3, {}, payload="\n".join(map(json.dumps, values)).encode(), size=77)


def sequences_of(chunk: TokenChunk, field: int = 0) -> list[list[list[int]]]:
    before = sum(f.num_tokens for f in chunk.fields[:field])
    found = chunk.fields[field]
    flat = chunk.tokens[before : before + found.num_tokens]
    parts = [part.tolist() for part in np.split(flat, np.cumsum(found.lengths)[:-1])] if len(found.lengths) else []
    documents, first = [], 0
    for size in found.sizes.tolist():
        documents.append(parts[first : first + size])
        first += size
    return documents


def test_texts_lists_and_empty_documents() -> None:
    chunk = encoder()(rows({"text": "ab"}, {"text": ["c", "", "d"]}, {"text": ""}, {"text": []}, {"x": 1}))
    assert sequences_of(chunk) == [[[97, 98, 256]], [[99], [100, 256]], [], []]
    assert chunk.tokens.dtype == np.dtype("<u2") and chunk.fields[0].lengths.tolist() == [3, 1, 2]
    assert (chunk.file, chunk.rows, chunk.text_bytes) == (3, 5, 77)
    assert [(bad.row, bad.reason, bad.after) for bad in chunk.bad] == [(4, "no text key", 4)]
    without = encoder(append_eod=False)(rows({"text": "ab"}, {"text": ["c", ""]}))
    assert sequences_of(without) == [[[97, 98]], [[99]]]


def test_fields_follow_each_other() -> None:
    chunk = encoder(TWO)(rows({"a": "x", "b": ["y", "z"]}, {"a": "", "b": "w"}))
    assert sequences_of(chunk, 0) == [[[120, 256]], []]
    assert sequences_of(chunk, 1) == [[[121], [122, 256]], [[119, 256]]]
    assert len(chunk.tokens) == sum(field.num_tokens for field in chunk.fields) == 7


def test_many_texts_are_narrowed_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize, "_IDS_AT_ONCE", 10)
    texts = ["x" * k for k in range(30)]
    chunk = encoder()(rows(*({"text": text} for text in texts)))
    assert sequences_of(chunk) == [[[120] * k + [256]] if k else [] for k in range(30)]


def test_a_document_in_pieces_gets_its_ids_around_it_once() -> None:
    task = EncodeTask(Path("none"), "auto", ONE, "<u2", before=(1,), after=(2, 3), end=(256,))
    encode = replace(task, tokenizer=ByteTokenizer()).open()
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
    task = EncodeTask(Path("none"), "auto", ONE, "<u2", end=(256,), sentences=SentenceRule())
    chunk = replace(task, tokenizer=ByteTokenizer()).open()(rows({"text": "a.b..c"}, {"text": ["d.e"]}, {"text": "."}))
    assert sequences_of(chunk) == [[[97], [98], [99, 256]], [[100, 46, 101, 256]], []]


def test_a_worker_opens_the_folder(tmp_path: Path) -> None:
    ByteTokenizer().save(tmp_path / "tokenizer")
    chunk = EncodeTask(tmp_path / "tokenizer", "auto", ONE, "<i4").open()(rows({"text": "é"}))
    assert chunk.tokens.dtype == np.dtype("<i4") and chunk.tokens.tolist() == [0xC3, 0xA9]


def patterns() -> dict[str, str]:
    """The split patterns of tiktoken's encodings, taken from it without loading their ranks."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "load_tiktoken_bpe", lambda *args, **kwargs: {})
        patch.setattr(published, "data_gym_to_mergeable_bpe_ranks", lambda *args, **kwargs: {})
        for name in ("gpt2", "r50k_base", "cl100k_base", "o200k_base"):
            found[name] = getattr(published, name)()["pat_str"]
    return found


def test_a_cut_between_letter_and_space_never_crosses_a_match() -> None:
    """What ``cuts_at_spaces`` promises for the tiktoken encodings: cut texts give the same pieces."""
    rng = random.Random(0)
    parts = ["word", "Über", "漢字", "don't", "I'LL", "42", "é\u0301", "x\n", "/", "'s", ".", "!!"]
    parts += [" ", "  ", "\n", "\r\n", "\t"]
    for name, pattern in patterns().items():
        for _ in range(300):
            text = "".join(rng.choices(parts, k=20))
            whole = regex.findall(pattern, text)
            for k in range(1, len(text)):
                before, after = text[k - 1], text[k]
                if before.isalpha() and (after == " " or (after == "\n" and before.isascii())):
                    assert regex.findall(pattern, text[:k]) + regex.findall(pattern, text[k:]) == whole, (
                        name,
                        text,
                    )


def test_a_trained_bpe_keeps_that_promise() -> None:
    text = "the quick brown fox jumps over the lazy dog. Über naïve\ncafés isn't  it? " * 20
    tokenizer = train_bpe([text], 300)
    assert tokenizer.cuts_at_spaces
    whole = tokenizer.encode(text)
    for k in range(1, 400):
        if text[k - 1].isalpha() and text[k] in " \n":
            assert tokenizer.encode(text[:k]) + tokenizer.encode(text[k:]) == whole
