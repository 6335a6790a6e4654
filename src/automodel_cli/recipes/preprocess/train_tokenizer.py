"""A byte-level BPE from one's own text: read documents (a random part of much text), train, save."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from automodel_cli.config.schema.preprocess import TokenizerTrainConfig
from automodel_cli.corpus.build.mirror import local_folder
from automodel_cli.corpus.build.pipeline import BadRows, Progress
from automodel_cli.corpus.documents.readers import read_unit
from automodel_cli.corpus.documents.source import Source, open_source, read_options
from automodel_cli.corpus.shuffle.splitting import document_hash
from automodel_cli.corpus.tokenizers.base import SAVED_FILES, TOKENIZER_FILE, TOKENIZER_FORMAT
from automodel_cli.corpus.tokenizers.hf import HFTokenizer
from automodel_cli.corpus.tokenizers.train_bpe import train_bpe
from automodel_cli.errors import ConfigError
from automodel_cli.files import exclusive_lock, make_folder, names_format

_CHUNK_DOCUMENTS = 256


@dataclass(frozen=True)
class TokenizerTrainResult:
    """The tokenizer, where it is, and what it learned from."""

    folder: Path
    tokenizer: HFTokenizer
    documents: int
    text_bytes: int
    bytes_per_token: float
    bad_rows: list[str]


def run(
    cfg: TokenizerTrainConfig, *, progress: Callable[[Progress], None], say: Callable[[str], None]
) -> TokenizerTrainResult:
    """Train and save.

    Raises:
        ConfigError: the folder holds another tokenizer, or the size cannot be.
        DataError: the source cannot be read or holds too little text.
    """
    folder = local_folder(cfg.output_dir)
    source = open_source(cfg.dataset, read_options(cfg, cfg.text_key), cfg.set_name, cfg.split)
    if source.note:
        say(source.note)
    reading = _Reading(source, cfg, progress)
    make_folder(folder)
    with exclusive_lock(folder / ".lock", busy=f"another process is writing to {folder}"):
        _refuse_others(folder, overwrite=cfg.overwrite)
        tokenizer = train_bpe(reading.texts(), cfg.vocab_size, name=folder.resolve().name)
        tokenizer.save(folder)
    sample = reading.sample
    ids = len(tokenizer.encode(sample))
    return TokenizerTrainResult(
        folder,
        tokenizer,
        reading.documents,
        reading.text_bytes,
        bytes_per_token=len(sample.encode()) / max(ids, 1),
        bad_rows=reading.bad_rows.first,
    )


def _refuse_others(folder: Path, *, overwrite: bool) -> None:
    """A tokenizer is replaced on request, and only one that this tool wrote."""
    there = [name for name in SAVED_FILES if (folder / name).exists() or (folder / name).is_symlink()]
    if not there:
        return
    marker = folder / TOKENIZER_FILE
    if marker.is_symlink() or not names_format(marker, TOKENIZER_FORMAT):
        raise ConfigError(f"{folder} holds {there[0]}, which this command did not make", "use another --output-dir")
    if not overwrite:
        raise ConfigError(f"{folder} holds a tokenizer", "use another --output-dir, or --overwrite")


class _Reading:
    """The documents to learn from; counts them on the way and keeps a little text to measure with."""

    def __init__(self, source: Source, cfg: TokenizerTrainConfig, progress: Callable[[Progress], None]) -> None:
        self._source, self._cfg, self._progress = source, cfg, progress
        self.documents = self.text_bytes = self._ordinal = 0
        self.sample = ""
        self.bad_rows = BadRows()

    def _share(self) -> float:
        """The part of the documents to draw: all of a source that is small enough or of unknown size."""
        total, wanted = self._source.total_bytes, self._cfg.max_bytes
        return 1.0 if total is None or wanted is None or total <= wanted else wanted / total

    def texts(self) -> Iterator[str]:
        """The documents that are drawn, counted as they pass."""
        share = self._share()
        file, rows = None, 0
        for unit in self._source.units(None, _CHUNK_DOCUMENTS):
            found = read_unit(unit, self._source.options)
            rows = 0 if unit.file != file else rows
            file = unit.file
            self.bad_rows.add(unit, rows, found.bad)
            rows += found.rows
            numbers = self._ordinal + np.arange(len(found.texts))
            self._ordinal += len(found.texts)
            drawn = document_hash(self._cfg.seed, "tokenizer", numbers) / 2**64 < share
            for text, chosen in zip(found.texts, drawn.tolist(), strict=True):
                if chosen:
                    self._count(text)
                    yield text
            counts = (self.documents, 0, self.text_bytes, self.bad_rows.count)
            self._progress(Progress("reading", *counts, through=unit.through))
            if self._cfg.max_bytes is not None and self.text_bytes >= self._cfg.max_bytes:
                return

    def _count(self, text: str) -> None:
        self.documents += 1
        self.text_bytes += len(text.encode())
        if len(self.sample) < 1 << 20:
            self.sample += text[: 1 << 16]
