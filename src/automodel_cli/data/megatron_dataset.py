"""``MegatronPretraining``: Megatron-Core's indexed files as numbered samples of ``seq_length`` tokens.

Steps: ``paths`` to prefixes and weights (``megatron.paths``); of each file the sequences of this split
(``megatron.parts``); an order over them (``megatron.order``, megatron-core's own, or ``megatron.stateless_order``);
tokens to labels (``megatron.labels``). The data set knows no ranks: sample ``k`` is the same tokens everywhere, and a
position is one integer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from automodel_cli.arguments import constructor_takes
from automodel_cli.batch import Batch
from automodel_cli.batch_sizes import BatchSizes
from automodel_cli.corpus.formats.megatron_index import MegatronIndex
from automodel_cli.corpus.formats.megatron_manifest import MegatronManifest
from automodel_cli.data.arguments import MegatronArguments, ObjectStorageArguments
from automodel_cli.data.files.documents import Document
from automodel_cli.data.files.token_dataset import TokenFileDataset
from automodel_cli.data.interface import BlendStats, IndexReport, RunValues, Stretch, TokenRange, refuse_negative
from automodel_cli.data.megatron.domains import domains_of
from automodel_cli.data.megatron.gpt_index import SampleShape, SplitBounds, parse_split
from automodel_cli.data.megatron.index_cache import CACHE_FOLDER, IndexCache
from automodel_cli.data.megatron.labels import LabelRules
from automodel_cli.data.megatron.order import CacheKeys, MegatronOrder
from automodel_cli.data.megatron.origin import TokenizerProvenance
from automodel_cli.data.megatron.parts import Part, fingerprint, open_parts
from automodel_cli.data.megatron.paths import (
    Blend,
    fetch_indices,
    names_megatron_files,
    prefixes_of_manifest,
    read_paths,
    split_name,
)
from automodel_cli.data.megatron.sample_order import OrderSettings
from automodel_cli.data.megatron.stateless_order import StatelessOrder
from automodel_cli.data.mixture.checked import checked
from automodel_cli.errors import ConfigError
from automodel_cli.storage.cache.local_view import LocalView
from automodel_cli.storage.cache.settings import MAX_CHUNK_BYTES, MIN_CHUNK_BYTES, cache_in_use

_LARGEST_SEED = 2**32 - 1
_SPLIT_NUMBER = {"train": 0, "valid": 1, "test": 2}


class MegatronPretraining(TokenFileDataset):
    """Samples over Megatron-Core ``.bin``/``.idx`` files, one split of them.

    Arguments: ``MegatronArguments``.

    Raises:
        ConfigError: arguments that contradict each other.
        DataError: files that are missing, damaged, or too short.
    """

    @constructor_takes(MegatronArguments)
    def __init__(self, options: MegatronArguments) -> None:
        _check(options)
        self.split = _one_split(options.splits_to_build)
        self.seq_len = options.seq_length
        self.create_attention_mask = options.create_attention_mask
        keep_partial = self.split == "valid" and not options.drop_last_partial_validation_sequence
        view = _view(options.object_storage_config)
        with view.errors_by_url():
            self._blend: Blend = read_paths(options.paths, self.split, view)
            self.bounds = self._bounds(options.split)
            self.parts: list[Part] = open_parts(self._blend.prefixes, self.bounds, view)
        super().__init__([part.file.tokens for part in self.parts], "auto" if options.mmap_bin_files else False)
        self.origin = TokenizerProvenance(self.parts, options.tokenizer)
        self.notes: list[str] = list(self.origin.notes)
        self.labels = LabelRules(
            self.origin.special_ids(),
            reset_position_ids=options.reset_position_ids,
            reset_attention_mask=options.reset_attention_mask,
            eod_mask_loss=options.eod_mask_loss,
            padded=keep_partial or not options.add_extra_token_to_sequence,
        )
        given = (options.num_train_samples, options.num_val_samples, options.num_test_samples)
        self._given_samples = given[_SPLIT_NUMBER[self.split]]
        self._wanted = self._samples_wanted(options)
        shape = SampleShape(options.seq_length, options.add_extra_token_to_sequence, keep_partial, options.float32_tail)
        settings = OrderSettings(
            self.split, shape, options.seed, options.mid_level_dataset_surplus, self.labels.ids.pad
        )
        self.index_cache: IndexCache | None = None  # of an order that has indices
        self.order = self._order(options, settings)
        self._fingerprint = fingerprint(self.parts)
        files = [part.file.prefix.name for part in self.parts]
        self._domains = domains_of(files, self.order.weights, options.domains)
        self._indices: dict[int, MegatronIndex] = {}  # of files whose documents were asked for

    opens_tokenizers = True
    seq_len_argument = "seq_length"

    @classmethod
    def run_arguments(cls, run: RunValues) -> dict[str, Any]:
        """The length of the run, from which the samples to index follow; the seed stays Megatron's own."""
        return {
            "splits_to_build": run.split,
            "global_batch_size": run.global_batch_size,
            "trainer_max_steps": run.max_steps,
            "trainer_val_check_interval": run.val_every_steps,
        }

    @classmethod
    def open_named(
        cls, name: str, seq_len: int, *, held_out: bool = True, trained_as: Mapping[str, Any]
    ) -> MegatronPretraining | None:
        """Prefixes, folders of pairs, patterns and manifests, each read as one text."""
        view = LocalView()
        place = view.place(name)
        fetch_indices(view, place)
        if not names_megatron_files(place):
            return None
        prefixes = {"validation": [view.name(Path(one)) for one in prefixes_of_manifest(place)]}
        return cls(prefixes, seq_len, splits_to_build="validation", order="file")

    # ------------------------------------------------------------------------------------------ building

    def _bounds(self, split: str | Sequence[float]) -> SplitBounds:
        if self._blend.own_files:
            return 0.0, 1.0
        bounds = parse_split(split)[_SPLIT_NUMBER[self.split]]
        if bounds is None:
            raise ConfigError(
                f"split {split!r} leaves nothing to the {self.split} split",
                "give it a share, for example split: '0.99, 0.01, 0.00', or other splits_to_build",
            )
        return bounds

    def _samples_wanted(self, options: MegatronArguments) -> int | None:
        given, needed = self._given_samples, samples_needed(options, self.split)
        if given is not None and given < 1:
            raise ConfigError(f"{given} samples are wanted from the {self.split} split", "give 1 or more, or null")
        if given is None and self.split == "valid" and needed is not None:
            self.notes.append(
                f"each validation reads up to {needed:,} samples (those of all validations of the run, as NeMo counts "
                "them): num_val_samples or step_scheduler.limit_val_batches make it fewer"
            )
        return needed if given is None else given

    def _order(self, options: MegatronArguments, settings: OrderSettings) -> MegatronOrder | StatelessOrder:
        weights = self._blend.weights if len(self.parts) > 1 else None  # of a single one it says nothing
        blend = (self.parts, settings, self._shards)
        if options.order != "megatron":
            shuffled = options.order == "stateless"
            found = StatelessOrder(*blend, weights=weights, size=self._wanted, shuffled=shuffled)
            self.notes += found.notes
            return found
        beside = Path(self._blend.prefixes[0]).parent / CACHE_FOLDER
        cache = IndexCache(beside if options.index_mapping_dir is None else options.index_mapping_dir)
        names = self._megatron_names(options.split) if options.index_names == "megatron" else None
        threads = options.num_dataset_builder_threads
        built = MegatronOrder(*blend, weights=weights, size=self._wanted, cache=cache, names=names, threads=threads)
        self.index_cache, self.notes = cache, [*self.notes, *cache.notes]
        return built

    def _megatron_names(self, split: str | Sequence[float]) -> CacheKeys:
        text = split if isinstance(split, str) else ",".join(str(share) for share in split)
        tokenizer = getattr(self.tokenizer, "unique_identifiers", getattr(self.tokenizer, "name", None))
        if self._blend.own_files:
            return CacheKeys(None, None, tokenizer)
        return CacheKeys(text, parse_split(split), tokenizer)

    # ---------------------------------------------------------------------------------------- what it is

    @property
    def seq_length(self) -> int:
        """Tokens of a sample, T; the name configurations have for it."""
        return self.seq_len

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the configuration, else the one that the files' manifest keeps, else None."""
        return self.origin.tokenizer

    @property
    def manifest(self) -> MegatronManifest | None:
        """The manifest of the files, if all have one; of several, the first: they name one tokenizer."""
        return self.origin.manifest

    @property
    def named_split(self) -> str | None:
        """The split; None where the files belong to it alone, so that it is all of each."""
        return None if self._blend.own_files else self.split

    def token_ranges(self) -> list[TokenRange]:
        """What is read of each ``.bin``, in the order of ``paths``."""
        return [(part.file.tokens.path, part.first_token, part.first_token + part.tokens) for part in self.parts]

    @property
    def fingerprint(self) -> str:
        """Identity of the data; the same wherever the files lie."""
        return self._fingerprint

    def blend_stats(self) -> list[BlendStats]:
        """What each file gives to the samples that are read."""
        return self.order.blend_stats(len(self))

    def index_report(self) -> IndexReport | None:
        """What became of the indices of Megatron's order."""
        return None if self.index_cache is None else self.index_cache.report()

    @property
    def source_names(self) -> Sequence[str]:
        """The files of a weighted blend."""
        return self._domains.names

    @property
    def objective(self) -> Mapping[str, float] | None:
        """The shares of ``domains``, where they are given."""
        return self._domains.objective

    def sources_at(self, offsets: np.ndarray) -> np.ndarray:
        """As ``WindowDataset`` has it: the number of the file."""
        return offsets[:, 0].copy()

    def row_weights(self, sample_numbers: np.ndarray, sources: np.ndarray) -> np.ndarray:
        """As ``WindowDataset`` has it."""
        assert self._domains.token_weights is not None
        return self._domains.token_weights[sources]

    def plan(self) -> dict[str, Any]:
        """As ``WindowDataset`` has it."""
        return {
            "kind": "megatron",
            **self.order.plan(),
            "data": self._fingerprint,
            "split": self.split,
            "bounds": list(self.bounds),
            "seq_len": self.seq_len,
            "extra_token": self.order.settings.shape.extra_token,
            "samples": self._given_samples if isinstance(self.order, MegatronOrder) else None,
        }

    def __len__(self) -> int:
        """Samples wanted, or as many as there are."""
        return len(self.order) if self._wanted is None else min(self._wanted, len(self.order))

    # ------------------------------------------------------------------------------------------- reading

    def sample_offsets(self, sample_numbers: np.ndarray) -> np.ndarray:
        """Where samples lie, for ``read_windows``. In Megatron's order those from ``len(self)`` on begin anew."""
        numbers = np.asarray(sample_numbers, dtype=np.int64)
        return self.order.sample_offsets(numbers % len(self) if isinstance(self.order, MegatronOrder) else numbers)

    def window_offsets(self, windows: np.ndarray) -> np.ndarray:
        """The same: a set to evaluate on is read in the order of its samples, as Megatron does."""
        return self.order.sample_offsets(windows)

    @property
    def follow_each_other(self) -> bool:
        """As ``WindowDataset`` has it; samples of Megatron's order are pieces of documents."""
        return isinstance(self.order, StatelessOrder)

    def read_windows(self, offsets: np.ndarray, out: np.ndarray) -> None:
        """Copy the samples at ``offsets`` into ``out`` (int64 ``[B, T + 1]``), padding id where there is no token.

        Raises:
            DataError: a file was changed meanwhile, or (after ``check_vocab``) an id without a row in the model.
        """
        self.order.read_windows(offsets, out)
        if self._vocab_size is not None:
            largest = int(np.maximum.reduce(out.view(np.uint64), axis=None))  # negative ids are large ones so
            self._check_ids(largest, out, offsets, self.labels.ids.pad)

    def stretches(self, offset: np.ndarray) -> list[Stretch]:
        """As ``WindowDataset`` has it; of a blend the source is the file's prefix."""
        part = int(offset[0])
        file = self.parts[part].file
        source = file.prefix.name if len(self.parts) > 1 else None
        found = self.order.stretches(offset.tolist())
        return [Stretch(source, file.tokens.path, first, end) for first, end in found]

    def documents(self, number: int, first: int, end: int) -> list[Document]:
        """As ``TokenFileDataset`` has it, by the ``.idx``."""
        if number not in self._indices:
            self._indices[number] = MegatronIndex(self.parts[number].file)
        return [Document(*found) for found in self._indices[number].documents_between(first, end)]

    def _extents(self, offset: np.ndarray) -> list[tuple[int, int, int]]:
        part = int(offset[0])
        return [(part, first, end) for first, end in self.order.stretches(offset.tolist())]

    def _position(self, offset: np.ndarray, column: int) -> tuple[int, int]:
        return self.order.position(offset.tolist(), column)

    @property
    def label_rule(self) -> Any:
        """Megatron's rules, where labels are more than the next tokens."""
        return None if self.labels.plain else self.labels

    def make_batch(self, rows: np.ndarray) -> Batch:
        """As ``WindowDataset`` has it, with labels to ignore, positions and segments as asked for."""
        return self.labels.batch(rows) if self.labelled else super().make_batch(rows)

    def __getitem__(self, sample_number: int) -> dict[str, Any]:
        """Megatron's dict: tokens, labels, loss_mask, position_ids, each ``[T]``; attention_mask ``[1, T, T]``.

        Of a blend also ``dataset_id``.
        """
        refuse_negative(sample_number)
        if isinstance(self.order, MegatronOrder):
            sample_number %= len(self)
        row = np.empty(self.seq_len + 1, dtype=np.int64)
        part = self.order.read(sample_number, row)
        item = self.labels.item(row, attention_mask=self.create_attention_mask)
        return item if len(self.parts) == 1 else {"dataset_id": np.int16(part), **item}


def samples_needed(options: MegatronArguments, split: str) -> int | None:
    """Samples that the run needs of a split, as NeMo counts them; None: one epoch, or unknown.

    Validation: those of all validations of the whole run.
    """
    steps, size, batches = (
        options.trainer_max_steps,
        options.global_batch_size,
        options.trainer_limit_val_batches,
    )
    if steps is None or size is None or split == "test":
        return None
    sizes = BatchSizes.of(size)
    if split == "train":
        return sizes.samples(steps)
    if batches is None:
        return None
    if not (math.isfinite(batches) and 1 <= batches == int(batches)):
        raise ConfigError(
            f"dataset.trainer_limit_val_batches is {batches}",
            "it counts batches: give 1 or more, or null for the whole split",
        )
    interval = options.trainer_val_check_interval  # updates between two validations; None: one in all
    return max(steps // interval if interval else 1, 1) * int(batches) * sizes.last


def _view(given: Mapping[str, Any] | None) -> LocalView:
    """How files in object storage are shown and kept: as the process has it, or as Megatron's configuration says.

    Raises:
        ConfigError: it says something else than that class takes, or a size that no chunk can have.
    """
    asked = checked(ObjectStorageArguments, given or {}, "dataset.object_storage_config")
    cache, most = cache_in_use(), asked.bin_chunk_nbytes
    if most is not None:
        if not MIN_CHUNK_BYTES <= most <= MAX_CHUNK_BYTES:
            raise ConfigError(
                f"dataset.object_storage_config.bin_chunk_nbytes is {most:,}",
                f"give a number of bytes from {MIN_CHUNK_BYTES:,} to {MAX_CHUNK_BYTES:,}",
            )
        cache = replace(cache, chunk_bytes=min(most, cache.chunk_bytes))
    return LocalView(cache, None if asked.path_to_idx_cache is None else Path(asked.path_to_idx_cache))


def _check(options: MegatronArguments) -> None:
    """Refuse values that no data set can have."""
    surplus = options.mid_level_dataset_surplus
    for name, holds, hint in (
        ("seq_length", options.seq_length >= 1, "it counts tokens: give 1 or more"),
        ("order", options.order in ("megatron", "stateless", "file"), "use megatron or stateless or file"),
        ("index_names", options.index_names in ("readable", "megatron"), "use readable or megatron"),
        ("seed", 0 <= options.seed <= _LARGEST_SEED, f"give a number from 0 to {_LARGEST_SEED:,}"),
        ("mid_level_dataset_surplus", 0 <= surplus <= 1, "it is a share: give a number from 0 to 1"),
    ):
        if not holds:
            raise ConfigError(f"dataset.{name} is {getattr(options, name)!r}", hint)


def _one_split(wanted: str | Sequence[str] | None) -> str:
    names = [wanted] if isinstance(wanted, str) else list(wanted or ["train"])
    if len(names) != 1:
        raise ConfigError(
            f"dataset.splits_to_build names {len(names)} splits: {', '.join(names)}",
            "one section is one split: use dataset for train, validation_dataset for validation",
        )
    return split_name(names[0])
