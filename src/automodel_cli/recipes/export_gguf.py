"""``automodel export gguf``: a checkpoint as a file that llama.cpp, and what is built on it, loads.

One process on one machine, without a device: tensors are read and written one at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from automodel_cli.assembly.checkpoint import refuse_unloadable
from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.layout import Say
from automodel_cli.checkpoint.storage.step_files import StepReader
from automodel_cli.config.schema.results import ExportGGUFConfig
from automodel_cli.corpus.tokenizer import Tokenizer, load_tokenizer, open_tokenizer
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.plain_text import without_controls

try:
    from automodel_cli.checkpoint.gguf import architecture, form, vocabulary, write
    from automodel_cli.checkpoint.gguf.write import Progress
except ModuleNotFoundError as error:
    if error.name != "gguf":
        raise
    raise ConfigError("the package gguf is not installed", "pip install 'automodel-cli[gguf]'") from error


@dataclass(frozen=True)
class Exported:
    """What was made of which checkpoint or folder."""

    source: Path
    file: Path
    modelfile: Path
    model: str
    num_bytes: int


def run(cfg: ExportGGUFConfig, *, progress: Progress | None = None, say: Say | None = None) -> Exported:
    """Write the model of a checkpoint or Hugging Face folder, with its tokenizer, as a GGUF file and a Modelfile.

    Raises:
        CheckpointError: there is no such checkpoint, it is damaged, its weights are no numbers, llama.cpp has no model
            that computes the same function, or a file exists.
        DataError: llama.cpp has no tokenizer that makes the same tokens.
        ConfigError: there is no tokenizer, or the package gguf is not installed.
    """
    output = Path(cfg.output_file)
    write.refuse_existing(output)
    source = layout.checkpoint_at(cfg.checkpoint)
    if source is not None:
        found = form.of_step(_checked(source, averaged=cfg.ema), averaged=cfg.ema)
    else:
        source = Path(cfg.checkpoint)
        refuse_unloadable(source, averaged=cfg.ema)
        found = form.of_folder(source)
    model = architecture.layout_of(found)
    vocab = vocabulary.vocabulary_of(_tokenizer(cfg, source), model.rows)
    for note in vocab.notes if say is not None else ():
        say(note)  # type: ignore[misc]
    place = source.resolve()
    name = without_controls(place.parent.name if layout.step_of(place.name) is not None else place.name)
    write.write(model, vocab, output, type_name=cfg.type, name=name, progress=progress, say=say)
    return Exported(source, output, write.modelfile_of(output), model.name, output.stat().st_size)


def _checked(step: Path, *, averaged: bool) -> StepReader:
    """A step whose files are as they were written."""
    reader = StepReader(step)
    for name in (*reader.names("model"), *(reader.names("ema") if averaged else ()), *reader.names("tokenizer")):
        reader.check(name)
    return reader


def _tokenizer(cfg: ExportGGUFConfig, source: Path) -> Tokenizer:
    if cfg.tokenizer is not None:
        return open_tokenizer(cfg.tokenizer)
    try:
        return load_tokenizer(source)
    except DataError as error:
        raise ConfigError(
            f"a GGUF file needs a tokenizer: {error.message}", "name it: --tokenizer NAME|FOLDER (gpt2 for GPT-2)"
        ) from error
