"""Token ids in, more token ids out: the decoding loop, and text that streams while it runs.

Shapes: P prompts, B rows (every prompt's samples, side by side), T tokens so far, V vocabulary.

The loop asks a ``Decoder`` (``decoders``) for the logits of the next token and hands back what was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from automodel_cli.dtypes import autocast
from automodel_cli.errors import ConfigError
from automodel_cli.generation.decoders import Cached, Decoder, FullForward
from automodel_cli.generation.sampling import SeenTokens, check_settings, row_generators, sample

# (row, id): called as each token is chosen, a stop token excepted; True ends that row
OnToken = Callable[[int, int], bool | None]


@dataclass(frozen=True)
class Sample:
    """One continuation: its ids, stop token left out, and whether it was ended by a stop token or by ``on_token``."""

    ids: list[int]
    stopped: bool


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are chosen, and how many. ``seed``, the prompt's and the sample's number decide what a sample draws.

    ``overflow``: at the end of the model's context, ``slide`` goes on from the newest half of it, ``stop`` ends.
    """

    max_new_tokens: int = 100
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0
    num_samples: int = 1
    stop_ids: frozenset[int] = field(default_factory=frozenset)
    overflow: Literal["slide", "stop"] = "slide"


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings,
    *,
    device: torch.device | str = "cpu",
    autocast_dtype: torch.dtype | None = None,
    decoder: Decoder | None = None,
    usable_ids: int | None = None,
    on_token: OnToken | None = None,
) -> list[list[Sample]]:
    """Continue each of ``prompts`` (of any lengths) ``settings.num_samples`` times, all rows side by side in one batch.

    The same prompts, settings and weights give the same samples; sample i of prompt p is the same whatever the
    number of others (up to what the batch does to the last bits of the logits).

    Args:
        decoder: where logits come from; None: ``Cached``, or ``FullForward`` for a model that keeps nothing.
        usable_ids: choose among the ids below this (a tokenizer may know fewer than the model); None: all.
        on_token: called with (row, id) as tokens are chosen; row = prompt number x num_samples + sample number. A stop
            token is not passed on. Where it returns True the row ends.

    Raises:
        ConfigError: an empty prompt, or a setting outside its range.
    """
    check_settings(
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        repetition_penalty=settings.repetition_penalty,
    )
    if not prompts or not all(prompts):
        raise ConfigError("there is nothing to continue: the prompt has no tokens", "give a prompt")
    device = torch.device(device)
    decoder = decoder or _decoder(model, settings)
    collected = _Collected(_budgets(model, prompts, settings), settings.stop_ids, on_token)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), autocast(device, autocast_dtype):
            _decode(decoder, prompts, settings, collected, usable_ids, device)
    finally:
        for module, mode in modes.items():
            module.training = mode
    samples = collected.samples()
    return [samples[first : first + settings.num_samples] for first in range(0, len(samples), settings.num_samples)]


def _budgets(model: nn.Module, prompts: Sequence[Sequence[int]], settings: SamplingSettings) -> list[int]:
    """Tokens that each row may have: what was asked for or, where the context may not overflow, what still fits.

    The last token of a context is chosen from all of it, and not read any more: one more than there are places.

    Raises:
        ConfigError: a prompt does not fit, and would have to be cut.
    """
    context: int | None = getattr(model, "max_seq_len", None)
    room = settings.max_new_tokens
    if settings.overflow == "slide" or context is None:
        return [room] * (len(prompts) * settings.num_samples)
    longest = max(map(len, prompts))
    if longest > context:
        raise ConfigError(
            f"overflow is stop: a prompt of {longest:,} tokens, the model's context has {context:,}",
            "shorten the prompt, or let the context slide (--overflow slide)",
        )
    fits = [min(room, context - len(prompt) + 1) for prompt in prompts]
    return [budget for budget in fits for _ in range(settings.num_samples)]


def _decoder(model: nn.Module, settings: SamplingSettings) -> Decoder:
    if getattr(model, "takes_cache", False):
        return Cached(model, new_tokens=settings.max_new_tokens)
    return FullForward(model)


def _decode(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings,
    collected: _Collected,
    usable_ids: int | None,
    device: torch.device,
) -> None:
    generators = row_generators(settings.seed, prompts=len(prompts), samples=settings.num_samples)
    logits = decoder.start(prompts, samples=settings.num_samples, device=device)
    seen = SeenTokens(prompts, settings.num_samples) if settings.repetition_penalty != 1.0 else None
    while True:
        # Drawn on the CPU, so that a seed means the same choice on every device.
        logits = logits[:, :usable_ids].float().cpu()
        if seen is not None:
            logits = seen.penalise(logits, settings.repetition_penalty)
        chosen = sample(
            logits,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            generators=generators,
        )
        collected.take(chosen.tolist())
        if collected.all_done:
            return
        if seen is not None:
            seen.add(chosen)
        logits = decoder.advance(chosen.to(device))


class _Collected:
    """The tokens chosen so far; a row that met a stop token, or has all it may have, takes no more."""

    def __init__(self, budgets: Sequence[int], stop_ids: frozenset[int], on_token: OnToken | None) -> None:
        self._budgets = budgets
        self._stop_ids = stop_ids
        self._on_token = on_token
        self._ids: list[list[int]] = [[] for _ in budgets]
        self._stopped = [False] * len(budgets)

    def take(self, chosen: Sequence[int]) -> None:
        for row, token in enumerate(chosen):
            if self._stopped[row] or len(self._ids[row]) == self._budgets[row]:
                continue
            if token in self._stop_ids:
                self._stopped[row] = True
                continue
            self._ids[row].append(token)
            if self._on_token is not None and self._on_token(row, token):
                self._stopped[row] = True

    @property
    def all_done(self) -> bool:
        return all(
            stopped or len(ids) == budget
            for stopped, ids, budget in zip(self._stopped, self._ids, self._budgets, strict=True)
        )

    def samples(self) -> list[Sample]:
        return [Sample(ids, stopped) for ids, stopped in zip(self._ids, self._stopped, strict=True)]
