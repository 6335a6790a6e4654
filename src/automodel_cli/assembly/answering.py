"""A configuration and a checkpoint -> a service: a model with its tokenizer, its chat format and its engine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from automodel_cli import device as this_machine
from automodel_cli.assembly.checkpoint import LoadedModel, describe_weights, load_model
from automodel_cli.checkpoint import layout
from automodel_cli.config.schema.serving import AnsweringConfig
from automodel_cli.corpus.conversations.chat_format import ChatFormat, chat_format_of
from automodel_cli.corpus.tokenizer import Tokenizer
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.serving.engine import Engine
from automodel_cli.serving.prompts import PlainText, Prompter
from automodel_cli.serving.service import Service, Settings


@contextlib.contextmanager
def open_service(
    cfg: AnsweringConfig,
    *,
    trust: Sequence[str] = (),
    name: str | None = None,
    max_rows: int = 1,
    max_waiting: int = 1,
    timeout_s: float = float("inf"),
) -> Iterator[tuple[Service, tuple[str, ...]]]:
    """A service whose engine runs while the block does, and what people should be told of the checkpoint.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        ConfigError: there is no tokenizer, or no chat format where one was asked for.
        DataError: the tokenizer is not the model's.
    """
    device = this_machine.pick_device(cfg.device)
    this_machine.bound_the_heap()
    loaded = load_model(cfg.checkpoint, device=device, trust=trust, averaged=cfg.ema)
    tokenizer, separator_id = loaded.reads_with(cfg.tokenizer)
    chat = _chat_format(cfg, tokenizer, loaded)
    engine = Engine(
        loaded.model,
        tokenizer.decode_bytes,
        device=device,
        autocast_dtype=this_machine.decoding_dtype(device),
        usable_ids=min(tokenizer.vocab_size, loaded.model.vocab_size),
        max_rows=max_rows,
        max_waiting=max_waiting,
    )
    service = Service(
        engine=engine,
        tokenizer=tokenizer,
        plain=PlainText(tokenizer, separator_id),
        chat=chat,
        name=name or model_name(loaded.path),
        identity=str(describe_weights(loaded)["fingerprint"]),
        context=loaded.model.max_seq_len,
        vocab_size=loaded.model.vocab_size,
        defaults=Settings(
            cfg.max_new_tokens, cfg.temperature, cfg.top_k, cfg.top_p, cfg.seed, tuple(filter(None, cfg.stop))
        ),
        timeout_s=timeout_s,
    )
    engine.start()
    try:
        yield service, loaded.notes
    finally:
        engine.close()


def _chat_format(cfg: AnsweringConfig, tokenizer: Tokenizer, loaded: LoadedModel) -> Prompter | None:
    """The format of conversations; None: plain text."""
    wanted = cfg.chat or (not loaded.facts or loaded.stage == "mid-training")
    if cfg.plain or not wanted:
        return None
    found = known_chat_format(tokenizer, loaded)
    if found is None and cfg.chat:
        raise ConfigError(f"{tokenizer.name} knows no chat format", "leave --chat out, or name a --tokenizer that does")
    return found


def known_chat_format(tokenizer: Tokenizer, loaded: LoadedModel) -> ChatFormat | None:
    """The format that a tokenizer brings, or None.

    Raises:
        DataError: the model has no row for its control tokens.
    """
    found = chat_format_of(tokenizer)
    if found is not None and max(found.stop_ids) >= loaded.model.vocab_size:
        raise DataError(
            f"the chat format of {tokenizer.name} uses token id {max(found.stop_ids):,}, the model has "
            f"{loaded.model.vocab_size:,} ids",
            "name the tokenizer that the model was trained with: --tokenizer",
        )
    return found


def model_name(path: Path) -> str:
    """``runs/a/step_00001000`` -> ``a``; any other folder's own name."""
    folder = path.resolve()
    return folder.parent.name if layout.step_of(folder.name) is not None else folder.name
