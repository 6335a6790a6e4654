"""The shuffle: a permutation by key, the same for any number of buckets and any chunking."""

from pathlib import Path

import numpy as np
import pytest

from automodel_cli.corpus.shuffle import ShuffleStore, bucket_bits, iter_shuffled, remove_buckets
from automodel_cli.corpus.splitting import document_hash
from automodel_cli.corpus.units import TokenChunk
from automodel_cli.errors import DataError

DOCUMENTS = [np.full(n % 7 + 1, n, dtype=np.uint16) for n in range(300)]
DTYPE = np.dtype("<u2")


def gather(
    folder: Path, bits: int, chunk: int, max_tokens: int | None = None, seed: int = 0
) -> list[list[int]]:
    store = ShuffleStore(folder, dtype=DTYPE, seed=seed, bits=bits, max_tokens=max_tokens)
    for k in range(0, len(DOCUMENTS), chunk):
        part = DOCUMENTS[k : k + chunk]
        if not store.full:
            store.feed(TokenChunk(np.concatenate(part), np.array([len(d) for d in part])))
    store.close()
    found = []
    for _, shuffled in iter_shuffled(folder, DTYPE, bits):
        stops = np.cumsum(shuffled.lengths)
        found += [shuffled.tokens[s - n : s].tolist() for s, n in zip(stops, shuffled.lengths, strict=True)]
        assert shuffled.ordinals is not None and len(shuffled.ordinals) == len(stops)
    return found


def test_order_is_by_key_for_any_buckets_and_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = np.argsort(document_hash(0, "shuffle", np.arange(300)))
    expected = [DOCUMENTS[k].tolist() for k in order]
    monkeypatch.setattr("automodel_cli.corpus.shuffle._HELD_BYTES", 200)  # flush often
    for bits, chunk in ((0, 300), (1, 7), (5, 1), (8, 64)):
        assert gather(tmp_path, bits, chunk) == expected
    assert gather(tmp_path, 3, 9, seed=1) != expected
    remove_buckets(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_length_is_exact_and_the_last_document_is_cut(tmp_path: Path) -> None:
    for chunk in (1, 13, 300):
        found = gather(tmp_path, 4, chunk, max_tokens=100)
        assert sum(map(len, found)) == 100
        ordered = sorted(found, key=lambda d: d[0])
        assert [token for document in ordered for token in document] == np.concatenate(DOCUMENTS)[
            :100
        ].tolist()


def test_documents_in_pieces_are_put_together(tmp_path: Path) -> None:
    store = ShuffleStore(tmp_path, dtype=DTYPE, seed=0, bits=2, max_tokens=None)
    one = np.array([1, 1], dtype=np.uint16)
    store.feed(TokenChunk(np.array([5, 1, 1], dtype=np.uint16), np.array([1, 2]), unfinished=True))
    store.feed(TokenChunk(one, np.array([2]), continues=True, unfinished=True))
    store.feed(TokenChunk(np.array([1, 9], dtype=np.uint16), np.array([1, 1]), continues=True))
    store.close()
    found = [chunk for _, chunk in iter_shuffled(tmp_path, DTYPE, 2)]
    documents = [
        part.tolist() for chunk in found for part in np.split(chunk.tokens, np.cumsum(chunk.lengths)[:-1])
    ]
    assert sorted(documents) == [[1, 1, 1, 1, 1], [5], [9]]


def test_a_bucket_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    gather(tmp_path, 0, 300)
    path = tmp_path / ".shuffle/000.tokens"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match="not whole"):
        list(iter_shuffled(tmp_path, DTYPE, 0))


def test_bucket_bits() -> None:
    assert bucket_bits(None, DTYPE) == 8
    assert bucket_bits(1000, DTYPE) == 0
    assert bucket_bits(10**9, DTYPE) == 4  # 2 GB in 16 buckets of 128 MiB
    assert bucket_bits(10**13, DTYPE) == 12
