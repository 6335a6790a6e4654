"""What ``preprocess megatron`` says of the files it made: ``PREFIX.manifest.json``, written last.

``PREFIX`` is the output prefix, so the name does not match a pattern for its pairs (``PREFIX_*_text_document*``), which
other readers expect to match ``.bin`` and ``.idx`` files alone. Deterministic: no times, workers or absolute paths.

| key        | value                                                                                          |
|------------|------------------------------------------------------------------------------------------------|
| format     | "automodel-megatron/1"                                                                         |
| keys       | fields of the rows, a pair of files each                                                       |
| level      | "document", or "sentence" where texts were cut into sentences                                  |
| dtype      | "uint16" or "int32"                                                                            |
| eod_id     | the id after each document, or null                                                            |
| tokenizer  | {name, fingerprint, vocab_size, eot_id, bos_id}                                                |
| documents, sequences, tokens | sums over all pairs                                                          |
| bad_rows   | rows that were left out                                                                        |
| pairs      | [{name, part, key, source, tokens, sequences, documents, bin_bytes, bin_xxh3, idx_bytes, idx_xxh3}] |
| tokenizer_files | [{name, bytes, xxh3}] of the folder ``PREFIX.tokenizer``                                  |
| source, options, versions | where the text came from and what was asked                                     |
| self       | xxh3 of all the above                                                                          |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict

from automodel_cli.corpus.build.megatron_sink import MegatronLayout, Pair
from automodel_cli.corpus.formats.manifest import NO_FACTS, Facts, ListedFile, TokenManifest, size_and_hash
from automodel_cli.corpus.formats.megatron_bin import bin_path, idx_path
from automodel_cli.corpus.tokenizers.base import SAVED_FILES
from automodel_cli.files import names_format
from automodel_cli.json_files import Count, Items, PlainName, Xxh3

FORMAT = "automodel-megatron/1"
SUFFIX = ".manifest.json"


@dataclass(frozen=True)
class PairEntry:
    """One pair of files; ``name`` is its prefix in the folder, ``source`` the input file it was made from, if one."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: PlainName
    part: Count
    key: str
    source: str | None
    tokens: Count
    sequences: Count
    documents: Count
    bin_bytes: Count
    bin_xxh3: Xxh3
    idx_bytes: Count
    idx_xxh3: Xxh3


@dataclass(frozen=True, kw_only=True)
class MegatronManifest(TokenManifest):
    """The content of a ``PREFIX.manifest.json``."""

    FORMAT = FORMAT

    name: str
    keys: Items[str]
    level: Literal["document", "sentence"]
    dtype: Literal["uint16", "int32"]
    eod_id: Count | None
    sequences: Count
    pairs: Items[PairEntry]
    tokenizer_files: Items[ListedFile]

    @property
    def own_path(self) -> Path:
        """Where it is."""
        return self.folder / f"{self.name}{SUFFIX}"

    @property
    def separator_id(self) -> int | None:
        """The id after each document, if there is one."""
        return self.eod_id

    @property
    def tokenizer_folder(self) -> Path:
        """The tokenizer that made the ids."""
        return self.folder / f"{self.name}.tokenizer"

    def prefix(self, pair: PairEntry) -> Path:
        """Path of a pair without ``.bin`` and ``.idx``."""
        return self.folder / pair.name

    def listed(self) -> Iterable[tuple[Path, int]]:
        for pair in self.pairs:
            yield bin_path(self.prefix(pair)), pair.bin_bytes
            yield idx_path(self.prefix(pair)), pair.idx_bytes

    def body(self) -> dict[str, Any]:
        return {key: value for key, value in super().body().items() if key != "name"}

    @classmethod
    def read(cls, path: Path, **known: Any) -> Self:
        return super().read(path, name=path.name.removesuffix(SUFFIX), **known)


def describe_pair(layout: MegatronLayout, pair: Pair, source: str | None, facts: Facts = NO_FACTS) -> PairEntry:
    """Sizes and hashes of a published pair."""
    prefix = layout.prefix(pair.part, pair.key)
    data, index = (facts.get(path.name) or size_and_hash(path) for path in (bin_path(prefix), idx_path(prefix)))
    return PairEntry(
        name=prefix.name,
        source=source,
        bin_bytes=data["bytes"],
        bin_xxh3=data["xxh3"],
        idx_bytes=index["bytes"],
        idx_xxh3=index["xxh3"],
        **asdict(pair),
    )


def describe_tokenizer(folder: Path) -> tuple[ListedFile, ...]:
    """Sizes and hashes of a tokenizer's files."""
    found = sorted(folder / name for name in SAVED_FILES if (folder / name).is_file())
    return tuple(ListedFile(name=path.name, **size_and_hash(path)) for path in found)


def is_megatron_manifest(path: Path) -> bool:
    """Whether ``path`` is one of these, sound or not, also where it is the format's name that is damaged."""
    return path.name.endswith(SUFFIX) and (names_format(path, FORMAT) or names_format(path, '"idx_xxh3"'))


@dataclass(frozen=True)
class Listed:
    """A pair, and the manifest that lists it."""

    manifest: MegatronManifest
    pair: PairEntry


def find_megatron_manifests(prefixes: Sequence[Path]) -> list[Listed | None]:
    """What manifests beside the pairs ``prefixes`` say of each; each manifest is read once.

    Raises:
        DataError: a manifest whose name fits is damaged.
    """
    names: dict[Path, list[str]] = {}
    for prefix in prefixes:
        names.setdefault(prefix.parent, []).append(prefix.name)
    known: dict[Path, Listed] = {}
    for folder, wanted in names.items():
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            beginning = f"{path.name.removesuffix(SUFFIX)}_"
            if any(name.startswith(beginning) for name in wanted) and is_megatron_manifest(path):
                manifest = MegatronManifest.read(path)
                for pair in manifest.pairs:
                    known.setdefault(folder / pair.name, Listed(manifest, pair))
    return [known.get(prefix) for prefix in prefixes]
