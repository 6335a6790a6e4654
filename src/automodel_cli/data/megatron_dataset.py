"""``MegatronPretraining``: Megatron-Core's indexed files as numbered samples of ``seq_length`` tokens.

Steps: ``paths`` to prefixes and weights (``megatron_paths``); of each file the sequences of this split
(``megatron_parts``); an order over them (``megatron_order``, megatron-core's own, or ``stateless_order``); tokens to
labels (``megatron_labels``). The data set knows no ranks: sample ``k`` is the same tokens everywhere, and a position
is one integer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from automodel_cli.arguments import constructor_takes
from automodel_cli.batch import Batch
from automodel_cli.corpus.formats.megatron_manifest import MegatronManifest
from automodel_cli.data.arguments import MegatronArguments
from automodel_cli.data.files.overlap import TokenRange
from automodel_cli.data.files.vocabulary import refuse_beyond, sampled_maxima
from automodel_cli.data.megatron.gpt_index import SplitBounds, parse_split
from automodel_cli.data.megatron.index_cache import CACHE_FOLDER, IndexCache
from automodel_cli.data.megatron.labels import LabelRules
from automodel_cli.data.megatron.names import CacheKeys
from automodel_cli.data.megatron.order import MegatronOrder, OrderSettings
from automodel_cli.data.megatron.origin import TokenizerProvenance
from automodel_cli.data.megatron.parts import Part, fingerprint, open_parts
from automodel_cli.data.megatron.paths import Blend, read_paths, split_name
from automodel_cli.data.megatron.stateless_order import StatelessOrder
from automodel_cli.data.position import plan_hash
from automodel_cli.errors import ConfigError, DataError

_LARGEST_SEED = 2**32 - 1
_SPLIT_NUMBER = {"train": 0, "valid": 1, "test": 2}


@dataclass(frozen=True)
class RunLength:
    """What the run says of its length, from which follows how many samples are needed."""

    global_batch_size: int | None = None
    max_steps: int | None = None
    val_interval: int | None = None  # updates between two validations; None: one in all
    val_batches: int | float | None = 1

    def samples(self, split: str) -> int | None:
        """Samples a run needs of a split, as NeMo counts them; None: one epoch, or unknown.

        Validation: those of all validations of the whole run.
        """
        if self.max_steps is None or self.global_batch_size is None or split == "test":
            return None
        if split == "train":
            return self.max_steps * self.global_batch_size
        if self.val_batches is None:
            return None
        if not (math.isfinite(self.val_batches) and 1 <= self.val_batches == int(self.val_batches)):
            raise ConfigError(
                f"dataset.trainer_limit_val_batches is {self.val_batches}",
                "it counts batches: give 1 or more, or null for the whole split",
            )
        times = self.max_steps // self.val_interval if self.val_interval else 1
        return max(times, 1) * int(self.val_batches) * self.global_batch_size


class MegatronPretraining(Dataset[dict[str, torch.Tensor]]):
    """Samples over Megatron-Core ``.bin``/``.idx`` files, one split of them.

    Arguments: ``MegatronArguments``.

    Raises:
        ConfigError: arguments that contradict each other.
        DataError: files that are missing, damaged, or too short.
    """

    @constructor_takes(MegatronArguments)
    def __init__(self, options: MegatronArguments) -> None:
        _check_plain(options.seq_length, options.order, options.index_names, options.object_storage_config)
        _check_numbers(options.seed, options.mid_level_dataset_surplus)
        self.split = _one_split(options.splits_to_build)
        self.seq_len = options.seq_length
        self.create_attention_mask = options.create_attention_mask
        keep_partial = self.split == "valid" and not options.drop_last_partial_validation_sequence
        self._blend: Blend = read_paths(options.paths, self.split)
        self.bounds = self._bounds(options.split)
        self.parts: list[Part] = open_parts(self._blend.prefixes, self.bounds)
        self.origin = TokenizerProvenance(self.parts, options.tokenizer)
        self.notes: list[str] = list(self.origin.notes)
        self.labels = LabelRules(
            self.origin.special_ids(),
            reset_position_ids=options.reset_position_ids,
            reset_attention_mask=options.reset_attention_mask,
            eod_mask_loss=options.eod_mask_loss,
            padded=keep_partial or not options.add_extra_token_to_sequence,
        )
        given = {
            "train": options.num_train_samples,
            "valid": options.num_val_samples,
            "test": options.num_test_samples,
        }[self.split]
        length = RunLength(
            options.global_batch_size,
            options.trainer_max_steps,
            options.trainer_val_check_interval,
            options.trainer_limit_val_batches,
        )
        self._given_samples, self._wanted = given, self._samples_wanted(given, length)
        settings = OrderSettings(
            split=self.split,
            seq_len=options.seq_length,
            seed=options.seed,
            extra_token=options.add_extra_token_to_sequence,
            keep_partial=keep_partial,
            float32=options.float32_tail,
            surplus=options.mid_level_dataset_surplus,
            mmap="auto" if options.mmap_bin_files else False,
            pad_id=self.labels.ids.pad,
        )
        names = self._megatron_names(options.split) if options.index_names == "megatron" else None
        self.index_cache: IndexCache | None = None  # of an order that has indices
        self.order = self._order(
            options.order, settings, options.index_mapping_dir, names, options.num_dataset_builder_threads
        )
        self.fingerprint = fingerprint(self.parts)
        self._vocab_size: int | None = None  # of the model, where an id in the files could be beyond it

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

    def _samples_wanted(self, given: int | None, length: RunLength) -> int | None:
        if given is not None and given < 1:
            raise ConfigError(
                f"{given} samples are wanted of the {self.split} split", "give 1 or more, or null"
            )
        needed = length.samples(self.split)
        if given is None and self.split == "valid" and needed is not None:
            self.notes.append(
                f"each validation reads up to {needed:,} samples (those of all validations of the run, as NeMo counts "
                "them): num_val_samples or step_scheduler.limit_val_batches make it fewer"
            )
        return needed if given is None else given

    def _order(
        self,
        order: str,
        settings: OrderSettings,
        folder: str | Path | None,
        names: CacheKeys | None,
        threads: int,
    ) -> MegatronOrder | StatelessOrder:
        weights = self._blend.weights if len(self.parts) > 1 else None  # of a single one it says nothing
        if order != "megatron":
            shuffled = order == "stateless"
            found = StatelessOrder(
                self.parts, settings, weights=weights, size=self._wanted, shuffled=shuffled
            )
            self.notes += found.notes
            return found
        cache = IndexCache(Path(self._blend.prefixes[0]).parent / CACHE_FOLDER if folder is None else folder)
        built = MegatronOrder(
            self.parts,
            settings,
            weights=weights,
            size=self._wanted,
            cache=cache,
            names=names,
            threads=threads,
        )
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
    def whole_files(self) -> bool:
        """Whether the files belong to this split alone, so that it is all of each."""
        return self._blend.own_files

    @property
    def token_files(self) -> list[Path]:
        """The ``.bin`` files, in the order of ``paths``."""
        return [part.file.tokens.path for part in self.parts]

    def token_ranges(self) -> list[TokenRange]:
        """What is read of which file."""
        return [
            (part.file.tokens.path, part.first_token, part.first_token + part.tokens) for part in self.parts
        ]

    @property
    def num_tokens(self) -> int:
        """Tokens of this split in all files."""
        return sum(part.tokens for part in self.parts)

    @property
    def documents(self) -> int:
        """Sequences of this split in all files; a document is one, unless it was cut into sentences."""
        return sum(part.end - part.begin for part in self.parts)

    def plan(self) -> dict[str, Any]:
        """All that decides which tokens sample ``k`` holds, as JSON values."""
        return {
            "kind": "megatron",
            **self.order.plan(),
            "data": self.fingerprint,
            "split": self.split,
            "bounds": list(self.bounds),
            "seq_len": self.seq_len,
            "extra_token": self.order.settings.extra_token,
            "samples": self._given_samples if isinstance(self.order, MegatronOrder) else None,
        }

    @property
    def plan_hash(self) -> str:
        """Hash of ``plan()``."""
        return plan_hash(self.plan())

    def __len__(self) -> int:
        """Samples wanted, or as many as there are."""
        return len(self.order) if self._wanted is None else min(self._wanted, len(self.order))

    # ------------------------------------------------------------------------------------------- reading

    def locate(self, sample_numbers: np.ndarray) -> np.ndarray:
        """Where samples lie, for ``gather``. In Megatron's order those from ``len(self)`` on begin anew."""
        numbers = np.asarray(sample_numbers, dtype=np.int64)
        return self.order.locate(numbers % len(self) if isinstance(self.order, MegatronOrder) else numbers)

    def locate_windows(self, windows: np.ndarray) -> np.ndarray:
        """The same: a set to evaluate on is read in the order of its samples, as Megatron does."""
        return self.order.locate(windows)

    def gather(self, places: np.ndarray, out: np.ndarray) -> None:
        """Copy the samples at ``places`` into ``out`` (int64 ``[B, T + 1]``), padding id where there is no token.

        Raises:
            DataError: a file was changed meanwhile, or (after ``check_vocab``) an id without a row in the model.
        """
        self.order.gather(places, out)
        limit = self._vocab_size
        if limit is not None and int(np.maximum.reduce(out.view(np.uint64), axis=None)) >= limit:
            refuse_beyond(
                out, limit, lambda row, at: self._place(places[row].tolist(), at), self.labels.ids.pad
            )

    def _place(self, place: list[int], column: int) -> tuple[str, int]:
        part, position = self.order.position(place, column)
        return str(self.token_files[part]), position

    @property
    def labelled(self) -> bool:
        """Whether batches have to be made by ``make_batch``: labels are more than the next tokens."""
        return not self.labels.plain

    def make_batch(self, rows: np.ndarray) -> Batch:
        """A batch of gathered ``rows``, with labels to ignore, positions and segments as asked for."""
        return self.labels.batch(rows)

    def __getitem__(self, sample_number: int) -> dict[str, Any]:
        """Megatron's dict: tokens, labels, loss_mask, position_ids, each ``[T]``; attention_mask ``[1, T, T]``.

        Of a blend also ``dataset_id``.
        """
        if sample_number < 0:
            raise IndexError(f"sample number {sample_number}: they count from 0")
        if isinstance(self.order, MegatronOrder):
            sample_number %= len(self)
        row = np.empty(self.seq_len + 1, dtype=np.int64)
        part = self.order.read(sample_number, row)
        item = self.labels.item(row, attention_mask=self.create_attention_mask)
        return item if len(self.parts) == 1 else {"dataset_id": np.int16(part), **item}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The samples, once."""
        return (self[number] for number in range(len(self)))

    # -------------------------------------------------------------------------------------------- checks

    def max_token_id(self) -> int:
        """The largest id in a sample of the tokens, spread over all files (all of a small one)."""
        return max(self._sampled_maxima().values())

    def check_vocab(self, vocab_size: int) -> None:
        """Check that a model of ``vocab_size`` ids can embed this data; from here on ``gather`` checks each batch.

        Raises:
            DataError: the tokenizer that made the files has more ids, or a sampled token is beyond.
        """
        self.origin.check_vocab(vocab_size)
        for number, largest in self._sampled_maxima().items():
            if largest >= vocab_size:
                raise DataError(
                    f"{self.token_files[number]} holds token id {largest:,}, the model has {vocab_size:,} ids",
                    f"set model.vocab_size to at least {largest + 1}, or use the data's own tokenizer",
                )
        dtypes = [part.file.dtype for part in self.parts]
        safe = all(dtype.kind == "u" and np.iinfo(dtype).max < vocab_size for dtype in dtypes)
        self._vocab_size = None if safe else vocab_size

    def _sampled_maxima(self) -> dict[int, int]:
        ranges = [(part.first_token, part.tokens) for part in self.parts]
        return sampled_maxima(ranges, self.order.reader)


def _check_plain(seq_length: int, order: str, index_names: str, object_storage_config: Any) -> None:
    if seq_length < 1:
        raise ConfigError(f"dataset.seq_length is {seq_length}", "it counts tokens: give 1 or more")
    for name, value, known in (
        ("order", order, ("megatron", "stateless", "file")),
        ("index_names", index_names, ("readable", "megatron")),
    ):
        if value not in known:
            raise ConfigError(f"dataset.{name} is {value!r}", f"use {' or '.join(known)}")
    if object_storage_config is not None:
        raise ConfigError("dataset.object_storage_config: remote files are not read", "copy or mount them")


def _check_numbers(seed: int, surplus: float) -> None:
    if not 0 <= seed <= _LARGEST_SEED:
        raise ConfigError(
            f"dataset.seed is {seed}", f"give a number from 0 to {_LARGEST_SEED:,}, as NumPy takes them"
        )
    if not 0 <= surplus <= 1:
        raise ConfigError(
            f"dataset.mid_level_dataset_surplus is {surplus:g}", "it is a share: give a number from 0 to 1"
        )


def _one_split(wanted: str | Sequence[str] | None) -> str:
    names = [wanted] if isinstance(wanted, str) else list(wanted or ["train"])
    if len(names) != 1:
        raise ConfigError(
            f"dataset.splits_to_build names {len(names)} splits: {', '.join(names)}",
            "one section is one split: use dataset for train, validation_dataset for validation",
        )
    return split_name(names[0])
