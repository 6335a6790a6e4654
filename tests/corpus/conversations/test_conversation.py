"""Messages out of the columns that data sets have."""

import pytest

from automodel_cli.corpus.conversations.conversation import Message, parse_messages, parse_pair, parse_row
from automodel_cli.errors import DataError

HELLO = (Message("user", "Hello"), Message("assistant", "Hi!"))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}]},
        {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi!"}]},
        {"instruction": "Hello", "input": "", "output": "Hi!"},
        {"prompt": "Hello", "completion": "Hi!", "id": 7},
        {"prompt": "Hello", "response": "Hi!"},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "ello"}]},
                {"role": "assistant", "content": "Hi!", "tool_calls": None},
            ],
            "prompt": "not this",
        },
    ],
)
def test_every_form_is_the_same_conversation(row) -> None:
    assert parse_row(row) == parse_messages(row) == HELLO


def test_system_texts_and_inputs() -> None:
    pair = {"system": "Be brief.", "instruction": "Translate.", "input": "chat", "output": "cat"}
    turns = (Message("system", "Be brief."), Message("user", "Translate.\n\nchat"), Message("assistant", "cat"))
    assert parse_pair(pair) == parse_row(pair) == turns
    sharegpt = {"system": "Be brief.", "conversations": [{"from": "human", "value": "Hello"}]}
    assert parse_row(sharegpt) == (Message("system", "Be brief."), HELLO[0])
    own = {"system": "unused", "messages": [{"role": "system", "content": "own"}]}
    assert parse_row(own) == (Message("system", "own"),)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({}, "no columns"),
        ({"text": "Hello"}, "a row with text"),
        ({"messages": []}, "an empty list"),
        ({"messages": "Hello"}, "of type str"),
        ({"messages": ["Hello"]}, "a message is of type str"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "'wizard'"),
        ({"messages": [{"role": None, "content": "x"}]}, "'None'"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "user"),
        ({"messages": [{"role": "user", "content": None}]}, "is nothing"),
        ({"messages": [{"role": "user", "content": 3}]}, "of type int"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}, "'image'"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "of type str"),
        ({"messages": [{"role": "user", "content": "a \ud800"}]}, "lone surrogate"),
        ({"instruction": "x", "output": 3}, "of type int"),
    ],
)
def test_what_is_no_conversation_is_named(row, says) -> None:
    with pytest.raises(DataError, match=says):
        parse_row(row)
