"""Parts against a plain model of the rules, for any documents and any cutting of the stream; and going on."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
from tests.token_files import MegatronReader

from automodel_cli.corpus.build.megatron_sink import MegatronLayout, MegatronSink, state_is_on_disk
from automodel_cli.corpus.documents.units import FieldSequences, TokenChunk
from automodel_cli.corpus.formats.megatron_bin import bin_path, idx_path

U2 = np.dtype("<u2")
Document = list[list[int]]
Rows = list[list[Document]]  # rows, keys, sequences


def random_rows(rng: random.Random, keys: int, count: int) -> Rows:
    def document() -> Document:
        sequences = rng.choice([0, 1, 1, 1, 2, 3])
        return [[rng.randrange(900) for _ in range(rng.randint(1, 12))] for _ in range(sequences)]

    return [[document() for _ in range(keys)] for _ in range(count)]


def chunk_of(rows: Rows, keys: int, file: int) -> TokenChunk:
    tokens, fields = [], []
    for key in range(keys):
        documents = [row[key] for row in rows]
        sequences = [sequence for document in documents for sequence in document]
        flat = [token for sequence in sequences for token in sequence]
        tokens += flat
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        sizes = np.array([len(document) for document in documents], dtype=np.int64)
        fields.append(FieldSequences(len(flat), lengths, sizes))
    return TokenChunk(np.array(tokens, dtype=U2), fields, file=file)


def tokens_in(document: Document) -> int:
    return sum(map(len, document))


def limited(rows: Rows, max_tokens: int | None) -> Rows:
    """The rows up to ``max_tokens`` of the first key, whose last document is cut."""
    found: Rows = []
    left = max_tokens if max_tokens is not None else 10**9
    for row in rows:
        if left <= 0:
            break
        first: Document = []
        for sequence in row[0]:
            if left > 0:
                first.append(sequence[:left])
                left -= len(sequence)
        found.append([first, *row[1:]])
    return found


def parts_of(rows: Rows, part_tokens: int) -> list[Rows]:
    parts: list[Rows] = [[]]
    held = 0
    for row in rows:
        size = tokens_in(row[0])
        if held and held + size > part_tokens:
            parts.append([])
            held = 0
        parts[-1].append(row)
        held += size
    return parts


def read_back(layout: MegatronLayout, part: int, key: str) -> list[Document]:
    reader = MegatronReader(layout.prefix(part, key))
    reader.index.check()
    return [[s.tolist() for s in reader.document(k)] for k in range(reader.file.num_documents)]


@pytest.mark.parametrize("seed", range(12))
def test_parts_by_tokens_for_any_cutting_and_interruption(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    keys = ("a", "b")[: rng.randint(1, 2)]
    rows = random_rows(rng, len(keys), 60)
    max_tokens = rng.choice([None, rng.randint(1, 400)])
    part_tokens = rng.choice([1, 20, 75, 10_000])
    layout = MegatronLayout(tmp_path, "x", keys, "document", U2, "tokens", part_tokens, skip_empty=seed % 3 == 0)
    sink = MegatronSink(layout, max_tokens=max_tokens)
    position = 0
    while position < len(rows) and not sink.full:
        step = rng.randint(1, 9)
        sink.feed(chunk_of(rows[position : position + step], len(keys), 0))
        position += step
        if rng.random() < 0.3:  # killed: what came after the note is done again
            state = json.loads(json.dumps(sink.sync()))
            noted = position
            for _ in range(rng.randint(0, 3)):
                if position < len(rows) and not sink.full:
                    sink.feed(chunk_of(rows[position : position + 2], len(keys), 0))
                    position += 2
            if rng.random() < 0.3:
                sink.close()
            assert state_is_on_disk(layout, state)
            sink = MegatronSink(layout, max_tokens=max_tokens, state=state)
            position = noted
    pairs = sink.close()
    wanted = limited(rows, max_tokens)
    assert sink.tokens == sum(tokens_in(row[0]) for row in wanted) and sink.documents == len(wanted)
    for part, group in enumerate(parts_of(wanted, part_tokens)):
        for k, key in enumerate(keys):
            documents = [row[k] for row in group if row[k] or not layout.skip_empty]
            there = [p for p in pairs if (p.part, p.key) == (part, key)]
            if not any(documents):
                assert not there and not idx_path(layout.prefix(part, key)).exists()
                continue
            assert read_back(layout, part, key) == documents
            (pair,) = there
            assert (pair.tokens, pair.documents) == (sum(map(tokens_in, documents)), len(documents))
            assert pair.sequences == sum(map(len, documents))
    assert not list(tmp_path.glob("*.tmp"))


def test_parts_by_file_and_reached_documents(tmp_path: Path) -> None:
    layout = MegatronLayout(tmp_path, "x", ("a",), "document", U2)
    sink = MegatronSink(layout, max_tokens=8)
    assert not sink.feed(chunk_of([[[[1, 2]]], [[]]], 1, file=0))
    assert sink.reached == 2
    assert sink.feed(chunk_of([[[[3]]]], 1, file=2))  # the first file is finished by this
    assert sink.feed(chunk_of([[[[4, 5]]], [[]], [[[6, 7, 8, 9], [1]]], [[[1]]]], 1, file=5))
    assert sink.full and sink.reached == 3
    assert [(p.part, p.tokens, p.documents) for p in sink.close()] == [(0, 2, 2), (2, 1, 1), (5, 5, 3)]
    assert read_back(layout, 5, "a") == [[[4, 5]], [], [[6, 7, 8]]]


def test_a_document_in_pieces_is_one_sequence_also_after_an_interruption(tmp_path: Path) -> None:
    layout = MegatronLayout(tmp_path, "x", ("a",), "document", U2, "one")

    def piece(tokens: list[int], *, continues: bool, unfinished: bool) -> TokenChunk:
        chunk = chunk_of([[[tokens]]], 1, 0)
        chunk.continues, chunk.unfinished = continues, unfinished
        return chunk

    sink = MegatronSink(layout)
    sink.feed(chunk_of([[[[1]]]], 1, 0))
    sink.feed(piece([2, 3], continues=False, unfinished=True))
    state = sink.sync()
    sink.feed(piece([4, 5], continues=True, unfinished=True))  # lengthens the sequence beyond the note
    sink.sync()
    sink = MegatronSink(layout, state=state)
    sink.feed(piece([4, 5], continues=True, unfinished=True))
    sink.feed(piece([6], continues=True, unfinished=False))
    sink.feed(chunk_of([[[[7]]]], 1, 0))
    assert sink.documents == 3
    sink.close()
    assert read_back(layout, 0, "a") == [[[1]], [[2, 3, 4, 5, 6]], [[7]]]


def test_after_an_error_what_was_noted_stays(tmp_path: Path) -> None:
    layout = MegatronLayout(tmp_path, "x", ("a",), "document", U2)
    sink = MegatronSink(layout)
    sink.feed(chunk_of([[[[1, 2, 3]]]], 1, 0))
    state = sink.sync()
    sink.feed(chunk_of([[[[4, 5, 6]]]], 1, 0))
    sink.abandon()
    assert state_is_on_disk(layout, state)
    assert (tmp_path / "x_0_a_document.bin.automodel.tmp").stat().st_size == 6
    (tmp_path / "x_0_a_document.bin.automodel.tmp").unlink()
    assert not state_is_on_disk(layout, state)
    fresh = MegatronSink(layout)
    fresh.feed(chunk_of([[[[4]]]], 1, 1))
    fresh.abandon()  # nothing was noted: nothing stays
    assert not list(tmp_path.glob("x_1*"))


def test_a_finished_pair_that_changed_is_noticed(tmp_path: Path) -> None:
    layout = MegatronLayout(tmp_path, "x", ("a",), "document", U2)
    sink = MegatronSink(layout)
    for file in (0, 1):
        sink.feed(chunk_of([[[[1, 2, 3]]]], 1, file))
    state = sink.sync()
    assert state_is_on_disk(layout, state)
    data = bin_path(layout.prefix(0, "a"))
    data.write_bytes(data.read_bytes()[:-2])
    assert not state_is_on_disk(layout, state)


def test_chunk_borders_do_not_matter(tmp_path: Path) -> None:
    rng = random.Random(5)
    rows = random_rows(rng, 1, 40)
    contents = []
    for step in (1, 7, 40):
        layout = MegatronLayout(tmp_path / str(step), "x", ("a",), "document", U2, "tokens", 33)
        layout.folder.mkdir()
        sink = MegatronSink(layout, max_tokens=170)
        for first in range(0, 40, step):
            if not sink.full:
                sink.feed(chunk_of(rows[first : first + step], 1, 0))
        sink.close()
        contents.append({p.name: p.read_bytes() for p in layout.folder.iterdir()})
    assert all(a == b for a, b in itertools.pairwise(contents))
