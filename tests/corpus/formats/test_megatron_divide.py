"""Division into N parts: order kept, no part without tokens, as equal as documents allow."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from tests.token_files import MegatronReader, write_megatron_file

from automodel_cli.corpus.build.megatron_sink import MegatronLayout
from automodel_cli.corpus.formats import megatron_divide
from automodel_cli.corpus.formats.megatron_divide import divide
from automodel_cli.errors import DataError


def layouts(tmp_path: Path, keys: tuple[str, ...], *, skip_empty: bool = False) -> tuple:
    (tmp_path / "spool").mkdir()
    (tmp_path / "out").mkdir()
    spool = MegatronLayout(tmp_path / "spool", "x", keys, "document", np.dtype("<u2"), "one")
    final = MegatronLayout(tmp_path / "out", "x", keys, "document", np.dtype("<u2"), "one", skip_empty=skip_empty)
    return spool, final


def documents_in(layout: MegatronLayout, part: int, key: str) -> list:
    reader = MegatronReader(layout.prefix(part, key))
    return [[s.tolist() for s in reader.document(k)] for k in range(reader.file.num_documents)]


@pytest.mark.parametrize("seed", range(8))
def test_any_documents(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(megatron_divide, "_BLOCK_TOKENS", 7)  # so that parts are copied in several blocks
    monkeypatch.setattr(megatron_divide, "_BLOCK_DOCUMENTS", 1 + seed)
    rng = random.Random(seed)
    longest = rng.choice([3, 50])
    documents = [[[1] * rng.randint(1, longest) for _ in range(rng.choice([0, 1, 1, 2]))] for _ in range(40)]
    spool, final = layouts(tmp_path, ("a",), skip_empty=seed % 2 == 0)
    write_megatron_file(spool.prefix(0, "a"), documents, dtype="<u2")
    shards = rng.randint(1, sum(map(bool, documents)))
    told: list[int] = []
    pairs = divide(spool, final, shards, told.append)
    assert [pair.part for pair in pairs] == list(range(shards)) and min(p.tokens for p in pairs) > 0
    found = [document for part in range(shards) for document in documents_in(final, part, "a")]
    assert found == [document for document in documents if document or not final.skip_empty]
    assert told[-1] == sum(pair.tokens for pair in pairs)
    limit = max(sum(map(len, document)) for document in documents)
    if shards < 10:
        assert max(p.tokens for p in pairs) <= sum(p.tokens for p in pairs) / shards + limit


def test_one_huge_document_still_leaves_a_part_for_each_shard(tmp_path: Path) -> None:
    for place in range(4):
        folder = tmp_path / str(place)
        folder.mkdir()
        documents = [[[1]] for _ in range(4)]
        documents[place] = [[2] * 97]
        spool, final = layouts(folder, ("a",))
        write_megatron_file(spool.prefix(0, "a"), documents, dtype="<u2")
        divide(spool, final, 4, lambda tokens: None)
        assert [documents_in(final, part, "a") for part in range(4)] == [[d] for d in documents]


def test_parts_of_all_keys_hold_the_same_rows(tmp_path: Path) -> None:
    a = [[[1] * 5], [[2] * 5], [[3] * 5], [[4] * 5]]
    b = [[[1]], [], [], [[4]]]
    spool, final = layouts(tmp_path, ("a", "b", "c"))
    write_megatron_file(spool.prefix(0, "a"), a, dtype="<u2")
    write_megatron_file(spool.prefix(0, "b"), b, dtype="<u2")  # and c has no text at all
    pairs = divide(spool, final, 4, lambda tokens: None)
    assert [(p.part, p.key) for p in pairs] == [(0, "a"), (0, "b"), (1, "a"), (2, "a"), (3, "a"), (3, "b")]
    assert documents_in(final, 3, "b") == [[[4]]]


def test_more_shards_than_documents(tmp_path: Path) -> None:
    spool, final = layouts(tmp_path, ("a",))
    write_megatron_file(spool.prefix(0, "a"), [[[1]], [], [[2]]], dtype="<u2")
    with pytest.raises(DataError, match="2 documents with text for 3 shards"):
        divide(spool, final, 3, lambda tokens: None)
    assert not list(final.folder.iterdir())
