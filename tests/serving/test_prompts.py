"""Conversations as prompts, and what is left out where there is no room."""

from __future__ import annotations

import pytest

from automodel_cli.corpus.conversations.conversation import Message
from automodel_cli.corpus.tokenizer import ByteTokenizer
from automodel_cli.serving.prompts import PlainText, trimmed


def conversation(*contents: str, system: str = ""):
    front = (Message("system", system),) if system else ()
    roles = ("user", "assistant")
    return (*front, *(Message(roles[number % 2], content) for number, content in enumerate(contents)))


def test_plain_text_goes_on_where_it_ended():
    tokenizer = ByteTokenizer()
    plain = PlainText(tokenizer, separator_id=250)
    said = plain.prompt(conversation("Once", " upon a time.", "And then", system="A tale:"))
    assert tokenizer.decode(said) == "A tale:\nOnce upon a time.\nAnd then"
    assert plain.prompt(()) == [250] and plain.stop_ids == {250, tokenizer.eot_id}


class Letters:
    """A token a character, and one for each message."""

    stop_ids = frozenset({0})

    def prompt(self, conversation):
        return [ord(letter) for one in conversation for letter in one.role[0] + one.content]


@pytest.mark.parametrize(
    ("room", "kept"),
    [(99, "s uaaaa abb ucc add uf"), (17, "s uaaaa abb ucc add uf"), (16, "s ucc add uf"), (8, "s uf"), (1, "s uf")],
)
def test_whole_turns_are_left_out_oldest_first(room, kept):
    whole = conversation("aaaa", "bb", "cc", "dd", "f", system="")
    whole = (Message("system", ""), *whole)
    found, ids = trimmed(Letters(), whole, room)
    assert " ".join(one.role[0] + one.content for one in found) == kept
    assert ids == Letters().prompt(found)


def test_a_conversation_without_turns_is_what_it_is():
    for one in ((), (Message("system", "x"),), (Message("assistant", "hello"),)):
        assert trimmed(Letters(), one, 0)[0] == one
