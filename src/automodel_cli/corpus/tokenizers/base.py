"""What every tokenizer is: ids for text, text for ids, an identity, and a folder it can be saved to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from automodel_cli.corpus.formats.nanogpt_bin import token_dtype
from automodel_cli.corpus.tokenizers.engines import CheckedEngine, Engine, first_difference, probe_texts
from automodel_cli.corpus.tokenizers.token_bytes import TokenBytes
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.files import atomic_file, write_json
from automodel_cli.json_files import read_bytes

TOKENIZER_FILE = "automodel_tokenizer.json"
TOKENIZER_FORMAT = "automodel-tokenizer/1"
SAVED_FILES = (TOKENIZER_FILE, "tokenizer.json", "tokenizer_config.json", "ranks.tiktoken", "vocab.json")
"""All that ``Tokenizer.save`` writes, whatever its kind."""
CARRIED_FILES = frozenset({
    *SAVED_FILES, "special_tokens_map.json", "added_tokens.json", "merges.txt", "vocab.txt", "tokenizer.model",
    "chat_template.jinja",
})  # fmt: skip
"""What of a tokenizer's folder goes along into checkpoints and exports: nothing else, and no links."""
EngineChoice = Literal["auto", "reference", "fast"]
MAX_VOCAB = 1 << 24
"""Ids that a tokenizer may have; the largest in use have a quarter of a million."""


class Tokenizer:
    """Base of the four kinds.

    Attributes:
        name: what the user asked for, without folders.
        vocab_size: number of ids; every id is below it.
        eot_id, bos_id, pad_id: end-of-text, beginning-of-text and padding ids, or None.
        note: a line on which vocabulary serves, where it is not the one that was named.
        chat_template: how conversations are rendered, where the tokenizer brings that.
        cuts_at_spaces: whether encoding is unchanged when a text is cut between a letter and a space.
        reference, engine: what defines the ids; what encodes (the same until ``use_engine`` is called).
    """

    kind: str
    name: str
    vocab_size: int
    eot_id: int | None = None
    bos_id: int | None = None
    pad_id: int | None = None
    note: str = ""
    chat_template: str | None = None
    cuts_at_spaces: bool = False
    reference: Engine
    engine: Engine

    @property
    def dtype(self) -> np.dtype:
        """The smallest dtype of a token file that holds every id."""
        return token_dtype(self.vocab_size)

    def use_engine(self, choice: EngineChoice = "auto", *, probe: bool = True) -> str:
        """Choose what encodes and say which: "reference", or the fast engine if it passes the probe.

        ``probe=False`` is for a worker whose parent has asked the same question already.

        Raises:
            ConfigError: "fast" was asked for and cannot be had.
        """
        reference = self.reference
        fast = self._fast_engine() if choice != "reference" else None
        if fast is None and choice == "fast":
            raise ConfigError(
                f"there is no fast engine for tokenizer {self.name!r} here",
                "pip install 'automodel-cli[fast]', or use --engine auto",
            )
        odd = first_difference(fast, reference, probe_texts()) if fast is not None and probe else None
        if fast is not None and odd is not None:
            if choice == "fast":
                raise ConfigError(f"{fast.name} disagrees with {reference.name} on {odd[:40]!r}", "--engine auto")
            self.engine = reference
            return f"{reference.name} ({fast.name} disagreed with it on {odd[:40]!r})"
        self.engine = reference if fast is None else CheckedEngine(fast, reference)
        return self.engine.name

    @property
    def engine_choice(self) -> EngineChoice:
        """What a worker chooses without asking, to encode as this process does."""
        return "fast" if isinstance(self.engine, CheckedEngine) else "reference"

    def say_engine(self, choice: EngineChoice, say: Callable[[str], None]) -> str:
        """:meth:`use_engine`, and what people should know of the tokenizer."""
        engine = self.use_engine(choice)
        if self.note:
            say(self.note)
        say(f"tokenizer {self.name}: {self.vocab_size:,} ids, encoded by {engine}")
        return engine

    def _fast_engine(self) -> Engine | None:
        return None

    def parsing_engine(self) -> Engine:
        """A reference engine that reads special tokens in text as such; the plain one where there are none."""
        return self.reference

    def special_texts(self) -> tuple[str, ...] | None:
        """How special tokens are spelled: a text without any of these has none. None: that cannot be told."""
        return ()

    def special_ids(self) -> Mapping[str, int]:
        """Special tokens that have a spelling, by it: ids that ``encode`` makes of no text."""
        return {}

    def with_special(self, spellings: Iterable[str]) -> Tokenizer:
        """The same tokenizer with further special tokens at the next free ids; itself where it has them all.

        Raises:
            DataError: its vocabulary has one of them for plain text.
        """
        new = [text for text in spellings if text not in self.special_ids()]
        return self._with_more(new) if new else self

    def _with_more(self, spellings: Sequence[str]) -> Tokenizer:
        raise NotImplementedError

    def added_ids(self) -> tuple[list[int], list[int]]:
        """Special ids that the tokenizer by itself puts before and after each text."""
        return [], []

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, with nothing added and no special token recognised in it."""
        return self.engine.encode(text).tolist()

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """All ids one after another (``dtype``) and the number of ids of each text (int64)."""
        return flatten([self.engine.encode(text) for text in texts], self.dtype)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of ``ids``."""
        raise NotImplementedError

    def text_bytes(self) -> TokenBytes | None:
        """Bytes of text that each token stands for; None where that cannot be told: for bits per byte."""
        raise NotImplementedError

    def token_bytes(self) -> np.ndarray | None:
        """The same within a text, int32 ``[vocab_size]``, 0 for special tokens, -1 where one is unknown."""
        known = self.text_bytes()
        return None if known is None else known.inside

    def fingerprint(self) -> str:
        """Hash of everything that decides the ids."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """What a manifest records of this tokenizer."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint(),
            "vocab_size": self.vocab_size,
            "eot_id": self.eot_id,
            "bos_id": self.bos_id,
        }

    def save(self, folder: Path | str) -> None:
        """Write all that ``load_tokenizer`` needs into ``folder``; equal tokenizers give equal bytes."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        extra = self._save_parts(folder)
        body = {"format": TOKENIZER_FORMAT, "kind": self.kind, **self.describe(), **extra}
        write_json(folder / TOKENIZER_FILE, body)

    def _save_parts(self, folder: Path) -> dict[str, Any]:
        """Write the files of this kind; further keys for ``automodel_tokenizer.json``."""
        return {}


def flatten(pieces: list[np.ndarray], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate into one buffer of ``dtype``; also the length of each piece (int64)."""
    lengths = np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces))
    flat = np.empty(int(lengths.sum()), dtype=dtype)
    if pieces:
        np.concatenate(pieces, out=flat, casting="unsafe")  # ids are below vocab_size, so they fit
    return flat, lengths


WHERE_FROM = (
    "without a network: set TIKTOKEN_CACHE_DIR to a folder with the cached vocabulary, name a folder that "
    "holds tokenizer.json, use --tokenizer byte, or train one with `automodel preprocess tokenizer`"
)


def unreachable(what: str, error: Exception) -> DataError:
    return DataError(f"the {what} cannot be loaded: {type(error).__name__}: {str(error)[:100]}", WHERE_FROM)


def checked_size(vocab_size: int, where: str) -> int:
    """``vocab_size`` where tables of so many ids are reasonable.

    Raises:
        DataError: an id that no table should be made for.
    """
    if not 0 < vocab_size <= MAX_VOCAB:
        raise DataError(
            f"{where}: its ids go up to {vocab_size - 1:,}, expected some below {MAX_VOCAB:,}",
            "restore the tokenizer's files, or make it again",
        )
    return vocab_size


def read_text(path: Path) -> str:
    """A tokenizer's text file.

    Raises:
        DataError: missing, no regular file, too large, or not UTF-8 text.
    """
    data = read_bytes(path)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text, expected a tokenizer's JSON", WHERE_FROM) from None


def write_bytes(path: Path, data: bytes) -> None:
    with atomic_file(path) as handle:
        handle.write(data)
