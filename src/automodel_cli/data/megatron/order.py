"""Order of Megatron-Core: which tokens sample ``k`` holds, by its document, sample, shuffle and blend indices.

1. Each part of the blend is asked for so many samples that its share of the whole is met.
2. Epochs and samples of each follow from its number of tokens alone, and with them the length of the blend.
3. The indices are read from the cache, or built in it (``gpt_index``, ``blending``).
4. Sample ``k``: the blend says which part and which of its samples, the shuffle index which row, the sample index
   where it begins and ends, the document index which sequences lie between.

Known differences, all where megatron-core stops or hangs: a part without tokens and one without a whole sample
are errors that name it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from automodel_cli.corpus.formats.megatron_index import MegatronIndex
from automodel_cli.data.files.open_files import OpenFiles, TokenShards
from automodel_cli.data.interface import BlendStats
from automodel_cli.data.megatron.blending import BlendIndices, blend, blend_all
from automodel_cli.data.megatron.gpt_index import (
    Epochs,
    GptIndices,
    SplitBounds,
    build_indices,
    count_epochs,
    normalize,
)
from automodel_cli.data.megatron.index_cache import Arrays, ArraySpec, IndexCache, IndexEntry, stem_of
from automodel_cli.data.megatron.parts import Part, state_of_index
from automodel_cli.data.megatron.sample_order import OrderSettings, SampleOrder
from automodel_cli.errors import DataError
from automodel_cli.text import binary_size

_INT32_END = 2**31


@dataclass(frozen=True)
class CacheKeys:
    """Names that megatron-core 0.16.1 gives to its cached indices: the md5 of a description of the data set.

    With them ``index_mapping_dir`` can be shared with megatron-core: each finds what the other wrote, where paths,
    sizes and tokenizer are spelled alike. (megatron-core does not notice data that was changed; we do.)

    Args:
        split: the split as text, None where each split has its own files.
        matrix: bounds of train, valid and test, None likewise.
        tokenizer: its ``unique_identifiers``.
    """

    split: str | None
    matrix: Sequence[SplitBounds | None] | None
    tokenizer: Any

    def gpt(self, prefix: str, wanted: int | None, settings: OrderSettings) -> str:
        """The description of one prefix' data set."""
        described = {
            "class": "GPTDataset",
            "dataset_path": prefix,
            "num_samples": wanted,
            "index_split": settings.split,
            "random_seed": settings.seed,
            "sequence_length": settings.shape.seq_len,
            "split": self.split,
            "split_matrix": self.matrix,
            "tokenizer": self.tokenizer,
        }
        return json.dumps(described, indent=4)

    def blend(self, datasets: Sequence[str], weights: Sequence[float], size: int | None, split: str) -> str:
        """The description of a blend of data sets with the given descriptions."""
        described = {
            "class": "BlendedDataset",
            "datasets": [json.loads(dataset) for dataset in datasets],
            "split": split,
            "weights": list(weights),
            "size": size,
        }
        return json.dumps(described, indent=4)


def shares(weights: Sequence[float], size: int, surplus: float = 0.0) -> list[int]:
    """Samples of each part for a blend of ``size``, rounded up, with ``surplus`` and rounded up again."""
    return [math.ceil(math.ceil(size * weight) * (1 + surplus)) for weight in weights]


class MegatronOrder(SampleOrder):
    """Samples in the order of megatron-core 0.16.1.

    Args:
        names: gives Megatron's own file names to what the cache keeps.
        threads: indices built at a time.

    Raises:
        ConfigError: as ``SampleOrder``.
        DataError: a part that has no sample to give, or a damaged index.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        settings: OrderSettings,
        shards: TokenShards,
        *,
        weights: Sequence[float] | None = None,
        size: int | None = None,
        cache: IndexCache,
        names: CacheKeys | None = None,
        threads: int = 1,
    ) -> None:
        super().__init__(parts, settings, shards, weights=weights, size=size)
        wanted: list[int | None] = [size] if len(parts) == 1 else [None] * len(parts)  # None: one epoch
        if self.weights is not None and size is not None:
            wanted = list(shares(self.weights, size, settings.surplus))
        self.epochs = [self._epochs(part, number) for part, number in zip(parts, wanted, strict=True)]
        self.lengths = [settings.shape.count(epochs.tokens) for epochs in self.epochs]
        entries = [self._gpt_entry(number, wanted[number], names) for number in range(len(parts))]
        blended = len(parts) > 1 or self.weights is not None
        if blended:
            entries.append(self._blend_entry(size, names, entries))
        arrays = cache.arrays(entries, threads=threads)
        self.blend = BlendIndices(**arrays.pop()) if blended else None
        self.indices = [GptIndices(**found) for found in arrays]
        self._mapped = [cache.watched.get(entry.stem, []) for entry in entries]  # the blend's last
        self._check_blend()
        self._index = OpenFiles(len(parts), self._open_index, descriptors_each=2)

    def __len__(self) -> int:
        """Samples in all, which may be more than were asked for."""
        return self.lengths[0] if self.blend is None else len(self.blend)

    # ------------------------------------------------------------------------------------------ plan

    def _epochs(self, part: Part, wanted: int | None) -> Epochs:
        split, shape = self.settings.split, self.settings.shape
        epochs = count_epochs(part.tokens, wanted, shape, where=f"the {split} split of {part.prefix}")
        if shape.count(epochs.tokens) == 0:
            raise DataError(
                f"the {split} split of {part.prefix} holds no sample: {part.tokens:,} tokens in sequences "
                f"{part.begin:,} to {part.end:,}, {shape.seq_len + shape.extra_token:,} are needed",
                "give it a larger share in split, leave it out of paths, or shorten seq_length",
            )
        return epochs

    def _gpt_entry(self, number: int, wanted: int | None, names: CacheKeys | None) -> IndexEntry:
        """The cache entry of part ``number``."""
        part, epochs, samples = self.parts[number], self.epochs[number], self.lengths[number]
        settings, shape = self.settings, self.settings.shape
        fixed = {
            "prefix": part.prefix,
            "split": settings.split,
            "seq_len": shape.seq_len,
            "seed": settings.seed,
            "extra_token": shape.extra_token,
            "keep_partial": shape.keep_partial,
            "float32": shape.float32 and shape.keep_partial,
            "epochs": epochs.count,
            "last_epoch_apart": epochs.before_last is not None,
        }
        description = None if names is None else names.gpt(part.prefix, wanted, settings)
        label = f"{part.file.prefix.name}-{settings.split}"
        documents = epochs.count * (part.end - part.begin)
        return IndexEntry(
            stem=_stem(label, fixed, description, f"GPTDataset-{settings.split}"),
            plan={**fixed, "sequences": [part.begin, part.end], "before_last": epochs.before_last},
            data=state_of_index(part.file),
            arrays={
                "document_index": ArraySpec(("int32",), (documents,), part.begin, part.end),
                "sample_index": ArraySpec(("int32", "int64"), (samples + 1, 2), 0, (documents, _INT32_END)),
                "shuffle_index": ArraySpec(("uint32", "int64"), (samples,), 0, samples),
            },
            build=lambda: self._build(part, epochs, samples),
            description=description,
        )

    def _blend_entry(self, size: int | None, names: CacheKeys | None, entries: Sequence[IndexEntry]) -> IndexEntry:
        """The cache entry of the blend: by weights that add up to 1, or all samples of each part."""
        split = self.settings.split
        given, total = None, sum(self.lengths) if size is None else min(size, sum(self.lengths))
        weights: list[float] | list[int] = self.lengths if size is None else normalize(self.lengths)
        if self.weights is not None and size is not None:
            given, total = (
                normalize(self.weights),
                sum(shares(self.weights, size)),
            )  # once more, as Megatron does
            weights = given
        stated = None if size is None else total
        fixed = {"parts": [entry.stem for entry in entries], "weights": given, "size": size}
        parts = [entry.description or "" for entry in entries]
        description = None if names is None else names.blend(parts, weights, stated, split)
        return IndexEntry(
            stem=_stem(f"blend-{split}", fixed, description, f"BlendedDataset-{split}"),
            plan={**fixed, "size": stated, "of": weights},
            data=None,
            arrays={
                "dataset_index": ArraySpec(("int16",), (total,), 0, len(self.parts)),
                "dataset_sample_index": ArraySpec(("int64",), (total,), 0, max(self.lengths)),
            },
            build=lambda: vars(blend_all(self.lengths) if size is None else blend(weights, total)),
            description=description,
        )

    def _build(self, part: Part, epochs: Epochs, samples: int) -> Arrays:
        needed = 8 * epochs.count * (part.end - part.begin) + 32 * samples  # bytes, of ``build_indices``
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > there:
            raise DataError(
                f"an index of {samples:,} samples of {part.prefix} takes {binary_size(needed)} to build, "
                f"this machine has {binary_size(there)}",
                "ask for fewer samples, or use order: stateless, which needs no index",
            )
        index = MegatronIndex(part.file)
        index.check()
        settings, sequences = self.settings, (part.begin, part.end)
        return vars(build_indices(index.lengths(), sequences, epochs, settings.shape, seed=settings.seed))

    def _check_blend(self) -> None:
        """No part may be drawn from more often than it has samples."""
        if self.blend is None:
            return
        for part, drawn, length in zip(self.parts, self._drawn(len(self)), self.lengths, strict=True):
            if drawn > length:
                raise DataError(
                    f"the blend draws {drawn:,} samples of {part.prefix}, which gives {length:,}",
                    f"raise dataset.mid_level_dataset_surplus, now {self.settings.surplus:g}",
                )

    def _drawn(self, samples: int) -> list[int]:
        """How many of the first ``samples`` are of each part."""
        if self.blend is None:
            return [samples]
        return np.bincount(self.blend.dataset_index[:samples], minlength=len(self.parts)).tolist()

    def blend_stats(self, samples: int) -> list[BlendStats]:
        """What each part gives to the first ``samples``."""
        used = min(samples, len(self))
        drawn = zip(self.parts, self._drawn(used), strict=True)
        return [part.stats(count / used, count, self.settings.shape.seq_len) for part, count in drawn]

    def plan(self) -> dict[str, Any]:
        """As ``SampleOrder`` has it."""
        return {
            "order": "megatron",
            "seed": self.settings.seed,
            "weights": self.weights,
            "epochs": [epochs.count for epochs in self.epochs],
            "last_epoch_apart": [epochs.before_last is not None for epochs in self.epochs],
        }

    # --------------------------------------------------------------------------------------- reading

    def sample_offsets(self, sample_numbers: np.ndarray) -> np.ndarray:
        """Where samples lie: int64 ``[N, 5]`` of (part, entry and token of the beginning, the same of the end)."""
        numbers = np.asarray(sample_numbers, dtype=np.int64).ravel() % len(self)
        offsets = np.empty((len(numbers), 5), dtype=np.int64)
        for watched in self._mapped[-1]:
            watched.check()
        if self.blend is None:
            self._offsets_in(0, numbers, offsets, slice(None))
            return offsets
        parts = self.blend.dataset_index[numbers]
        within = self.blend.dataset_sample_index[numbers]
        by_part = np.argsort(parts, kind="stable")
        edges = np.flatnonzero(np.diff(parts[by_part], prepend=-1))
        for rows in np.split(by_part, edges[1:]):
            self._offsets_in(int(parts[rows[0]]), within[rows], offsets, rows)
        return offsets

    def _offsets_in(self, part: int, samples: np.ndarray, offsets: np.ndarray, rows: np.ndarray | slice) -> None:
        for watched in self._mapped[part]:
            watched.check()
        indices = self.indices[part]
        at = indices.shuffle_index[samples].astype(np.int64)
        offsets[rows, 0] = part
        offsets[rows, 1:3] = indices.sample_index[at]
        offsets[rows, 3:5] = indices.sample_index[at + 1]

    def read(self, sample_number: int, row: np.ndarray) -> int:
        """Copy one sample into ``row`` (int64 ``[T + 1]``); the part it is from. Quicker than by offsets."""
        part, sample = 0, sample_number % len(self)
        if self.blend is not None:
            part = int(self.blend.dataset_index[sample])
            sample = int(self.blend.dataset_sample_index[sample])
        indices = self.indices[part]
        at = int(indices.shuffle_index[sample])
        self._check_files(part)
        self._copy((part, *indices.sample_index[at : at + 2].ravel().tolist()), row)
        return part

    def _copy(self, offset: Sequence[int], row: np.ndarray) -> None:
        """As ``SampleOrder`` has it: from token ``offset[2]`` of entry ``offset[1]`` to token 4 of entry 3."""
        part = offset[0]
        starts, lengths = self._pieces(offset)
        stretches, total = zip(starts, lengths, strict=True), sum(lengths)
        reader = self._shards.reader(part)
        tokens = reader.tokens
        if tokens is None:
            np.concatenate([reader.read(start, length) for start, length in stretches], out=row[:total])
        elif len(starts) == 1:
            row[:total] = tokens[starts[0] : starts[0] + total]
        else:
            np.concatenate([tokens[start : start + length] for start, length in stretches], out=row[:total])
        if total < len(row):
            row[total:] = self.settings.pad_id

    def _pieces(self, offset: Sequence[int]) -> tuple[list[int], list[int]]:
        """First token and length of each piece of a row."""
        part, first, begin, last, end = offset
        starts, lengths = self._sequences(part, first, last)
        lengths[-1] = end + self.settings.shape.extra_token
        starts[0] += begin
        lengths[0] -= begin
        return starts, lengths

    def stretches(self, offset: Sequence[int]) -> list[tuple[int, int]]:
        """As ``SampleOrder`` has it: one for each sequence that it has tokens of."""
        pieces = zip(*self._pieces(offset), strict=True)
        return [(start, start + length) for start, length in pieces if length > 0]

    def _sequences(self, part: int, first: int, last: int) -> tuple[list[int], list[int]]:
        """First token and length of the sequences in entries ``first`` to ``last`` of the document index."""
        return self._index(part).locate(self.indices[part].document_index[first : last + 1])

    def _check_files(self, part: int) -> None:
        super()._check_files(part)
        self._index(part).watched.check()
        for watched in self._mapped[part]:
            watched.check()

    def position(self, offset: Sequence[int], column: int) -> tuple[int, int]:
        """As ``SampleOrder`` has it."""
        part, first, begin, last, _ = offset
        column += begin
        for start, length in zip(*self._sequences(part, first, last), strict=True):
            if column < length:
                return part, start + column
            column -= length
        raise AssertionError("padding has no position")

    def _open_index(self, part: int) -> MegatronIndex:
        """Opened and checked: a cached order says nothing of an index that was damaged since."""
        index = MegatronIndex(self.parts[part].file)
        index.check()
        return index


def _stem(label: str, fixed: dict[str, Any], description: str | None, ending: str) -> str:
    """The name of an entry's files: readable, or Megatron's own."""
    if description is None:
        return stem_of(label, fixed)
    return f"{hashlib.md5(description.encode(), usedforsecurity=False).hexdigest()}-{ending}"
