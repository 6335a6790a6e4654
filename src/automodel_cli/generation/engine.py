"""Token ids in, more token ids out: the decoding loop, and text that streams while it runs.

Shapes: B rows (samples of one prompt), T tokens so far, V vocabulary.

The loop asks a ``Decoder`` for the logits of the next token and hands back what was chosen. ``FullForward``
computes everything anew for each token, over at most the model's context (older tokens fall out on the left).
A decoder that keeps keys and values has the same two methods.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from automodel_cli.batch import Batch
from automodel_cli.errors import ConfigError
from automodel_cli.generation.sampling import check_settings, row_generators, sample

# (sample number, id): called as each token is chosen, a stop token excepted
OnToken = Callable[[int, int], None]


@dataclass(frozen=True)
class Sample:
    """One continuation: its ids, stop token left out, and whether a stop token ended it."""

    ids: list[int]
    stopped: bool


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are chosen, and how many. ``seed`` and the sample's number decide what a sample draws."""

    max_new_tokens: int = 100
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    num_samples: int = 1
    stop_ids: frozenset[int] = field(default_factory=frozenset)


class Decoder(Protocol):
    """Where the logits of the next token come from."""

    def start(self, ids: Tensor) -> Tensor:
        """Take the prompt, int64 ``[B, T]``; logits of what follows, ``[B, V]``."""
        ...

    def advance(self, ids: Tensor) -> Tensor:
        """Take one chosen token a row, int64 ``[B]``; logits of what follows, ``[B, V]``."""
        ...


class FullForward:
    """The plain decoder: each token costs a forward over all tokens in the context."""

    def __init__(self, model: nn.Module, *, context: int | None) -> None:
        self._model = model
        self._context = context
        self._ids = torch.empty(0)

    def start(self, ids: Tensor) -> Tensor:
        self._ids = ids
        return self._next_logits()

    def advance(self, ids: Tensor) -> Tensor:
        self._ids = torch.cat([self._ids, ids.unsqueeze(1)], dim=1)
        return self._next_logits()

    def _next_logits(self) -> Tensor:
        if self._context is not None:
            self._ids = self._ids[:, -self._context :]
        return self._model(Batch(input_ids=self._ids))[:, -1]


def generate(
    model: nn.Module,
    prompt_ids: Sequence[int],
    settings: SamplingSettings,
    *,
    device: torch.device | str = "cpu",
    autocast_dtype: torch.dtype | None = None,
    decoder: Decoder | None = None,
    usable_ids: int | None = None,
    on_token: OnToken | None = None,
) -> list[Sample]:
    """Continue ``prompt_ids`` ``settings.num_samples`` times, all samples side by side in one batch.

    The same prompt, settings and weights give the same samples, and sample i is the same whatever their
    number (up to what the batch size does to the last bits of the logits).

    Args:
        decoder: where logits come from; None: ``FullForward`` over the model's context.
        usable_ids: choose among the ids below this (a tokenizer may know fewer than the model); None: all.
        on_token: called with (sample number, id) as tokens are chosen; a stop token is not passed on.

    Raises:
        ConfigError: an empty prompt, or a setting outside its range.
    """
    check_settings(temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p)
    if not prompt_ids:
        raise ConfigError("there is nothing to continue: the prompt has no token", "give a prompt")
    device = torch.device(device)
    decoder = decoder or FullForward(model, context=getattr(model, "max_seq_len", None))
    collected = _Collected(settings, on_token)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with (
            torch.no_grad(),
            torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None),
        ):
            prompt = torch.tensor([list(prompt_ids)] * settings.num_samples, dtype=torch.int64, device=device)
            _decode(decoder, prompt, settings, collected, usable_ids)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return collected.samples()


def _decode(
    decoder: Decoder,
    prompt: Tensor,
    settings: SamplingSettings,
    collected: _Collected,
    usable_ids: int | None,
) -> None:
    generators = row_generators(settings.seed, settings.num_samples)
    logits = decoder.start(prompt)
    for left in range(settings.max_new_tokens, 0, -1):
        # Drawn on the CPU, so that a seed means the same choice on every device.
        chosen = sample(
            logits[:, :usable_ids].float().cpu(),
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            generators=generators,
        )
        collected.take(chosen.tolist())
        if collected.all_stopped or left == 1:
            return
        logits = decoder.advance(chosen.to(prompt.device))


class _Collected:
    """The tokens chosen so far; a row that met a stop token takes no more."""

    def __init__(self, settings: SamplingSettings, on_token: OnToken | None) -> None:
        self._stop_ids = settings.stop_ids
        self._on_token = on_token
        self._ids: list[list[int]] = [[] for _ in range(settings.num_samples)]
        self._stopped = [False] * settings.num_samples

    def take(self, chosen: Sequence[int]) -> None:
        for row, token in enumerate(chosen):
            if self._stopped[row]:
                continue
            if token in self._stop_ids:
                self._stopped[row] = True
                continue
            self._ids[row].append(token)
            if self._on_token is not None:
                self._on_token(row, token)

    @property
    def all_stopped(self) -> bool:
        return all(self._stopped)

    def samples(self) -> list[Sample]:
        return [Sample(ids, stopped) for ids, stopped in zip(self._ids, self._stopped, strict=True)]


class TextStream:
    """Turns ids into text as they come: a character is given out once all of its bytes are there.

    A token may hold part of a character's UTF-8 bytes; they wait for the rest. Bytes that can never become a
    character are replaced by U+FFFD. Decoding looks at a few earlier ids too, because some tokenizers decode
    the first id of a text differently (a leading space is lost).

    Args:
        decode_bytes: the tokenizer's ids -> bytes.
        context: ids that came before (the prompt), not given out.
    """

    _LOOK_BACK = 4

    def __init__(self, decode_bytes: Callable[[Sequence[int]], bytes], context: Sequence[int] = ()) -> None:
        self._decode_bytes = decode_bytes
        self._recent = list(context)[-self._LOOK_BACK :]
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """The text that ``token`` completes; often empty inside a multi-byte character."""
        before = self._decode_bytes(self._recent) if self._recent else b""
        after = self._decode_bytes([*self._recent, token])
        self._recent = [*self._recent, token][-self._LOOK_BACK :]
        return self._utf8.decode(after[len(before) :])

    def finish(self) -> str:
        """What is left at the end: U+FFFD for a character that stayed incomplete."""
        return self._utf8.decode(b"", final=True)
