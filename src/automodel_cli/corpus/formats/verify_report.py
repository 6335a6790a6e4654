"""What ``preprocess verify`` found, whichever kind of token files it looked at."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from automodel_cli.corpus.formats.token_reader import TokenReader
from automodel_cli.corpus.tokenizer import Tokenizer, load_tokenizer
from automodel_cli.errors import AutomodelError
from automodel_cli.files import hash_file

_SHOWN_TOKENS = 48


@dataclass(frozen=True)
class FileReport:
    """One token file as it was found."""

    name: str
    layout: str
    dtype: str
    tokens: int
    documents: int | None
    largest_id: int


@dataclass
class VerifyReport:
    """What was found; the corpus is sound if ``problems`` is empty. Each problem names its file."""

    path: Path | str
    manifest: Any = None
    files: list[FileReport] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    documents: list[tuple[str, str]] = field(default_factory=list)  # (file, text)
    hashed: int = 0

    def compare(self, path: Path, num_bytes: int, xxh3: str) -> bool:
        """A listed file against its size and hash; False where there is nothing more to look at."""
        if there := self.has_size(path, num_bytes):
            self.compare_hash(path, hash_file(path), xxh3)
        return there

    def has_size(self, path: Path, num_bytes: int) -> bool:
        """Whether a listed file is there with its bytes."""
        if not path.is_file():
            self.problems.append(f"{path} is missing")
        elif (size := path.stat().st_size) != num_bytes:
            self.problems.append(f"{path} is {size:,} bytes long, the manifest says {num_bytes:,}")
        else:
            return True
        return False

    def compare_hash(self, path: Path | str, found: str, listed: str) -> None:
        """The hash of a whole file against the manifest's."""
        self.hashed += 1
        if found != listed:
            self.problems.append(f"{path} was changed: its hash is not the one in the manifest")

    def check_ids(self, path: Path, smallest: int, largest: int, vocab_size: int | None) -> None:
        """Ids must be of the vocabulary, where that is known."""
        if smallest < 0 or (vocab_size is not None and largest >= vocab_size):
            limit = "" if vocab_size is None else f", but the vocabulary ends at {vocab_size - 1}"
            self.problems.append(f"{path} holds token id {smallest if smallest < 0 else largest}{limit}")

    def open_tokenizer(self, folder: Path, described: dict[str, Any]) -> Tokenizer | None:
        """The tokenizer that a manifest describes, from its copy."""
        try:
            tokenizer = load_tokenizer(folder)
        except AutomodelError as error:
            self.problems.append(error.message)
            return None
        if tokenizer.fingerprint() != described["fingerprint"]:
            self.problems.append(f"{folder} is not the tokenizer that the manifest names")
        return tokenizer

    def show(self, name: str, tokenizer: Tokenizer, reader: TokenReader, start: int, stop: int) -> None:
        """The beginning of the document that these tokens are."""
        ids = reader.read(start, min(stop - start, _SHOWN_TOKENS)).tolist()
        try:
            self.documents.append((name, tokenizer.decode(ids)))
        except Exception as error:  # ids beyond the vocabulary; the problem is named already
            self.documents.append((name, f"cannot be decoded: {type(error).__name__}"))
