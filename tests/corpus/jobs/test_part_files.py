"""What a part's file gives back, and what it says where it is damaged."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from automodel_cli.corpus.documents.units import BadRow, FieldSequences, TokenChunk, Unit
from automodel_cli.corpus.jobs import part_files
from automodel_cli.corpus.jobs.part_files import PartTokens, PartWriter, part_path, read_chunks, read_header
from automodel_cli.corpus.jobs.work_folder import JobError

DTYPE = np.dtype("<u2")


def random_chunk(rng: random.Random, keys: int) -> TokenChunk:
    fields, documents = [], rng.randrange(6)
    for _ in range(keys):
        sizes = np.array([rng.choice([0, 1, 1, 3]) for _ in range(documents)], np.int64)
        lengths = np.array([rng.randrange(1, 90) for _ in range(int(sizes.sum()))], np.int64)
        fields.append(FieldSequences(int(lengths.sum()), lengths, sizes))
    tokens = np.array([rng.randrange(1 << 16) for _ in range(sum(field.num_tokens for field in fields))], DTYPE)
    bad = [BadRow(k, "malformed JSON", rng.choice([None, "a.txt"]), k) for k in range(rng.randrange(3))]
    more = {"continues": rng.random() < 0.3, "unfinished": rng.random() < 0.3, "split": rng.choice([None, "val"])}
    return TokenChunk(tokens, fields, file=rng.randrange(3), rows=9, bad=bad, text_bytes=rng.randrange(99), **more)


def write_part(folder: Path, seed: int, keys: int) -> tuple[list[TokenChunk], np.ndarray]:
    rng = random.Random(seed)
    chunks = [random_chunk(rng, keys) for _ in range(12)]
    writer = PartWriter(folder, 7, DTYPE)
    for chunk in chunks:
        writer.write(Unit("jsonl", f"{chunk.file}.jsonl", chunk.file, {}), chunk)
    writer.close()
    return chunks, np.concatenate([chunk.tokens for chunk in chunks])


@pytest.mark.parametrize("keys", [1, 3])
def test_chunks_and_ids_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: int) -> None:
    monkeypatch.setattr(part_files, "BLOCK_BYTES", 64)
    chunks, ids = write_part(tmp_path, keys, keys)
    header = read_header(part_path(tmp_path, 7))
    assert header.tokens == len(ids) and header.documents == sum(
        len(chunk.lengths) - (chunk.continues and len(chunk.lengths) > 0) for chunk in chunks
    )
    with PartTokens(tmp_path, header, 2) as tokens:
        for chunk, (unit, found) in zip(chunks, read_chunks(tmp_path, 7, header, DTYPE), strict=True):
            where = found.tokens
            read = b"".join(map(bytes, tokens.read(where.start, where.stop)))
            assert read == chunk.tokens.tobytes() and unit.name == f"{chunk.file}.jsonl"
            for name in ("file", "rows", "bad", "text_bytes", "continues", "unfinished", "split"):
                assert getattr(found, name) == getattr(chunk, name), name
            for field, expected in zip(found.fields, chunk.fields, strict=True):
                assert field.num_tokens == expected.num_tokens
                assert field.lengths.tolist() == expected.lengths.tolist()
                assert field.sizes.tolist() == expected.sizes.tolist()


def test_the_longest_document_may_come_in_pieces(tmp_path: Path) -> None:
    writer = PartWriter(tmp_path, 0, DTYPE)
    pieces = [([5, 9], False), ([7, 3], True), ([4], True), ([6], True), ([1], False)]
    for lengths, continues in pieces:
        ids = np.zeros(sum(lengths), DTYPE)
        chunk = TokenChunk.of_documents(ids, np.array(lengths), continues=continues)
        writer.write(Unit("piece", "a", 0, {}), chunk)
    writer.close()
    assert read_header(part_path(tmp_path, 0)).longest == 16  # 9 + 7; then 3 + 4 + 6


def test_ordinals_travel_along(tmp_path: Path) -> None:
    writer = PartWriter(tmp_path, 0, DTYPE)
    chunk = TokenChunk.of_documents(np.zeros(3, DTYPE), np.array([1, 2]), numbers=np.array([0, 2]))
    writer.write(Unit("jsonl", "a", 0, {}, ordinals=np.array([40, 41, 2**40])), chunk)
    writer.close()
    [(_, found)] = read_chunks(tmp_path, 0, read_header(part_path(tmp_path, 0)), DTYPE)
    assert found.ordinals is not None and found.ordinals.tolist() == [40, 2**40]


def test_what_is_abandoned_leaves_nothing(tmp_path: Path) -> None:
    writer = PartWriter(tmp_path, 0, DTYPE)
    writer.write(Unit("jsonl", "a", 0, {}), TokenChunk.of_documents(np.zeros(3, DTYPE), np.array([3])))
    writer.abandon()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_gone_is_said(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="the job is finished, or was started over"):
        PartWriter(tmp_path / "gone", 0, DTYPE)


def test_damage_is_named(tmp_path: Path) -> None:
    write_part(tmp_path, 1, 2)
    header = read_header(part_path(tmp_path, 7))
    for name, look in (
        (header.tokens_file, lambda: list(PartTokens(tmp_path, header, 2).read(0, header.tokens))),
        (header.chunks_file, lambda: list(read_chunks(tmp_path, 7, header, DTYPE))),
        ("part_000007.json", lambda: read_header(part_path(tmp_path, 7))),
    ):
        path = tmp_path / name
        whole = path.read_bytes()
        for damaged in (whole[:-1], whole[:9] + bytes([whole[9] ^ 1]) + whole[10:], None):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            with pytest.raises(JobError, match=name.split(".")[0]):
                look()
            path.write_bytes(whole)
        look()
