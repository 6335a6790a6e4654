"""What token files say of themselves: the part that all manifests share, and nanoGPT's ``manifest.json``.

A manifest is written last, and read by training, ``verify`` and exports.

It is deterministic: the same text and options give the same bytes. So it names no time, no worker count and
no absolute path; a corpus may be moved or copied and stays the same corpus.

| key        | value                                                                                        |
|------------|----------------------------------------------------------------------------------------------|
| format     | "automodel-corpus/1"                                                                         |
| layout     | "bin" (with header) or "raw"                                                                 |
| dtype      | "uint16" or "uint32"                                                                         |
| eot        | "prepend", "append" or "none"                                                                |
| separator  | which token that is: "eos" or "bos" (absent: "eos")                                          |
| tokenizer  | {name, fingerprint, vocab_size, eot_id, bos_id}                                              |
| documents, tokens, bad_rows | counts over all splits                                                      |
| files      | [{name, role, split, tokens, documents, bytes, xxh3}], tokens in reading order; of a mask    |
|            | ``tokens`` counts those that are learned, of an order ``documents`` its examples             |
| source, options, versions | where the text came from and what was asked                                   |
| self       | xxh3 of all the above                                                                        |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, ValidationError

from automodel_cli.errors import DataError
from automodel_cli.files import hash_bytes, hash_file, names_format, read_manifest, write_manifest
from automodel_cli.json_files import Count, FileModel, Items, PlainName, Xxh3, validated

MANIFEST_NAME = "manifest.json"
FORMAT = "automodel-corpus/1"
Role = Literal["tokens", "bos_index", "tokenizer", "meta", "mask", "order"]
Split = Literal["train", "val"]
Separator = Literal["eos", "bos"]
Eot = Literal["prepend", "append", "none"]
_Id = Annotated[int, Field(ge=0, lt=2**32)]


class _TokenizerFacts(FileModel):
    """What the manifests say of a tokenizer; see ``Tokenizer.describe``."""

    name: str
    fingerprint: str
    vocab_size: Annotated[int, Field(ge=0, le=2**32)]
    eot_id: _Id | None
    bos_id: _Id | None


def _tokenizer_facts(value: dict[str, Any]) -> dict[str, Any]:
    try:
        _TokenizerFacts.model_validate(value)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise ValueError(f"{problem['loc'][0]}: {problem['msg']}") from None
    return value


TokenizerFacts = Annotated[dict[str, Any], AfterValidator(_tokenizer_facts)]


Plan = dict[str, Any]
"""What decides the bytes: options, source and, of token files, the tokenizer."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What the manifests of all formats say; ``HINT`` is what to do where one is not as it should be."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    FORMAT: ClassVar[str]
    HINT: ClassVar[str] = "make the files again"

    folder: Path
    documents: Count
    bad_rows: Count
    source: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def own_path(self) -> Path:
        """Where it is."""
        return self.folder / MANIFEST_NAME

    @property
    def plan(self) -> Plan:
        """What decided the bytes."""
        return {"options": self.options, "source": self.source}

    def listed(self) -> Iterable[tuple[Path, int]]:
        """The files that it speaks of, besides a tokenizer's of its own folder, and the bytes of each."""
        raise NotImplementedError

    def body(self) -> dict[str, Any]:
        """What is written, besides ``format`` and ``self``."""
        return {key: value for key, value in asdict(self).items() if key != "folder"}

    def write(self) -> None:
        """Publish it: the files are complete from this moment on."""
        write_manifest(self.own_path, {"format": self.FORMAT, **self.body()})

    @classmethod
    def read(cls, path: Path, **known: Any) -> Self:
        """The manifest at ``path``; ``known`` are values that its place says.

        Raises:
            DataError: it is missing, damaged, or of another format.
        """
        body = read_manifest(path)
        found = body.pop("format", None)
        if found != cls.FORMAT:
            raise DataError(f"{path} has format {found!r}, expected {cls.FORMAT!r}", cls.HINT)
        del body["self"]
        return validated({**body, "folder": path.parent, **known}, cls, path, hint=cls.HINT)


@dataclass(frozen=True, kw_only=True)
class TokenManifest(Manifest):
    """What the manifests of both kinds of token files say."""

    tokenizer: TokenizerFacts
    tokens: Count

    @property
    def plan(self) -> Plan:
        return {**super().plan, "tokenizer": self.tokenizer}


@dataclass(frozen=True, kw_only=True)
class ListedFile:
    """A file that a manifest lists; ``name`` is relative to the folder, with forward slashes."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: PlainName
    bytes: Count
    xxh3: Xxh3


def size_and_hash(path: Path) -> dict[str, Any]:
    """``bytes`` and ``xxh3`` of a file, for its entry."""
    return {"bytes": path.stat().st_size, "xxh3": hash_file(path)}


@dataclass(frozen=True, kw_only=True)
class CorpusFile(ListedFile):
    """One file of a corpus."""

    role: Role
    split: Split | None
    tokens: Count
    documents: Count


@dataclass(frozen=True, kw_only=True)
class CorpusManifest(TokenManifest):
    """The content of a corpus folder's ``manifest.json``."""

    FORMAT = FORMAT
    HINT = "make the corpus again"

    layout: Literal["bin", "raw"]
    dtype: Literal["uint16", "uint32"]
    eot: Eot
    files: Items[CorpusFile]
    separator: Separator = "eos"

    @property
    def separator_id(self) -> int | None:
        """The id that stands before (or after) each document; None where there is none."""
        key = "bos_id" if self.separator == "bos" else "eot_id"
        return None if self.eot == "none" else self.tokenizer.get(key)

    def token_files(self, split: Split | None = None) -> tuple[CorpusFile, ...]:
        """The token files of ``split`` (or all) in reading order."""
        return tuple(f for f in self.files if f.role == "tokens" and split in (None, f.split))

    def path(self, file: CorpusFile) -> Path:
        """Where ``file`` is."""
        return self.folder / file.name

    def listed(self) -> Iterable[tuple[Path, int]]:
        return [(self.path(file), file.bytes) for file in self.files]

    def body(self) -> dict[str, Any]:
        body = super().body()
        if self.separator == "eos":
            del body["separator"]  # as in corpora from before there was a choice
        return body

    @classmethod
    def read(cls, path: Path, **known: Any) -> Self:
        manifest = super().read(path, **known)
        if manifest.eot != "none" and manifest.separator_id is None:
            raise DataError(f"{path}: its tokenizer has no token for separator {manifest.separator!r}", cls.HINT)
        return manifest

    def fingerprint(self, split: Split | None = None) -> str:
        """Identity of the data: ordered shard hashes and the tokenizer; folders and names do not count."""
        parts = [file.xxh3 for file in self.token_files(split)]
        return hash_bytes("\n".join([*parts, str(self.tokenizer["fingerprint"])]).encode())

    @property
    def tokenizer_folder(self) -> Path | None:
        """The ``tokenizer/`` folder of this corpus, if it has one."""
        return self.folder / "tokenizer" if any(f.role == "tokenizer" for f in self.files) else None


Facts = Mapping[str, dict[str, Any]]
"""What :func:`size_and_hash` gives, by the names of files that were hashed when they were made."""
NO_FACTS: Facts = MappingProxyType({})


def describe_file(
    folder: Path,
    name: str,
    role: Role,
    split: Split | None = None,
    *,
    tokens: int = 0,
    documents: int = 0,
    facts: Facts = NO_FACTS,
) -> CorpusFile:
    """``folder/name`` as a manifest entry."""
    known = facts.get(name) or size_and_hash(folder / name)
    return CorpusFile(name=name, role=role, split=split, tokens=tokens, documents=documents, **known)


def read_corpus_manifest(folder: Path | str) -> CorpusManifest:
    """The manifest of a corpus folder.

    Raises:
        DataError: it is missing, damaged, or of another format.
    """
    return CorpusManifest.read(Path(folder) / MANIFEST_NAME)


def find_manifest(token_file: Path | str) -> CorpusManifest | None:
    """The manifest beside ``token_file``, or None when there is none or it does not list this file.

    Raises:
        DataError: a corpus manifest is there but damaged.
    """
    token_file = Path(token_file)
    path = token_file.parent / MANIFEST_NAME
    # One of the two may be damaged.
    if not names_format(path, FORMAT) and not names_format(path, '"bos_index"'):
        return None  # somebody else's manifest.json
    manifest = read_corpus_manifest(token_file.parent)
    known = any(file.name == token_file.name for file in manifest.token_files())
    return manifest if known else None
