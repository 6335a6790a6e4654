"""What a corpus says of itself: ``manifest.json``, written last, read by training, ``verify`` and exports.

It is deterministic: the same text and options give the same bytes. So it names no time, no worker count and
no absolute path; a corpus may be moved or copied and stays the same corpus.

| key        | value                                                                                        |
|------------|----------------------------------------------------------------------------------------------|
| format     | "automodel-corpus/1"                                                                         |
| layout     | "bin" (with header) or "raw"                                                                 |
| dtype      | "uint16" or "uint32"                                                                         |
| eot        | "prepend", "append" or "none"                                                                |
| tokenizer  | {name, fingerprint, vocab_size, eot_id, bos_id}                                              |
| documents, tokens, bad_rows | counts over all splits                                                      |
| files      | [{name, role, split, tokens, documents, bytes, xxh3}], tokens in reading order               |
| source, options, versions | where the text came from and what was asked                                   |
| self       | xxh3 of all the above                                                                        |
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from automodel_cli.errors import DataError
from automodel_cli.files import hash_bytes, hash_file, read_manifest, write_manifest

MANIFEST_NAME = "manifest.json"
FORMAT = "automodel-corpus/1"
Role = Literal["tokens", "bos_index", "tokenizer", "meta"]
Split = Literal["train", "val"]


@dataclass(frozen=True)
class CorpusFile:
    """One file of a corpus; ``name`` is relative to the folder, with forward slashes."""

    name: str
    role: Role
    split: Split | None
    tokens: int
    documents: int
    bytes: int
    xxh3: str


@dataclass(frozen=True)
class CorpusManifest:
    """The content of a corpus folder's ``manifest.json``."""

    folder: Path
    layout: Literal["bin", "raw"]
    dtype: Literal["uint16", "uint32"]
    eot: Literal["prepend", "append", "none"]
    tokenizer: dict[str, Any]
    documents: int
    tokens: int
    bad_rows: int
    files: tuple[CorpusFile, ...]
    source: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def token_files(self, split: Split | None = None) -> tuple[CorpusFile, ...]:
        """The token files of ``split`` (or all) in reading order."""
        return tuple(f for f in self.files if f.role == "tokens" and split in (None, f.split))

    def path(self, file: CorpusFile) -> Path:
        """Where ``file`` is."""
        return self.folder / file.name

    def fingerprint(self, split: Split | None = None) -> str:
        """Identity of the data: ordered shard hashes and the tokenizer; folders and names do not count."""
        parts = [file.xxh3 for file in self.token_files(split)]
        return hash_bytes("\n".join([*parts, str(self.tokenizer["fingerprint"])]).encode())

    @property
    def tokenizer_folder(self) -> Path | None:
        """The ``tokenizer/`` folder of this corpus, if it has one."""
        return self.folder / "tokenizer" if any(f.role == "tokenizer" for f in self.files) else None


def describe_file(
    folder: Path, name: str, role: Role, split: Split | None = None, *, tokens: int = 0, documents: int = 0
) -> CorpusFile:
    """Size and hash of ``folder/name`` as a manifest entry."""
    path = folder / name
    return CorpusFile(name, role, split, tokens, documents, path.stat().st_size, hash_file(path))


def write_corpus_manifest(manifest: CorpusManifest) -> Path:
    """Publish ``manifest`` in its folder; the corpus is complete from this moment on."""
    body = asdict(manifest)
    del body["folder"]
    path = manifest.folder / MANIFEST_NAME
    write_manifest(path, {"format": FORMAT, **body})
    return path


def read_corpus_manifest(folder: Path | str) -> CorpusManifest:
    """The manifest of a corpus folder.

    Raises:
        DataError: it is missing, damaged, or of another format.
    """
    folder = Path(folder)
    path = folder / MANIFEST_NAME
    body = read_manifest(path)
    found = body.pop("format", None)
    if found != FORMAT:
        raise DataError(f"{path} has format {found!r}, expected {FORMAT!r}", "make the corpus again")
    body.pop("self")
    try:
        files = tuple(CorpusFile(**entry) for entry in body.pop("files"))
        return CorpusManifest(folder=folder, files=files, **body)
    except (TypeError, KeyError) as error:
        raise DataError(
            f"{path} does not have the expected keys: {error}", "make the corpus again"
        ) from error


def find_manifest(token_file: Path | str) -> CorpusManifest | None:
    """The manifest beside ``token_file``, or None when there is none or it does not list this file.

    Raises:
        DataError: a corpus manifest is there but damaged.
    """
    token_file = Path(token_file)
    path = token_file.parent / MANIFEST_NAME
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    if b'"self"' not in text and FORMAT.encode() not in text:
        return None  # somebody else's manifest.json
    manifest = read_corpus_manifest(token_file.parent)
    known = any(file.name == token_file.name for file in manifest.token_files())
    return manifest if known else None
