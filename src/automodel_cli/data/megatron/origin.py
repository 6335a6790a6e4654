"""What the manifests beside Megatron's files say of them: which tokenizer made the ids, and how large they were.

Files of other tools have none; then nothing is known and nothing is refused. Manifests are read, files are not: what
is compared are sizes and types, ``automodel preprocess verify`` compares every byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from automodel_cli.corpus.formats.megatron_bin import idx_path
from automodel_cli.corpus.formats.megatron_manifest import Listed, MegatronManifest, find_megatron_manifests
from automodel_cli.corpus.tokenizer import load_tokenizer, open_tokenizer
from automodel_cli.corpus.tokenizers.base import Tokenizer
from automodel_cli.corpus.tokenizers.same_tokenizer import refuse_other_tokenizer
from automodel_cli.data.megatron.labels import SpecialIds, special_ids
from automodel_cli.data.megatron.parts import Part
from automodel_cli.errors import DataError


class TokenizerProvenance:
    """Manifests of the parts of one data set.

    Args:
        parts: its files.
        tokenizer: the one the configuration names: ours, transformers', a name or folder to open, or None.

    Raises:
        DataError: files that are not those of their manifest, files of several tokenizers, or another tokenizer
            than the one that made them.
    """

    def __init__(self, parts: Sequence[Part], tokenizer: Any = None) -> None:
        self.notes: list[str] = []
        listed = find_megatron_manifests([part.file.prefix for part in parts])
        for part, found in zip(parts, listed, strict=True):
            if found is not None:
                _refuse_other_files(part, found)
        manifests = {found.manifest.own_path: found.manifest for found in listed if found is not None}
        self._first: MegatronManifest | None = next(iter(manifests.values()), None)
        self.manifest = self._first if None not in listed else None  # of all the files
        self._given = tokenizer if not isinstance(tokenizer, str | Path) else self._open(str(tokenizer))
        self._loaded: Tokenizer | None = None
        for manifest in manifests.values():
            first, data = next(iter(manifests.values())), str(manifest.folder / manifest.name)
            if manifest.tokenizer["fingerprint"] != first.tokenizer["fingerprint"]:
                refuse_other_tokenizer(load_tokenizer(first.tokenizer_folder), manifest, data=data)
            if self._given is not None:
                refuse_other_tokenizer(self._given, manifest, data=data)

    def _open(self, name: str) -> Tokenizer:
        """The tokenizer of that name; where it cannot be had, the copy that the data brought with it."""
        try:
            return open_tokenizer(name)
        except DataError as error:
            first = self._first
            if first is None or not first.tokenizer_folder.is_dir():
                raise
            if name.rpartition("/")[2] != first.tokenizer["name"].rpartition("/")[2]:
                raise
            self.notes.append(f"{error.message}; the copy in {first.tokenizer_folder} serves")
            return load_tokenizer(first.tokenizer_folder)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer given, else the copy beside the data, else None. Loaded when it is asked for."""
        if self._given is None and self._loaded is None and self.manifest is not None:
            folder = self.manifest.tokenizer_folder
            self._loaded = load_tokenizer(folder) if folder.is_dir() else None
        return self._given if self._given is not None else self._loaded

    def special_ids(self) -> SpecialIds:
        """Of the tokenizer given, else the end-of-document id that the manifest names."""
        if self._given is not None or self.manifest is None:
            return special_ids(self._given)
        eod = self.manifest.eod_id
        return SpecialIds(self.manifest.tokenizer["eot_id"] if eod is None else eod)


def _refuse_other_files(part: Part, listed: Listed) -> None:
    """Compare what costs nothing: type, counts and sizes."""
    file, pair = part.file, listed.pair
    sizes = file.tokens.end_bytes, idx_path(file.prefix).stat().st_size
    found = (file.dtype.name, file.num_tokens, file.num_sequences, *sizes)
    expected = (listed.manifest.dtype, pair.tokens, pair.sequences, pair.bin_bytes, pair.idx_bytes)
    if found != expected:
        raise DataError(
            f"{part.prefix} is not what {listed.manifest.own_path} describes: {_counts(found)} instead of "
            f"{_counts(expected)}",
            "the files were replaced or copied in part: copy or make them again, or remove the manifest if another "
            "tool has made them since",
        )


def _counts(values: tuple[Any, ...]) -> str:
    dtype, tokens, sequences, *sizes = values
    return f"{dtype}, {tokens:,} tokens, {sequences:,} sequences, {sum(sizes):,} bytes"
