"""``automodel import``: a checkpoint of nanoGPT, litgpt or lingua as a Hugging Face folder."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from automodel_cli.checkpoint.hf import export as hf_export
from automodel_cli.checkpoint.imports import trainers as imports
from automodel_cli.checkpoint.imports.imported import Imported
from automodel_cli.checkpoint.inspect.describe import folder_bytes
from automodel_cli.checkpoint.layout import Say
from automodel_cli.config.schema.results import ImportConfig
from automodel_cli.corpus.tokenizer import Tokenizer, open_tokenizer
from automodel_cli.errors import AutomodelError, DataError


@dataclass(frozen=True)
class ImportResult:
    """What was made of whose checkpoint."""

    trainer: str
    folder: Path
    num_bytes: int


def run(cfg: ImportConfig, *, say: Say | None = None) -> ImportResult:
    """Write the model of a foreign checkpoint, and a tokenizer, as a Hugging Face folder.

    Raises:
        CheckpointError: no such checkpoint, damaged, of a model that ours cannot hold, or the folder exists.
        ConfigError, DataError: the tokenizer cannot be opened, or has more ids than the model.
    """
    say, folder = say or (lambda line: None), Path(cfg.output)
    hf_export.refuse_existing(folder)
    found = imports.read(cfg.source, activation=cfg.activation)
    tokenizer, model = _tokenizer(cfg, found, say), found.model()
    for note in found.notes:
        say(note)
    with tempfile.TemporaryDirectory(prefix="automodel-import-") as place:
        if tokenizer is not None:
            tokenizer.save(Path(place, "tokenizer"))
        tokenizer_folder = None if tokenizer is None else Path(place, "tokenizer")
        weights = hf_export.Source(found.dtypes, found.read)
        with hf_export.new_folder(folder) as writer:
            hf_export.write(model, weights, writer, "", tokenizer_folder, say=say)
    return ImportResult(found.source, folder, folder_bytes(folder))


def _tokenizer(cfg: ImportConfig, found: Imported, say: Say) -> Tokenizer | None:
    """As asked for, else the one in the folder; None, with a word, where there is none."""
    tokenizer = open_tokenizer(cfg.tokenizer) if cfg.tokenizer is not None else _beside(found.where.parent)
    rows = found.arguments["vocab_size"]
    if tokenizer is None:
        say("no tokenizer is put beside the weights; --tokenizer NAME|FOLDER does it (for OpenWebText: gpt2)")
    elif tokenizer.vocab_size > rows:
        raise DataError(
            f"tokenizer {tokenizer.name} has {tokenizer.vocab_size:,} ids, the model {rows:,}",
            "name the tokenizer that the model was trained with: --tokenizer",
        )
    return tokenizer


def _beside(folder: Path) -> Tokenizer | None:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return None
    try:
        return open_tokenizer(folder)
    except AutomodelError:
        return None
