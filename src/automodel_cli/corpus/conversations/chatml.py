"""ChatML: each turn is ``<|im_start|>role``, a newline, its content, ``<|im_end|>``, a newline.

The two marks are special tokens that are added to any tokenizer at the next free ids (GPT-2: 50257 and 50258). Only
this module writes them: content is encoded as plain text, so one that spells a mark stays text.

A turn is encoded as one text, as ``transformers`` does with ``TEMPLATE``. What the assistant says follows its header
token by token also where its content begins with white space that a tokenizer would join with the header's newline:
there header and content are encoded by themselves, because a model that answers is given the header alone.
"""

from __future__ import annotations

from automodel_cli.corpus.conversations.conversation import Conversation, Message, Rendered, TrainOn
from automodel_cli.corpus.tokenizers.base import Tokenizer
from automodel_cli.errors import DataError

START, END = "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The same as a chat template, for exports."""


class ChatML:
    """The format over a tokenizer that has the two marks (``with_chatml``)."""

    name = "chatml"

    def __init__(self, tokenizer: Tokenizer) -> None:
        special = tokenizer.special_ids()
        self.tokenizer = tokenizer
        self._start, self._end = special[START], special[END]
        self._newline = tokenizer.encode("\n")
        self._header = tokenizer.encode("assistant\n")
        ends = (self._end, tokenizer.eot_id)
        self.stop_ids = frozenset(index for index in ends if index is not None)

    def render(self, conversation: Conversation, *, train_on: TrainOn = "assistant") -> Rendered:
        """A whole conversation; learned are the content and the end of what the assistant says, or all tokens.

        Raises:
            DataError: the tokenizer cannot encode a text.
        """
        ids: list[int] = []
        mask: list[bool] = []
        for message in conversation:
            said = self._turn(message)
            ids += [self._start, *said, self._end, *self._newline]
            learned = len(said) - len(self._header) + 1 if message.role == "assistant" else 0
            mask += [False] * (1 + len(said) + 1 - learned) + [True] * learned + [False] * len(self._newline)
        return Rendered(ids, [True] * len(ids) if train_on == "all" else mask)

    def prompt(self, conversation: Conversation) -> list[int]:
        """What an assistant is given to answer: it ends where the answer begins."""
        return [*self.render(conversation).ids, self._start, *self._header]

    def _turn(self, message: Message) -> list[int]:
        """Ids of role and content."""
        encode = self.tokenizer.encode
        said = encode(f"{message.role}\n{message.content}")
        if message.role == "assistant" and said[: len(self._header)] != self._header:
            said = [*self._header, *encode(message.content)]
        if not {self._start, self._end}.isdisjoint(said):
            raise DataError(
                f"tokenizer {self.tokenizer.name!r} makes a mark of ChatML from plain text",
                "its vocabulary has the mark as an ordinary token; use another tokenizer",
            )
        return said


def with_chatml(tokenizer: Tokenizer) -> Tokenizer:
    """``tokenizer`` with the two marks; itself where it has them."""
    return tokenizer.with_special((START, END))
