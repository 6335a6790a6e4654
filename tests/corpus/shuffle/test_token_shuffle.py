"""The shuffle of tokens: a permutation by key, the same for any memory and any chunking."""

from pathlib import Path

import numpy as np
import pytest

from automodel_cli.corpus.documents.units import TokenChunk
from automodel_cli.corpus.shuffle.splitting import place_of, shuffle_keys
from automodel_cli.corpus.shuffle.token_shuffle import ShuffleStore, iter_shuffled
from automodel_cli.errors import DataError

DOCUMENTS = [np.full(n % 7 + 1, n, dtype=np.uint16) for n in range(300)]
PLACES = place_of(np.arange(300) // 100, np.arange(300) * 2)
DTYPE = np.dtype("<u2")


def gather(
    folder: Path, memory: int, chunk: int, max_tokens: int | None = None, seed: int = 0, places: bool = True
) -> list[list[int]]:
    store = ShuffleStore(folder, dtype=DTYPE, seed=seed, max_tokens=max_tokens, memory_bytes=memory)
    for k in range(0, len(DOCUMENTS), chunk):
        part = DOCUMENTS[k : k + chunk]
        lengths = np.array([len(d) for d in part])
        if not store.full:
            given = PLACES[k : k + chunk] if places else None
            store.feed(TokenChunk.of_documents(np.concatenate(part), lengths, places=given))
    store.close()
    return [
        document for _, some in iter_shuffled(folder, DTYPE, memory_bytes=memory) for document in cut(some)
    ]


def cut(chunk: TokenChunk) -> list[list[int]]:
    assert chunk.ordinals is not None and len(chunk.ordinals) == len(chunk.lengths)
    stops = np.cumsum(chunk.lengths)
    return [chunk.tokens[s - n : s].tolist() for s, n in zip(stops, chunk.lengths, strict=True)]


def in_order_of(places: np.ndarray, seed: int = 0) -> list[list[int]]:
    return [DOCUMENTS[k].tolist() for k in np.argsort(shuffle_keys(seed, places))]


def test_order_is_by_key_for_any_memory_and_chunks(tmp_path: Path) -> None:
    for memory, chunk in ((10**8, 300), (10**5, 7), (4000, 1), (2000, 64)):
        assert gather(tmp_path, memory, chunk) == in_order_of(PLACES)
    assert gather(tmp_path, 10**6, 9, seed=1) == in_order_of(PLACES, 1) != in_order_of(PLACES)


def test_without_places_by_number(tmp_path: Path) -> None:
    assert gather(tmp_path, 10**6, 9, places=False) == in_order_of(np.arange(300))


def test_ordinals_are_those_of_the_source(tmp_path: Path) -> None:
    gather(tmp_path, 10**6, 9)
    for _, chunk in iter_shuffled(tmp_path, DTYPE):
        assert chunk.ordinals is not None
        assert [document[0] for document in cut(chunk)] == chunk.ordinals.tolist()


def test_going_on_from_a_key_with_another_memory(tmp_path: Path) -> None:
    whole = gather(tmp_path, 2000, 9)
    chunks = list(iter_shuffled(tmp_path, DTYPE, memory_bytes=2000))
    assert len(chunks) > 3
    key = chunks[2][0]
    before = sum(len(chunk.lengths) for _, chunk in chunks[:2])
    rest = [
        d for _, chunk in iter_shuffled(tmp_path, DTYPE, first=key, memory_bytes=10**7) for d in cut(chunk)
    ]
    assert rest == whole[before:]


def test_length_is_exact_and_the_last_document_is_cut(tmp_path: Path) -> None:
    for chunk in (1, 13, 300):
        found = gather(tmp_path, 10**6, chunk, max_tokens=100)
        assert sum(map(len, found)) == 100
        ordered = sorted(found, key=lambda d: d[0])
        assert [token for document in ordered for token in document] == np.concatenate(DOCUMENTS)[
            :100
        ].tolist()


@pytest.mark.parametrize("places", [True, False])
def test_documents_in_pieces_are_put_together(tmp_path: Path, places: bool) -> None:
    pieces = [([5, 1, 1], [1, 2], False, True), ([1, 1], [2], True, True), ([1, 9], [1, 1], True, False)]
    given = [[0, 1], [1], [1, 2]]
    store = ShuffleStore(tmp_path, dtype=DTYPE, seed=0)
    for (tokens, lengths, continues, unfinished), numbers in zip(pieces, given, strict=True):
        chunk = TokenChunk.of_documents(
            np.array(tokens, DTYPE), np.array(lengths), continues=continues, unfinished=unfinished
        )
        chunk.places = np.array(numbers, np.uint64) if places else None
        store.feed(chunk)
    store.close()
    documents = [document for _, chunk in iter_shuffled(tmp_path, DTYPE) for document in cut(chunk)]
    expected = [[5], [1, 1, 1, 1, 1], [9]]
    assert documents == [expected[k] for k in np.argsort(shuffle_keys(0, np.arange(3)))]


def test_a_piece_cut_by_max_tokens(tmp_path: Path) -> None:
    store = ShuffleStore(tmp_path, dtype=DTYPE, seed=0, max_tokens=3)
    store.feed(TokenChunk.of_documents(np.array([1, 1], DTYPE), np.array([2]), unfinished=True))
    store.feed(
        TokenChunk.of_documents(np.array([1, 1], DTYPE), np.array([2]), continues=True, unfinished=True)
    )
    assert store.full
    store.close()
    assert [d for _, chunk in iter_shuffled(tmp_path, DTYPE) for d in cut(chunk)] == [[1, 1, 1]]


def test_a_bucket_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    gather(tmp_path, 10**8, 300)
    path = next(tmp_path.glob("*.rows"))
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match="not whole"):
        list(iter_shuffled(tmp_path, DTYPE))
