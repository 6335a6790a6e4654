"""Rows that no conversation can be made of are bad rows, whatever is in them."""

import json
import sys
from collections.abc import Iterator

import pytest

from automodel_cli.corpus.conversations.chatml import ChatML, with_chatml
from automodel_cli.corpus.conversations.encode import ConversationEncoder
from automodel_cli.corpus.documents.units import Unit
from automodel_cli.corpus.tokenizer import ByteTokenizer

GOOD = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}]}


def nested(depth: int) -> bytes:
    return b'{"messages": ' * depth + b"1" + b"}" * depth


@pytest.fixture(autouse=True)
def usual_recursion_limit() -> Iterator[None]:
    """Python's own; what a worker of the suite has imported before may have raised it."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.parametrize(
    ("task", "row", "reason"),
    [
        ("messages", b"\xff\xfe{", "malformed JSON"),
        ("messages", b"NaN", "a row is float"),
        ("messages", nested(800), "a row is nested too deeply"),
        ("messages", nested(200_000), "malformed JSON"),
        ("messages", b'{"\\ud800": 1}', "a row with \\ud800 holds no conversation"),
        ("gsm8k", b'{"question": "\\ud800", "answer": "a"}', "lone surrogate"),
        ("mmlu_auxiliary", b'{"question": "q", "choices": ["a", "\\ud800"], "answer": 0}', "lone surrogate"),
        ("mmlu_auxiliary", b'{"question": "q", "choices": ["a", "b"], "answer": 1e400}', "'answer' is float"),
    ],
)
def test_rubbish_is_a_bad_row_among_good_ones(task, row, reason) -> None:
    encode = ConversationEncoder(ChatML(with_chatml(ByteTokenizer())), "assistant")
    chunk = encode(Unit("values", "rows.jsonl", 0, {}, payload=(task, [(0, row), (1, row)])))
    assert (len(chunk.lengths), len(chunk.bad)) == (0, 2)
    assert reason in chunk.bad[1].reason
    chunk.bad[1].reason.encode()
    good = encode(Unit("values", "rows.jsonl", 0, {}, payload=("messages", [(0, row), (1, json.dumps(GOOD).encode())])))
    assert (len(good.lengths), len(good.bad)) == (1, 1)
