"""Text to ids and back: one small interface over tiktoken, Hugging Face, bytes and characters.

A tokenizer travels with its data: ``save`` writes a ``tokenizer/`` folder that ``load_tokenizer`` opens
offline, and every such folder has ``automodel_tokenizer.json``:

| key                               | value                                                                |
|-----------------------------------|----------------------------------------------------------------------|
| format                            | "automodel-tokenizer/1"                                              |
| kind                              | "tiktoken", "hf", "byte" or "char"                                   |
| name, vocab_size, eot_id, bos_id  | as the attributes of ``Tokenizer``                                   |
| fingerprint                       | hash of everything that decides the ids                              |
| special_tokens                    | {spelling: id}; of byte and char only where some were added          |
| pattern                           | tiktoken only; the ranks are in ``ranks.tiktoken``                   |

``hf`` folders also hold ``tokenizer.json`` and ``tokenizer_config.json`` (AutoTokenizer loads them), ``char``
folders ``vocab.json``, a list of characters. Text is never searched for special tokens.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tiktoken
from pydantic import Field

from automodel_cli.corpus.tokenizers.base import (
    MAX_VOCAB,
    TOKENIZER_FILE,
    WHERE_FROM,
    Tokenizer,
    checked_size,
    read_text,
    unreachable,
    write_bytes,
)
from automodel_cli.corpus.tokenizers.convert import MODEL, can_convert, convert
from automodel_cli.corpus.tokenizers.engines import (
    Engine,
    TiktokenEngine,
    failures_named,
    gigatoken_from_ranks,
)
from automodel_cli.corpus.tokenizers.hf import HFTokenizer
from automodel_cli.corpus.tokenizers.token_bytes import TokenBytes
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.files import hash_bytes, write_json
from automodel_cli.json_files import FileModel, Items, read_bytes, read_json, validated

_RESTORE = "restore or make it again"
# Which of gigatoken's pre-tokenizers is which tiktoken pattern. Their patterns also never match across the
# border between a letter and a following space or newline, so a huge text may be cut there.
_GIGATOKEN_SCHEME = {"gpt2": "gpt2", "r50k_base": "gpt2", "cl100k_base": "cl100k", "o200k_base": "o200k"}
# Names under which the Hugging Face Hub has GPT-2's vocabulary; one file for all sizes.
GPT2_NAMES = frozenset(
    prefix + name for prefix in ("", "openai-community/") for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
)
_GPT2_FILES = [
    f"https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/{name}" for name in ("vocab.bpe", "encoder.json")
]


# ------------------------------------------------------------------------------------------- tiktoken


_SpecialIds = dict[str, Annotated[int, Field(ge=0, lt=MAX_VOCAB)]]


class _TiktokenParts(FileModel):
    """What ``automodel_tokenizer.json`` of this kind has beside the ranks."""

    name: str
    pattern: str
    special_tokens: _SpecialIds


class TiktokenTokenizer(Tokenizer):
    """An OpenAI encoding: byte-level BPE given by ranks and a split pattern."""

    kind = "tiktoken"

    def __init__(self, encoding: tiktoken.Encoding, ranks_text: bytes | None = None) -> None:
        self.name = encoding.name
        self._encoding = encoding
        self._ranks_text = ranks_text or _format_ranks(encoding._mergeable_ranks)
        self.vocab_size = checked_size(encoding.max_token_value + 1, f"tokenizer {self.name!r}")
        self.eot_id = self.bos_id = encoding._special_tokens.get("<|endoftext|>")
        self.cuts_at_spaces = self.name in _GIGATOKEN_SCHEME
        self.reference = self.engine = TiktokenEngine(encoding)

    def _fast_engine(self) -> Engine | None:
        scheme = _GIGATOKEN_SCHEME.get(self.name)
        return None if scheme is None else gigatoken_from_ranks(self._ranks_text, scheme)

    def parsing_engine(self) -> Engine:
        return TiktokenEngine(self._encoding, parse=True)

    def special_texts(self) -> tuple[str, ...] | None:
        return tuple(sorted(self._encoding._special_tokens))

    def special_ids(self) -> Mapping[str, int]:
        return self._encoding._special_tokens

    def _with_more(self, spellings: Sequence[str]) -> Tokenizer:
        had = self._encoding
        encoding = tiktoken.Encoding(
            had.name,
            pat_str=had._pat_str,
            mergeable_ranks=had._mergeable_ranks,
            special_tokens=had._special_tokens | _numbered(spellings, self.vocab_size),
        )
        return TiktokenTokenizer(encoding, self._ranks_text)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        with failures_named(f"tokenizer {self.name!r} cannot decode", "is it the one that made these ids?"):
            return self._encoding.decode_bytes([int(i) for i in ids])

    def text_bytes(self) -> TokenBytes:
        sizes = np.zeros(self.vocab_size, dtype=np.int32)
        for token, rank in self._encoding._mergeable_ranks.items():
            sizes[rank] = len(token)
        return TokenBytes.everywhere(sizes)

    def fingerprint(self) -> str:
        rest = [self._encoding._pat_str, self._encoding._special_tokens]
        return hash_bytes(self._ranks_text + json.dumps(rest, sort_keys=True).encode())

    def _save_parts(self, folder: Path) -> dict[str, Any]:
        write_bytes(folder / "ranks.tiktoken", self._ranks_text)
        return {"pattern": self._encoding._pat_str, "special_tokens": self._encoding._special_tokens}

    @classmethod
    def named(cls, name: str) -> TiktokenTokenizer:
        """A published encoding, from tiktoken's cache or the network.

        Raises:
            DataError: the vocabulary is neither cached nor to be had.
        """
        try:
            return cls(tiktoken.get_encoding(name))
        except (OSError, ValueError) as error:  # requests' errors are OSErrors
            raise unreachable(f"vocabulary of tokenizer {name!r}", error) from error

    @classmethod
    def load(cls, folder: Path, body: dict[str, Any]) -> TiktokenTokenizer:
        """From a ``tokenizer/`` folder."""
        ranks_text = read_bytes(folder / "ranks.tiktoken")
        parts = validated(body, _TiktokenParts, folder / TOKENIZER_FILE)
        with failures_named(f"the tokenizer in {folder} is damaged", _RESTORE):
            encoding = tiktoken.Encoding(
                parts.name,
                pat_str=parts.pattern,
                mergeable_ranks=_parse_ranks(ranks_text),
                special_tokens=parts.special_tokens,
            )
            return cls(encoding, ranks_text)


def _format_ranks(ranks: dict[bytes, int]) -> bytes:
    """The text of a ``.tiktoken`` file: base64 token, space, rank, a line each, by rank."""
    ordered = sorted(ranks.items(), key=lambda item: item[1])
    return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ordered)


def _parse_ranks(text: bytes) -> dict[bytes, int]:
    fields = text.split()
    return {base64.b64decode(token): int(rank) for token, rank in zip(fields[::2], fields[1::2], strict=True)}


# ------------------------------------------------------------------------------------ bytes, characters


class _ByteEngine:
    name = "bytes"

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), dtype=np.uint8)


def _numbered(spellings: Iterable[str], first: int) -> dict[str, int]:
    return {text: first + number for number, text in enumerate(spellings)}


class _ListedSpecial(Tokenizer):
    """A tokenizer that has no special tokens with a spelling but those that were added, behind its other ids."""

    def __init__(self, size: int, special: Iterable[str]) -> None:
        self._special = _numbered(special, size)
        self._spelled = {index: text.encode() for text, index in self._special.items()}
        self.vocab_size = size + len(self._special)

    def special_ids(self) -> Mapping[str, int]:
        return self._special

    def _hash(self, content: bytes) -> str:
        return hash_bytes(content + (json.dumps(self._special).encode() if self._special else b""))

    def _save_parts(self, folder: Path) -> dict[str, Any]:
        return {"special_tokens": self._special} if self._special else {}


class ByteTokenizer(_ListedSpecial):
    """UTF-8 bytes are ids 0..255; 256 is end of text."""

    kind = name = "byte"
    vocab_size = 257
    eot_id = bos_id = 256
    cuts_at_spaces = True

    def __init__(self, special: Iterable[str] = ()) -> None:
        super().__init__(257, special)
        self.reference = self.engine = _ByteEngine()

    def _with_more(self, spellings: Sequence[str]) -> Tokenizer:
        return ByteTokenizer([*self._special, *spellings])

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(bytes([i]) if i < 256 else self._spelled.get(i, b"") for i in map(int, ids))

    def text_bytes(self) -> TokenBytes:
        return TokenBytes.everywhere(np.array([1] * 256 + [0] * (self.vocab_size - 256), dtype=np.int32))

    def fingerprint(self) -> str:
        return self._hash(b"byte 257")


class _CharEngine:
    name = "characters"

    def __init__(self, characters: list[str]) -> None:
        points = [ord(character) for character in characters]
        self._table = np.full(max(points, default=0) + 1, len(points), dtype=np.uint32)
        self._table[points] = np.arange(len(points), dtype=np.uint32)
        self._unknown = len(points)

    def encode(self, text: str) -> np.ndarray:
        points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        known = points < len(self._table)
        ids = self._table[np.where(known, points, 0)]
        wrong = ~known | (ids == self._unknown)
        if wrong.any():
            raise DataError(
                f"character {chr(points[wrong.argmax()])!r} is not in this vocabulary of {self._unknown}",
                "use the text the vocabulary was made from, or another tokenizer",
            )
        return ids


class CharTokenizer(_ListedSpecial):
    """One id a character, in code point order, as nanoGPT's Shakespeare example; no end-of-text."""

    kind = name = "char"
    cuts_at_spaces = True

    def __init__(self, characters: Iterable[str], special: Iterable[str] = ()) -> None:
        self.characters = sorted(set(characters))
        super().__init__(len(self.characters), special)
        self.reference = self.engine = _CharEngine(self.characters)

    def _with_more(self, spellings: Sequence[str]) -> Tokenizer:
        return CharTokenizer(self.characters, [*self._special, *spellings])

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(self._spelled.get(i) or self.characters[i].encode() for i in map(int, ids))

    def text_bytes(self) -> TokenBytes:
        sizes = [len(character.encode()) for character in self.characters] + [0] * len(self._special)
        return TokenBytes.everywhere(np.array(sizes, dtype=np.int32))

    def fingerprint(self) -> str:
        return self._hash(json.dumps(self.characters).encode())

    def _save_parts(self, folder: Path) -> dict[str, Any]:
        write_json(folder / "vocab.json", self.characters)
        return super()._save_parts(folder)


# ------------------------------------------------------------------------------------------- opening


class _Marker(FileModel):
    """What every ``automodel_tokenizer.json`` has and we look at; its other keys follow from the tokenizer."""

    kind: Literal["tiktoken", "hf", "byte", "char"]
    name: str
    fingerprint: str | None = None
    special_tokens: _SpecialIds = Field(default_factory=dict)


class _Characters(FileModel):
    """``vocab.json`` of a char tokenizer, a list of them."""

    characters: Items[Annotated[str, Field(min_length=1, max_length=1)]]


def open_tokenizer(name_or_folder: str | Path) -> Tokenizer:
    """The tokenizer a user means: a tiktoken name, ``byte``, a folder, a ``tokenizer.json``, a Hub id.

    Raises:
        ConfigError: ``char`` (it is made from data) or nothing by that name.
        DataError: it exists but cannot be had or read.
    """
    name = str(name_or_folder)
    if name == "byte":
        return ByteTokenizer()
    if name == "char":
        raise ConfigError(
            "a char vocabulary is made from the data", "give the tokenizer/ folder of a corpus made with it"
        )
    if name in tiktoken.list_encoding_names():
        return TiktokenTokenizer.named(name)
    path = Path(name)
    if path.is_dir():
        return load_tokenizer(path)
    if name in GPT2_NAMES:
        return _open_gpt2(name)
    if path.is_file():
        if path.name == MODEL:  # sentencepiece's, or a list of ranks: its folder says what it is
            return load_tokenizer(path.parent)
        return HFTokenizer(path.stem, tokenizer_json=read_text(path))
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not name.startswith("."):
        return HFTokenizer.from_hub(name)
    raise ConfigError(f"there is no tokenizer {name!r}", WHERE_FROM)


def _open_gpt2(name: str) -> Tokenizer:
    """GPT-2's tokenizer by one of its Hub names: from where it is had without a network, else from the Hub.

    tiktoken's vocabulary is made of the same two files (it checks their SHA-256), and both packages split text in the
    same way: the ids are equal, which a test holds against every code point.
    """
    if _gpt2_is_cached():
        return _gpt2_of_tiktoken(name)
    try:
        return HFTokenizer.from_hub(name, cached_only=True)
    except DataError:
        pass
    try:
        return HFTokenizer.from_hub(name)
    except DataError as error:
        try:
            return _gpt2_of_tiktoken(name)
        except DataError:
            raise error from None


def _gpt2_of_tiktoken(name: str) -> Tokenizer:
    tokenizer = TiktokenTokenizer.named("gpt2")
    tokenizer.note = f"{name}: GPT-2's vocabulary as tiktoken has it, which gives the same ids"
    return tokenizer


def _gpt2_is_cached() -> bool:
    """Whether tiktoken has GPT-2's two files on this disk."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    cache = Path(tempfile.gettempdir(), "data-gym-cache") if folder is None else Path(folder)
    return all((cache / hashlib.sha1(url.encode()).hexdigest()).is_file() for url in _GPT2_FILES)


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """A tokenizer from its folder: ours, a Hugging Face one, or a corpus or checkpoint that holds one.

    Raises:
        DataError: the folder holds no tokenizer, or one that is damaged.
    """
    folder = Path(folder)
    marker = folder / TOKENIZER_FILE
    if not marker.exists():
        if (folder / "tokenizer.json").exists():
            return HFTokenizer.load(folder)
        if (folder / "tokenizer").is_dir():
            return load_tokenizer(folder / "tokenizer")
        if can_convert(folder):
            return convert(folder)
        raise DataError(f"{folder} holds no tokenizer", f"expected {TOKENIZER_FILE} or tokenizer.json in it")
    body = read_json(marker, hint=_RESTORE)
    marked = validated(body, _Marker, marker, hint=_RESTORE)
    with failures_named(f"the tokenizer in {folder} is damaged", _RESTORE):
        tokenizer = _from_parts(folder, marked, body)
    if tokenizer.fingerprint() != marked.fingerprint:
        raise DataError(
            f"the tokenizer in {folder} does not match its fingerprint",
            "its files were changed; restore them or make them again",
        )
    return tokenizer


def _from_parts(folder: Path, marked: _Marker, body: dict[str, Any]) -> Tokenizer:
    if marked.kind == "tiktoken":
        return TiktokenTokenizer.load(folder, body)
    if marked.kind == "hf":
        return HFTokenizer.load(folder, name=marked.name)
    special = sorted(marked.special_tokens, key=marked.special_tokens.__getitem__)
    if marked.kind == "char":
        listed = read_json(folder / "vocab.json", hint=_RESTORE)
        known = validated({"characters": listed}, _Characters, folder / "vocab.json")
        return CharTokenizer(known.characters, special)
    return ByteTokenizer(special)
