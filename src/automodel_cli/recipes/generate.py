"""Continuing a prompt with a checkpoint: model and tokenizer, prompt to ids, ids to text as they come."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from automodel_cli import device as this_machine
from automodel_cli.assembly.checkpoint import LoadedModel, load_model
from automodel_cli.config.schema import GenerateConfig
from automodel_cli.corpus.tokenizer import Tokenizer, open_tokenizer
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.generation.engine import SamplingSettings, TextStream, generate

# (sample number, piece of text): called as text becomes whole
TextSink = Callable[[int, str], None]


@dataclass(frozen=True)
class Continuation:
    """One continuation: its text, its ids, and whether the model ended it with its end-of-text token."""

    text: str
    ids: list[int]
    stopped: bool


@dataclass(frozen=True)
class GenerationResult:
    """All continuations of the prompt, and how fast they were made (tokens of all samples together)."""

    prompt: str
    samples: list[Continuation]
    checkpoint: Path
    tokens_per_s: float


def run(cfg: GenerateConfig, *, on_text: TextSink | None = None) -> GenerationResult:
    """Continue ``cfg.prompt``. The prompt is data: no special token is read out of it.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        ConfigError: there is no tokenizer, or nothing to start from.
        DataError: the tokenizer is not the model's.
    """
    device = this_machine.pick_device(cfg.device)
    loaded = load_model(cfg.checkpoint, device=device)
    tokenizer = _tokenizer(cfg, loaded)
    prompt_ids = _prompt_ids(cfg, tokenizer, loaded)
    texts = _Texts(tokenizer, prompt_ids, cfg.num_samples, on_text)
    started = time.perf_counter()
    samples = generate(
        loaded.model,
        prompt_ids,
        SamplingSettings(
            max_new_tokens=cfg.max_new_tokens,
            temperature=cfg.temperature,
            top_k=cfg.top_k,
            top_p=cfg.top_p,
            seed=cfg.seed,
            num_samples=cfg.num_samples,
            stop_ids=frozenset() if tokenizer.eot_id is None else frozenset({tokenizer.eot_id}),
        ),
        device=device,
        autocast_dtype=torch.bfloat16 if _fast_bf16(device) else None,
        usable_ids=min(tokenizer.vocab_size, loaded.model.vocab_size),
        on_token=texts.take,
    )
    seconds = time.perf_counter() - started
    texts.finish()
    return GenerationResult(
        prompt=cfg.prompt,
        samples=[
            Continuation(text, sample.ids, sample.stopped)
            for text, sample in zip(texts.whole, samples, strict=True)
        ],
        checkpoint=loaded.path,
        tokens_per_s=sum(len(sample.ids) for sample in samples) / max(seconds, 1e-9),
    )


def _tokenizer(cfg: GenerateConfig, loaded: LoadedModel) -> Tokenizer:
    tokenizer = loaded.tokenizer if cfg.tokenizer is None else open_tokenizer(cfg.tokenizer)
    if tokenizer is None:
        raise ConfigError(
            f"{loaded.path} has no tokenizer, so a prompt cannot be read", "name one with --tokenizer"
        )
    return tokenizer


def _prompt_ids(cfg: GenerateConfig, tokenizer: Tokenizer, loaded: LoadedModel) -> list[int]:
    """The prompt as ids; an empty one starts a new document.

    Raises:
        ConfigError: an empty prompt, and no token that starts a document.
        DataError: ids that the model has no row for.
    """
    ids = list(tokenizer.encode(cfg.prompt))
    if not ids:
        start = tokenizer.eot_id if tokenizer.eot_id is not None else tokenizer.bos_id
        if start is None:
            raise ConfigError(
                f"the prompt is empty, and {tokenizer.name} has no token that starts a document",
                "give a --prompt",
            )
        ids = [start]
    if max(ids) >= loaded.model.vocab_size:
        raise DataError(
            f"{tokenizer.name} made token id {max(ids):,}, the model has {loaded.model.vocab_size:,} ids",
            "name the tokenizer that the model was trained with: --tokenizer",
        )
    return ids


def _fast_bf16(device: torch.device) -> bool:
    """Half precision pays off on GPUs; single tokens on a CPU are no matrix products worth converting for."""
    return device.type == "cuda" and this_machine.choose_precision("auto", device)[0] == "bf16"


class _Texts:
    """The text of each sample, grown token by token and handed on in whole characters."""

    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: list[int], samples: int, on_text: TextSink | None
    ) -> None:
        self.whole = [""] * samples
        self._streams = [TextStream(tokenizer.decode_bytes, context=prompt_ids) for _ in range(samples)]
        self._on_text = on_text

    def take(self, sample: int, token: int) -> None:
        self._add(sample, self._streams[sample].feed(token))

    def finish(self) -> None:
        for sample, stream in enumerate(self._streams):
            self._add(sample, stream.finish())

    def _add(self, sample: int, piece: str) -> None:
        self.whole[sample] += piece
        if piece and self._on_text is not None:
            self._on_text(sample, piece)
