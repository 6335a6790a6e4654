"""The order of Megatron-Core: which tokens sample ``k`` holds, by its document, sample, shuffle and blend indices.

1. Each part of the blend is asked for so many samples that its share of the whole is met (``wanted``).
2. Epochs and samples of each follow from its number of tokens alone, and with them the length of the blend.
3. The indices are read from the cache, or built in it (``gpt_index``, ``blending``).
4. Sample ``k``: the blend says which part and which of its samples, the shuffle index which row, the sample index
   where it begins and ends, the document index which sequences lie between.

Known differences, all where megatron-core stops or hangs: a part without tokens and one without a whole sample
are errors that name it.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from automodel_cli.corpus.formats.megatron_bin import MegatronIndex
from automodel_cli.corpus.formats.nanogpt_bin import TokenReader
from automodel_cli.data.files.open_files import OpenFiles, TokenShards
from automodel_cli.data.megatron.blending import BlendIndices, blend, blend_all
from automodel_cli.data.megatron.gpt_index import (
    Epochs,
    GptIndices,
    build_indices,
    count_epochs,
    count_samples,
    normalize,
    wrong_array,
    wrong_indices,
)
from automodel_cli.data.megatron.index_cache import Arrays, IndexCache, IndexEntry, stem_of
from automodel_cli.data.megatron.names import CacheKeys
from automodel_cli.data.megatron.parts import BlendStats, Part, state_of_index
from automodel_cli.errors import ConfigError, DataError

_GPT_NAMES = ("document_index", "sample_index", "shuffle_index")
_BLEND_NAMES = ("dataset_index", "dataset_sample_index")


@dataclass(frozen=True)
class OrderSettings:
    """What decides an order beside the data. ``surplus``: by how much more is asked of each part of a blend."""

    split: str
    seq_len: int
    seed: int
    extra_token: bool = True
    keep_partial: bool = False
    float32: bool = False
    surplus: float = 0.005
    mmap: bool | Literal["auto"] = "auto"
    pad_id: int = -1


def shares(weights: Sequence[float], size: int, surplus: float = 0.0) -> list[int]:
    """Samples of each part for a blend of ``size``, rounded up, with ``surplus`` and rounded up again."""
    return [math.ceil(math.ceil(size * weight) * (1 + surplus)) for weight in weights]


class MegatronOrder:
    """Samples in the order of megatron-core 0.16.1.

    Args:
        weights: of the parts, not necessarily adding up to 1; None: in proportion to their samples.
        size: samples wanted; None: one epoch of every part.
        names: gives Megatron's own file names to what the cache keeps.

    Raises:
        ConfigError: weights without a size, or a weight that is not above 0.
        DataError: a part that has no sample to give, or a damaged index.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        settings: OrderSettings,
        *,
        weights: Sequence[float] | None = None,
        size: int | None = None,
        cache: IndexCache,
        names: CacheKeys | None = None,
        threads: int = 1,
    ) -> None:
        self.parts, self.settings = parts, settings
        if weights is not None and size is None:
            raise ConfigError(
                "weights in dataset.paths need a number of samples to be shares of",
                "set step_scheduler.max_steps, or num_train_samples, num_val_samples or num_test_samples",
            )
        self._given = None if weights is None else normalize(above_zero(weights))
        wanted = self._wanted(size)
        self.plans = [self._plan(part, number) for part, number in zip(parts, wanted, strict=True)]
        self.lengths = [self._count(part, plan) for part, plan in zip(parts, self.plans, strict=True)]
        entries = [
            self._gpt_entry(part, plan, number, names)
            for part, plan, number in zip(parts, self.plans, wanted, strict=True)
        ]
        blended = len(parts) > 1 or self._given is not None
        if blended:
            entries.append(self._blend_entry(size, names, entries))
        arrays = cache.arrays(entries, threads=threads)
        self.blend = BlendIndices(**arrays.pop()) if blended else None
        self.indices = [GptIndices(**found) for found in arrays]
        self._mapped = [cache.watched.get(entry.stem, []) for entry in entries]  # the blend's last
        self._check_blend()
        self._tokens = TokenShards([part.file.tokens for part in parts], settings.mmap)
        self._index = OpenFiles(len(parts), self._open_index, descriptors_each=2)

    def __len__(self) -> int:
        """Samples in all, which may be more than were asked for."""
        return self.lengths[0] if self.blend is None else len(self.blend)

    # ------------------------------------------------------------------------------------------ plan

    def _wanted(self, size: int | None) -> list[int | None]:
        """Samples to build of each part, None for one epoch."""
        if self._given is not None:
            assert size is not None
            return list(shares(self._given, size, self.settings.surplus))
        return [size] if len(self.parts) == 1 else [None] * len(self.parts)

    def _plan(self, part: Part, wanted: int | None) -> Epochs:
        return count_epochs(
            part.tokens,
            wanted,
            seq_len=self.settings.seq_len,
            extra_token=self.settings.extra_token,
            where=f"the {self.settings.split} split of {part.prefix}",
        )

    def _count(self, part: Part, plan: Epochs) -> int:
        settings = self.settings
        samples = count_samples(
            plan.epochs * plan.tokens_per_epoch,
            settings.seq_len,
            extra_token=settings.extra_token,
            keep_partial=settings.keep_partial,
            float32=settings.float32,
        )
        if samples == 0:
            raise DataError(
                f"the {settings.split} split of {part.prefix} holds no sample: {part.tokens:,} tokens in sequences "
                f"{part.begin:,} to {part.end:,}, {settings.seq_len + settings.extra_token:,} are needed",
                "give it a larger share in split, leave it out of paths, or shorten seq_length",
            )
        return samples

    def _gpt_entry(self, part: Part, plan: Epochs, wanted: int | None, names: CacheKeys | None) -> IndexEntry:
        settings = self.settings
        fixed = {
            "prefix": part.prefix,
            "split": settings.split,
            "seq_len": settings.seq_len,
            "seed": settings.seed,
            "extra_token": settings.extra_token,
            "keep_partial": settings.keep_partial,
            "float32": settings.float32 and settings.keep_partial,
            "epochs": plan.epochs,
            "last_epoch_apart": plan.before_last is not None,
        }
        description = None if names is None else names.gpt(part.prefix, wanted, settings)
        return IndexEntry(
            stem=_stem(
                "GPTDataset", f"{part.file.prefix.name}-{settings.split}", fixed, description, settings
            ),
            plan={**fixed, "sequences": [part.begin, part.end], "before_last": plan.before_last},
            data=state_of_index(part.file),
            names=_GPT_NAMES,
            build=lambda: self._build(part, plan),
            description=description,
            wrong=lambda arrays: wrong_indices(
                arrays, (part.begin, part.end), plan.epochs, self._count(part, plan)
            ),
        )

    def _blend_entry(
        self, size: int | None, names: CacheKeys | None, entries: Sequence[IndexEntry]
    ) -> IndexEntry:
        settings = self.settings
        weights, total = self._blend_weights(size)
        fixed = {
            "parts": [entry.stem for entry in entries],
            "weights": None if self._given is None else weights,
            "size": size,
        }
        description = None
        if names is not None:
            description = names.blend(
                [entry.description or "" for entry in entries], weights, total, settings
            )
        return IndexEntry(
            stem=_stem("BlendedDataset", f"blend-{settings.split}", fixed, description, settings),
            plan={**fixed, "size": total, "of": weights},
            data=None,
            names=_BLEND_NAMES,
            build=lambda: _build_blend(weights, total),
            description=description,
            wrong=self._wrong_blend(sum(self.lengths) if total is None else total),
        )

    def _wrong_blend(self, size: int) -> Callable[[Arrays], str | None]:
        parts, longest = len(self.parts), max(self.lengths)

        def wrong(arrays: Arrays) -> str | None:
            return wrong_array(
                "dataset_index", arrays["dataset_index"], ("int16",), (size,), (0, parts)
            ) or wrong_array(
                "dataset_sample_index", arrays["dataset_sample_index"], ("int64",), (size,), (0, longest)
            )

        return wrong

    def _blend_weights(self, size: int | None) -> tuple[list[float] | list[int], int | None]:
        """Weights that add up to 1 and the blend's length; or each part's samples and None for all of them."""
        if self._given is not None:
            assert size is not None
            return normalize(self._given), sum(
                shares(self._given, size)
            )  # normalised twice, as Megatron does
        if size is None:
            return self.lengths, None
        return normalize(self.lengths), min(size, sum(self.lengths))

    def _build(self, part: Part, plan: Epochs) -> dict[str, np.ndarray]:
        settings = self.settings
        _refuse_larger_than_memory(part, plan, self._count(part, plan))
        index = MegatronIndex(part.file)
        index.check()
        indices = build_indices(
            index.lengths(),
            (part.begin, part.end),
            plan,
            seq_len=settings.seq_len,
            seed=settings.seed,
            extra_token=settings.extra_token,
            keep_partial=settings.keep_partial,
            float32=settings.float32,
        )
        return {name: getattr(indices, name) for name in _GPT_NAMES}

    def _check_blend(self) -> None:
        """No part may be drawn from more often than it has samples."""
        for drawn, length in zip(self.drawn(), self.lengths, strict=True):
            if self.blend is not None and drawn.samples > length:
                raise DataError(
                    f"the blend draws {drawn.samples:,} samples of {drawn.part.prefix}, which gives {length:,}",
                    f"raise dataset.mid_level_dataset_surplus, now {self.settings.surplus:g}",
                )

    def drawn(self, samples: int | None = None) -> list[BlendStats]:
        """How many of the first ``samples`` (all) each part gives, and how often its tokens are read for them."""
        used = len(self) if samples is None else min(samples, len(self))
        counts = [used]
        if self.blend is not None:
            counts = np.bincount(self.blend.dataset_index[:used], minlength=len(self.parts)).tolist()
        return [
            BlendStats(part, count / used, count, count * self.settings.seq_len / part.tokens)
            for part, count in zip(self.parts, counts, strict=True)
        ]

    def plan(self) -> dict[str, Any]:
        """What decides the order beside the data, as JSON values; not how many samples of it are wanted."""
        return {
            "order": "megatron",
            "seed": self.settings.seed,
            "weights": self._given,
            "epochs": [plan.epochs for plan in self.plans],
            "last_epoch_apart": [plan.before_last is not None for plan in self.plans],
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

    def _offsets_in(
        self, part: int, samples: np.ndarray, offsets: np.ndarray, rows: np.ndarray | slice
    ) -> None:
        for watched in self._mapped[part]:
            watched.check()
        indices = self.indices[part]
        at = indices.shuffle_index[samples].astype(np.int64)
        offsets[rows, 0] = part
        offsets[rows, 1:3] = indices.sample_index[at]
        offsets[rows, 3:5] = indices.sample_index[at + 1]

    def reader(self, part: int) -> TokenReader:
        """The reader of a part's ``.bin``."""
        return self._tokens.reader(part)

    def read_windows(self, offsets: np.ndarray, out: np.ndarray) -> None:
        """Copy the samples at ``offsets`` (int64 ``[B, 5]``) into ``out`` (int64 ``[B, T + 1]``)."""
        for part in set(offsets[:, 0].tolist()):
            self._check_files(part)
        for place, row in zip(offsets.tolist(), out, strict=True):
            self._copy(row, *place)

    def read(self, sample_number: int, row: np.ndarray) -> int:
        """Copy one sample into ``row`` (int64 ``[T + 1]``); the part it is from. Quicker than by ``sample_offsets``."""
        part, sample = 0, sample_number % len(self)
        if self.blend is not None:
            part = int(self.blend.dataset_index[sample])
            sample = int(self.blend.dataset_sample_index[sample])
        indices = self.indices[part]
        at = int(indices.shuffle_index[sample])
        self._check_files(part)
        self._copy(row, part, *indices.sample_index[at : at + 2].ravel().tolist())
        return part

    def _copy(self, row: np.ndarray, part: int, first: int, offset: int, last: int, end: int) -> None:
        """One sample: from token ``offset`` of entry ``first`` to ``end`` of entry ``last``, into ``row``."""
        sequences = self.indices[part].document_index[first : last + 1]
        starts, lengths = self._index(part).locate(sequences)
        lengths[-1] = end + self.settings.extra_token
        starts[0] += offset
        lengths[0] -= offset
        stretches, total = zip(starts, lengths, strict=True), sum(lengths)
        reader = self._tokens.reader(part)
        tokens = reader.tokens
        if tokens is None:
            np.concatenate([reader.read(start, length) for start, length in stretches], out=row[:total])
        elif len(starts) == 1:
            row[:total] = tokens[starts[0] : starts[0] + total]
        else:
            np.concatenate([tokens[start : start + length] for start, length in stretches], out=row[:total])
        if total < len(row):
            row[total:] = self.settings.pad_id

    def _check_files(self, part: int) -> None:
        """Refuse files that were cut off since they were opened: what is mapped must not be read then."""
        self._tokens.checked(part)
        self._index(part).watched.check()
        for watched in self._mapped[part]:
            watched.check()

    def position(self, place: Sequence[int], column: int) -> tuple[int, int]:
        """The part, and the token in its ``.bin``, of a column of the row at ``place``."""
        part, first, offset, last, _ = place
        starts, lengths = self._index(part).locate(self.indices[part].document_index[first : last + 1])
        column += offset
        for start, length in zip(starts, lengths, strict=True):
            if column < length:
                return part, start + column
            column -= length
        raise AssertionError("padding has no place")

    def _open_index(self, part: int) -> MegatronIndex:
        """Opened and checked: a cached order says nothing of an index that was damaged since."""
        index = MegatronIndex(self.parts[part].file)
        index.check()
        return index


def above_zero(weights: Sequence[float]) -> Sequence[float]:
    for number, weight in enumerate(weights):
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigError(
                f"weight {number + 1} in dataset.paths is {weight:g}; it must be above 0",
                "leave that prefix out, or give it a weight",
            )
    return weights


def _refuse_larger_than_memory(part: Part, plan: Epochs, samples: int) -> None:
    """``build_indices`` takes 8 bytes a document and epoch, 32 a sample."""
    needed = 8 * plan.epochs * (part.end - part.begin) + 32 * samples
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise DataError(
            f"an index of {samples:,} samples of {part.prefix} takes {needed / 2**30:,.0f} GiB to build, this machine "
            f"has {there / 2**30:,.0f}",
            "ask for fewer samples, or use order: stateless, which needs no index",
        )


def _build_blend(weights: Sequence[float], size: int | None) -> dict[str, np.ndarray]:
    found = blend_all([int(weight) for weight in weights]) if size is None else blend(weights, size)
    return {name: getattr(found, name) for name in _BLEND_NAMES}


def _stem(
    kind: str, label: str, fixed: dict[str, Any], description: str | None, settings: OrderSettings
) -> str:
    """The name of an entry's files: readable, or Megatron's own."""
    if description is None:
        return stem_of(label, fixed)
    digest = hashlib.md5(description.encode(), usedforsecurity=False).hexdigest()
    return f"{digest}-{kind}-{settings.split}"
