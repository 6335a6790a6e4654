"""A model that answers: its engine, its tokenizer, and how texts and conversations become requests."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from automodel_cli.corpus.conversations.conversation import Conversation
from automodel_cli.corpus.tokenizer import Tokenizer
from automodel_cli.errors import ConfigError
from automodel_cli.generation.sampling import check_settings, mix
from automodel_cli.serving.choosing import Sampling
from automodel_cli.serving.engine import Engine, Request
from automodel_cli.serving.prompts import PlainText, Prompter, trimmed

_CHARACTERS_A_TOKEN = 16  # more than most texts have


@dataclass(frozen=True)
class Settings:
    """How an answer is made; what a request leaves open is as here."""

    max_tokens: int = 512
    temperature: float = 0.9
    top_k: int | None = 200
    top_p: float | None = None
    seed: int | None = None
    stop_texts: tuple[str, ...] = ()
    logprobs: int | None = None


@dataclass(frozen=True)
class Service:
    """What terminal and web server speak to.

    Attributes:
        chat: the model's chat format; None: conversations are plain text.
        identity: of the weights.
    """

    engine: Engine
    tokenizer: Tokenizer
    plain: PlainText
    chat: Prompter | None
    name: str
    identity: str
    context: int | None
    vocab_size: int
    defaults: Settings = field(default_factory=Settings)
    timeout_s: float = float("inf")

    @property
    def prompter(self) -> Prompter:
        """What makes prompts of conversations."""
        return self.chat or self.plain

    def room(self, settings: Settings) -> int:
        """Tokens that a prompt may have where all of the answer must fit; at least a half of the context is its."""
        if self.context is None:
            return 1 << 62
        return max(self.context // 2, self.context - settings.max_tokens + 1)

    def _refuse_endless(self, texts: Iterable[str]) -> None:
        """Raise a ConfigError for a text whose beginning alone is too long: reading all of it would take seconds."""
        longest = _CHARACTERS_A_TOKEN * (self.context or 0)
        for text in texts:
            if self.context is not None and len(text) > longest:
                tokens = len(self.tokenizer.encode(text[:longest]))
                if tokens > self.context:
                    raise ConfigError(
                        f"the prompt has more than {tokens:,} tokens, the model's context has {self.context:,}",
                        "shorten the prompt",
                    )

    def of_conversation(self, conversation: Conversation, settings: Settings, *, trim: bool) -> Request:
        """The request for the next answer.

        Raises:
            ConfigError: a setting out of range, or ids that the model does not have.
        """
        self._refuse_endless(one.content for one in (conversation[-1:] if trim else conversation))
        if trim:
            _, ids = trimmed(self.prompter, conversation, self.room(settings))
        else:
            ids = self.prompter.prompt(conversation)
        return self.of_ids(ids, settings, self.prompter.stop_ids)

    def of_text(self, text: str, settings: Settings) -> Request:
        """The request to continue a text."""
        self._refuse_endless([text])
        return self.of_ids(self.plain.read(text), settings, self.plain.stop_ids)

    def of_ids(self, ids: Sequence[int], settings: Settings, stop_ids: frozenset[int] | None = None) -> Request:
        """The request to continue token ids."""
        check_settings(temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p)
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise ConfigError(f"the prompt has token id {max(ids):,}, the model's are below {self.vocab_size:,}")
        seed = secrets.randbits(62) if settings.seed is None else settings.seed
        return Request(
            ids,
            settings.max_tokens,
            Sampling(settings.temperature, settings.top_k, settings.top_p, seed),
            self.plain.stop_ids if stop_ids is None else stop_ids,
            settings.stop_texts,
            settings.logprobs,
            self.timeout_s,
        )


def several(request: Request, count: int) -> list[Request]:
    """The same request ``count`` times with seeds of their own; the first is as it was."""
    sampling = request.sampling
    seeds = [sampling.seed, *(mix(sampling.seed, number) for number in range(1, count))]
    return [replace(request, sampling=replace(sampling, seed=seed)) for seed in seeds]
