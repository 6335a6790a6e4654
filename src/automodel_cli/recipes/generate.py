"""Continuing a prompt with a checkpoint: model and tokenizer, prompt to ids, ids to text as they come."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from automodel_cli import device as this_machine
from automodel_cli.assembly.checkpoint import LoadedModel, load_model
from automodel_cli.config.schema.results import GenerateConfig
from automodel_cli.corpus.tokenizer import Tokenizer
from automodel_cli.errors import AutomodelError, ConfigError, DataError
from automodel_cli.generation.engine import SamplingSettings, generate
from automodel_cli.generation.text_stream import StopTexts, TextStream
from automodel_cli.json_files import read_bytes, without_controls
from automodel_cli.models.huggingface.model import HFCausalLM
from automodel_cli.models.interface import CausalLM

_MAX_PROMPT_BYTES = 64 << 20
PROMPT_IS_A_FILE = "FILE:"
"""Before a path: the prompt is the text of that file (nanoGPT's spelling)."""

# (row, piece of text): called as text becomes whole; row = prompt number x num_samples + sample number
TextSink = Callable[[int, str], None]


@dataclass(frozen=True)
class Continuation:
    """One continuation: its text, its ids, and whether it ended itself (end-of-text token, or a stop text)."""

    text: str
    ids: list[int]
    stopped: bool


@dataclass(frozen=True)
class PromptSamples:
    """A prompt and its continuations."""

    prompt: str
    samples: list[Continuation]


@dataclass(frozen=True)
class GenerationResult:
    """All continuations, and how fast they were made (tokens of all of them together)."""

    prompts: list[PromptSamples]
    checkpoint: Path
    tokens_per_s: float
    notes: tuple[str, ...] = ()


def read_prompts(cfg: GenerateConfig) -> list[str]:
    """The texts to continue: ``prompt``, the file that it names, or the lines of ``prompt_file``.

    Raises:
        ConfigError: both are given, or one is no UTF-8 text.
    """
    prompts = _given_prompts(cfg)
    for text in (*prompts, *cfg.stop):
        try:  # bytes of a command line that are not UTF-8 come as lone surrogates, which no tokenizer takes
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"the prompt or stop text {text[:40]!a} is not UTF-8 text: character {error.start + 1}",
                "save it as UTF-8 in a file and give --prompt FILE:path",
            ) from None
    return prompts


def _given_prompts(cfg: GenerateConfig) -> list[str]:
    if cfg.prompt_file is not None:
        if cfg.prompt:
            raise ConfigError("both a prompt and a prompt_file are given", "give one of them")
        lines = [line for line in _read_text(cfg.prompt_file).splitlines() if line.strip()]
        if not lines:
            raise ConfigError(f"{cfg.prompt_file} holds no prompt", "write one on each line")
        return lines
    if cfg.prompt.startswith(PROMPT_IS_A_FILE):
        return [_read_text(cfg.prompt.removeprefix(PROMPT_IS_A_FILE))]
    return [cfg.prompt]


def _read_text(path: str) -> str:
    data = read_bytes(path, ConfigError, max_bytes=_MAX_PROMPT_BYTES, hint="name a text file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        shown = without_controls(path)
        raise ConfigError(f"the prompt file {shown} cannot be read: not UTF-8 text", "name a text file") from None


def run(cfg: GenerateConfig, *, on_text: TextSink | None = None, trust: Sequence[str] = ()) -> GenerationResult:
    """Continue the prompts. They are data: no special token is read out of them.

    Args:
        trust: files and modules whose code may build the model.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        ConfigError: there is no tokenizer, nothing to start from, a prompt is longer than a context that may not
            overflow, or the model cannot continue a text.
        DataError: the tokenizer is not the model's.
    """
    prompts = read_prompts(cfg)
    device = this_machine.pick_device(cfg.device)
    this_machine.bound_the_heap()
    loaded = load_model(cfg.checkpoint, device=device, trust=trust, averaged=cfg.ema)
    tokenizer, separator = loaded.reads_with(cfg.tokenizer)
    ids = [_prompt_ids(prompt, tokenizer, loaded, separator) for prompt in prompts]
    notes, longest, context = list(loaded.notes), max(map(len, ids)), loaded.model.max_seq_len
    if context is not None and longest > context:  # ``overflow: stop`` refuses it
        notes.append(f"a prompt has {longest:,} tokens, the model's context {context:,}: only its end is read")
    rows = [row for row in ids for _ in range(cfg.num_samples)]
    texts = _Texts(tokenizer, rows, cfg.stop, on_text)
    started = time.perf_counter()
    with _forward_errors_named(loaded.model):
        found = generate(
            loaded.model,
            ids,
            SamplingSettings(
                max_new_tokens=cfg.max_new_tokens,
                temperature=cfg.temperature,
                top_k=cfg.top_k,
                top_p=cfg.top_p,
                repetition_penalty=cfg.repetition_penalty,
                seed=cfg.seed,
                num_samples=cfg.num_samples,
                stop_ids=frozenset(i for i in (tokenizer.eot_id, separator) if i is not None),
                overflow=cfg.overflow,
            ),
            device=device,
            autocast_dtype=this_machine.decoding_dtype(device),
            usable_ids=min(tokenizer.vocab_size, loaded.model.vocab_size),
            on_token=texts.take,
        )
    seconds = time.perf_counter() - started
    texts.finish()
    whole = iter(texts.whole)
    return GenerationResult(
        prompts=[
            PromptSamples(prompt, [Continuation(next(whole), one.ids, one.stopped) for one in samples])
            for prompt, samples in zip(prompts, found, strict=True)
        ],
        checkpoint=loaded.path,
        tokens_per_s=sum(len(one.ids) for samples in found for one in samples) / max(seconds, 1e-9),
        notes=tuple(notes),
    )


@contextlib.contextmanager
def _forward_errors_named(model: CausalLM) -> Iterator[None]:
    """What transformers raises where a model of it can be trained and yet not continue a text, as our error."""
    try:
        yield
    except (AutomodelError, torch.OutOfMemoryError):
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if not isinstance(model, HFCausalLM):
            raise
        reason = without_controls(str(error).strip().partition("\n")[0][:200])
        raise ConfigError(
            f"{type(model.hf).__name__} of transformers {transformers.__version__} cannot continue this text: "
            f"{type(error).__name__}: {reason}",
            "try another version of transformers, or export the model and use the library it is from",
        ) from error


def _prompt_ids(prompt: str, tokenizer: Tokenizer, loaded: LoadedModel, separator: int | None = None) -> list[int]:
    """The prompt as ids; an empty one starts a new document, with the ``separator`` that the corpus had.

    Raises:
        ConfigError: an empty prompt, and no token that starts a document.
        DataError: ids that the model has no row for.
    """
    ids = list(tokenizer.encode(prompt))
    if not ids:
        start = next((i for i in (separator, tokenizer.eot_id, tokenizer.bos_id) if i is not None), None)
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


class _Texts:
    """The text of each row, grown token by token and handed on in whole characters, up to a stop text."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        rows: Sequence[Sequence[int]],
        stops: Sequence[str],
        on_text: TextSink | None,
    ) -> None:
        self.whole = [""] * len(rows)
        self._streams = [TextStream(tokenizer.decode_bytes, context=row) for row in rows]
        self._stops = [StopTexts(stops) for _ in rows]
        self._on_text = on_text

    def take(self, row: int, token: int) -> bool:
        self._add(row, self._stops[row].feed(self._streams[row].feed(token)))
        return self._stops[row].met

    def finish(self) -> None:
        for row, (stream, stop) in enumerate(zip(self._streams, self._stops, strict=True)):
            self._add(row, stop.feed(stream.finish()) + stop.finish())

    def _add(self, row: int, piece: str) -> None:
        self.whole[row] += piece
        if piece and self._on_text is not None:
            self._on_text(row, piece)
