"""A Hugging Face chat template as the format: transformers renders it in a sandbox, where it can only compute text.

**Text stays text.** A special token that a message spells is broken up with a private-use character before the template
sees it, and put together again when the rendered text is cut at the special tokens that the template itself wrote.

**What is learned** is what stands between ``{% generation %}`` and ``{% endgeneration %}``. In a template without
these it is found by prefix: the text up to a turn of the assistant, with the generation prompt, has to begin the text
with that turn, and that the whole text. Where neither works (templates that rewrite earlier turns) it is refused.
"""

from __future__ import annotations

import functools
import re
from dataclasses import replace

from automodel_cli import transformers_calls
from automodel_cli.corpus.conversations.conversation import Conversation, Message, Rendered, TrainOn
from automodel_cli.corpus.tokenizers.base import Tokenizer
from automodel_cli.corpus.tokenizers.hf import HFTokenizer
from automodel_cli.errors import ConfigError, DataError

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_BREAKS = [chr(0xF0000 + number) for number in range(64)]
_PROBE = (Message("user", "a"), Message("assistant", "b"))
Span = tuple[int, int]


class TemplateFormat:
    """The format of a tokenizer's ``chat_template``.

    Raises:
        ConfigError: the tokenizer is not of Hugging Face's kind.
    """

    name = "template"

    def __init__(self, tokenizer: Tokenizer, template: str) -> None:
        if not isinstance(tokenizer, HFTokenizer):
            raise ConfigError(
                f"tokenizer {tokenizer.name!r} takes no chat template",
                "name a folder with tokenizer.json, or use ChatML",
            )
        self.tokenizer, self._template = tokenizer, template
        spelled = sorted(tokenizer.special_ids(), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, spelled)) or "(?!)")
        self._begins_special = re.compile(f"(?=(?:{self._special.pattern}))(.)", re.DOTALL)

    @functools.cached_property
    def stop_ids(self) -> frozenset[int]:
        """The special token that ends a turn of the assistant, and end-of-text."""
        special = set(self.tokenizer.special_ids().values())
        before, whole = self.prompt(_PROBE[:1]), self.render(_PROBE, train_on="all").ids
        ends = [*[index for index in whole[len(before) :] if index in special][:1], self.tokenizer.eot_id]
        return frozenset(index for index in ends if index is not None)

    def render(self, conversation: Conversation, *, train_on: TrainOn = "assistant") -> Rendered:
        """A whole conversation and which of its tokens are learned.

        Raises:
            DataError: the template refuses it, or does not tell what the assistant says.
        """
        broken, mark = self._broken(conversation)
        marked = train_on == "assistant" and _GENERATION.search(self._template) is not None
        text, spans = self._rendered(broken, spans=marked)
        if train_on == "all":
            spans = [(0, len(text))]
        elif not marked:
            spans = self._spans_by_prefix(broken, text)
        ids, places = self._encode(text, mark)
        return Rendered(ids, [any(begin <= place < end for begin, end in spans) for place in places])

    def prompt(self, conversation: Conversation) -> list[int]:
        """The conversation up to where the assistant begins to speak.

        Raises:
            DataError: the template refuses it.
        """
        broken, mark = self._broken(conversation)
        return self._encode(self._rendered(broken, answer=True)[0], mark)[0]

    def _rendered(
        self, conversation: Conversation, *, answer: bool = False, spans: bool = False
    ) -> tuple[str, list[Span]]:
        return transformers_calls.render_chat(
            self._template,
            [vars(message) for message in conversation],
            add_generation_prompt=answer,
            spans=spans,
            **self.tokenizer.named_tokens,
        )

    def _spans_by_prefix(self, conversation: Conversation, whole: str) -> list[Span]:
        """Where the assistant's turns stand in ``whole``, each with its end but not the white space after that."""
        spans = []
        for number, message in enumerate(conversation):
            if message.role != "assistant":
                continue
            before, _ = self._rendered(conversation[:number], answer=True)
            said, _ = self._rendered(conversation[: number + 1])
            if not said.startswith(before) or not whole.startswith(said):
                raise DataError(
                    "the chat template does not tell which tokens are the assistant's: it has no {% generation %}, "
                    "and the text up to an answer does not begin the text with it",
                    "mark what the assistant says with {% generation %}, or use train_on: all",
                )
            ends = [match.end() for match in self._special.finditer(said, len(before))]
            at_end = ends and not said[ends[-1] :].strip()
            spans.append((len(before), ends[-1] if at_end else len(said)))
        return spans

    # ----------------------------------------------------------------------------- text that stays text

    def _broken(self, conversation: Conversation) -> tuple[Conversation, str]:
        """Messages in which no special token is spelled any more, and what breaks them up ("": nothing had to)."""
        if not any(self._special.search(message.content) for message in conversation):
            return conversation, ""
        mark = next((m for m in _BREAKS if not any(m in message.content for message in conversation)), None)
        if mark is None:
            raise DataError("a message has special tokens and all private-use characters", "it is hardly text")
        broken = (self._begins_special.sub(rf"\1{mark}", message.content) for message in conversation)
        return tuple(map(lambda message, text: replace(message, content=text), conversation, broken)), mark

    def _encode(self, text: str, mark: str) -> tuple[list[int], list[int]]:
        """Ids of a rendered text and the place at which each begins; special tokens in it are the template's."""
        if not mark:
            return self.tokenizer.encode_placed(text, parse=True)
        ids: list[int] = []
        places: list[int] = []
        begin = 0
        for match in (*self._special.finditer(text), None):
            end = len(text) if match is None else match.start()
            kept = [place for place in range(begin, end) if text[place] != mark]
            found, starts = self.tokenizer.encode_placed("".join(text[place] for place in kept))
            ids += found
            places += [kept[start] for start in starts]
            if match is not None:
                ids.append(self.tokenizer.special_ids()[match.group()])
                places.append(match.start())
                begin = match.end()
        return ids, places
