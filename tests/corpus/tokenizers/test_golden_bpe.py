"""GPT-2 BPE is exact: against ids that tiktoken gave (tests/golden/make_gpt2_bpe.py), with every engine.

The golden file carries the entries of GPT-2's table that its texts can touch, so no vocabulary is needed; a
reference written from the definition of BPE checks the file itself.
"""

import base64
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import regex
import tiktoken

from automodel_cli.corpus.tokenizer import TiktokenTokenizer, open_tokenizer
from automodel_cli.corpus.tokenizers.engines import first_difference, gigatoken_from_ranks, probe_texts
from automodel_cli.errors import DataError

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/gpt2_bpe.json").read_text("utf-8"))
RANKS = {base64.b64decode(token): rank for token, rank in GOLDEN["ranks"].items()}
CASES = [(case["text"], case["ids"]) for case in GOLDEN["cases"]]
SHARED_CACHE = Path(__file__).resolve().parents[3] / "../shared/data/tokenizers/tiktoken_cache"


def definition(text: str, ranks: dict[bytes, int]) -> list[int]:
    """BPE as defined: cut by the pattern, then merge the lowest-ranked neighbouring pair until none is left."""
    ids = []
    for piece in regex.findall(GOLDEN["pattern"], text):
        parts = [bytes([byte]) for byte in piece.encode()]
        while len(parts) > 1:
            pairs = [(ranks.get(a + b, 1 << 30), k) for k, (a, b) in enumerate(itertools.pairwise(parts))]
            rank, k = min(pairs)
            if rank == 1 << 30:
                break
            parts[k : k + 2] = [parts[k] + parts[k + 1]]
        ids += [ranks[part] for part in parts]
    return ids


def tokenizer_of(ranks: dict[bytes, int]) -> TiktokenTokenizer:
    special = {"<|endoftext|>": 50256}
    encoding = tiktoken.Encoding("gpt2", pat_str=GOLDEN["pattern"], mergeable_ranks=ranks, special_tokens=special)
    return TiktokenTokenizer(encoding)


@pytest.mark.parametrize(("text", "ids"), CASES)
def test_golden_ids(text: str, ids: list[int]) -> None:
    assert definition(text, RANKS) == ids
    tokenizer = tokenizer_of(RANKS)
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == text
    flat, lengths = tokenizer.encode_batch([text, "", text])
    assert flat.tolist() == ids + ids and lengths.tolist() == [len(ids), 0, len(ids)]
    assert flat.dtype == np.uint16


def test_golden_ids_with_the_fast_engine() -> None:
    """gigatoken wants ranks without gaps: number the entries anew in the same order, and the ids with them."""
    pytest.importorskip("gigatoken", reason="the extra [fast] is not installed")
    order = sorted(RANKS, key=RANKS.__getitem__)
    dense = {token: k for k, token in enumerate(order)}
    anew = {RANKS[token]: k for k, token in enumerate(order)}
    tokenizer = tokenizer_of(dense)
    assert tokenizer.use_engine("fast").startswith("gigatoken")
    for text, ids in CASES:
        assert tokenizer.encode(text) == [anew[i] for i in ids], text


@pytest.fixture(scope="module")
def gpt2() -> TiktokenTokenizer:
    if SHARED_CACHE.is_dir():
        os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(SHARED_CACHE))
    try:
        tokenizer = open_tokenizer("gpt2")
    except DataError as error:
        pytest.skip(f"GPT-2's vocabulary is neither cached nor reachable: {error.message[:80]}")
    assert isinstance(tokenizer, TiktokenTokenizer)
    return tokenizer


def test_golden_table_is_part_of_the_real_one(gpt2: TiktokenTokenizer) -> None:
    real = gpt2._encoding._mergeable_ranks
    assert all(real[token] == rank for token, rank in RANKS.items())
    for text, ids in CASES:
        assert gpt2.encode(text) == ids
    assert (gpt2.vocab_size, gpt2.eot_id) == (50257, 50256)


def test_gigatoken_equals_tiktoken_on_gpt2(gpt2: TiktokenTokenizer) -> None:
    """The probe, and every Unicode scalar value in a context of letters, digits and spaces (a stride of them)."""
    pytest.importorskip("gigatoken", reason="the extra [fast] is not installed")
    fast = gigatoken_from_ranks(gpt2._ranks_text, "gpt2")
    assert fast is not None
    reference = gpt2.reference
    scalars = [c for c in range(0, 0x110000, 5) if not 0xD800 <= c < 0xE000]
    contexts = tuple(
        "".join(f"a{chr(c)}1 {chr(c)} {chr(c)}{chr(c)}" for c in scalars[k : k + 500])
        for k in range(0, len(scalars), 500)
    )
    assert first_difference(fast, reference, probe_texts() + contexts) is None
