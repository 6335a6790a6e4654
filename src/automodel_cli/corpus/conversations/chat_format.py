"""Chat formats: how messages become tokens, for training, evaluation and chatting alike."""

from __future__ import annotations

from typing import Protocol

from automodel_cli.corpus.conversations.chatml import END, START, ChatML
from automodel_cli.corpus.conversations.conversation import Conversation, Rendered, TrainOn
from automodel_cli.corpus.conversations.template import TemplateFormat
from automodel_cli.corpus.tokenizers.base import Tokenizer


class ChatFormat(Protocol):
    """What turns conversations into tokens. Text of a message never becomes one of its control tokens."""

    @property
    def name(self) -> str:
        """``chatml`` or ``template``."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, control tokens included."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """What ends an answer: the end of a turn, the end of the text."""

    def render(self, conversation: Conversation, *, train_on: TrainOn = "assistant") -> Rendered:
        """A whole conversation and which of its tokens are learned."""

    def prompt(self, conversation: Conversation) -> list[int]:
        """The conversation up to where the assistant begins to speak."""


def chat_format_of(tokenizer: Tokenizer) -> ChatFormat | None:
    """The format that a tokenizer brings: its chat template, else ChatML if it has the marks, else None."""
    if tokenizer.chat_template is not None:
        return TemplateFormat(tokenizer, tokenizer.chat_template)
    if {START, END} <= tokenizer.special_ids().keys():
        return ChatML(tokenizer)
    return None
