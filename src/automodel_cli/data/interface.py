"""Interface of data sets: what the start-up table, the facts, the checks and the loaders ask of one.

``DataSource`` is what is known of any data set (of a user's own, which declares none of it, by ``ForeignSource``).
``WindowDataset`` has numbered windows of equal length; a further kind derives from it, and has a line in
``config.targets.roles``.

Shapes: N windows, B rows, T = ``seq_len`` tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.utils.data import Dataset

from automodel_cli.batch import Batch
from automodel_cli.batch_sizes import BatchSizes
from automodel_cli.corpus.tokenizers.same_tokenizer import MadeBy
from automodel_cli.data.position import plan_hash
from automodel_cli.errors import DataError

TokenRange = tuple[Path, int, int]  # a token file, the first token and one past the last


@dataclass(frozen=True)
class Stretch:
    """Tokens ``first`` to ``end`` of a file, of a source of the mixture or blend where there is one."""

    source: str | None
    file: Path
    first: int
    end: int


_SAMPLED_WINDOWS = 256  # looked at for the largest id


@dataclass(frozen=True)
class RunValues:
    """What a run knows that a data set may be built with, where the configuration leaves it open."""

    seed: int
    split: str  # "train" or "validation"
    global_batch_size: int | BatchSizes  # a schedule, where it changes
    max_steps: int | None = None
    val_every_steps: int | None = None


@dataclass(frozen=True)
class Description:
    """What is known of a data set before it is read; None: not known.

    Attributes:
        kind: name of its class.
        sequences: samples of one epoch, or as many as the run wants.
        split: which one the tokens are, where files were divided or a manifest says so.
        plan: all that decides which tokens sample ``k`` holds, as JSON values.
    """

    kind: str
    tokens: int | None = None
    files: int | None = None
    sequences: int | None = None
    seq_len: int | None = None
    split: str | None = None
    fingerprint: str | None = None
    plan: dict[str, Any] | None = None


@dataclass(frozen=True)
class BlendStats:
    """What one file of a blend gives: sequences ``begin`` to ``end`` of it.

    ``weight`` is its share of the ``samples``, ``epochs`` how often its tokens are read for them.
    """

    name: str
    begin: int
    end: int
    tokens: int
    weight: float
    samples: int
    epochs: float


@dataclass(frozen=True)
class SourceStats:
    """What one source of a mixture gives to a run: ``windows`` of the ``available``, by its ``weights`` in turn."""

    name: str
    tokens: int
    available: int
    windows: int
    weights: tuple[float, ...]


@dataclass(frozen=True)
class IndexReport:
    """Sample indices of a data set on disk: how many it needs, were built now, and could not be kept."""

    folder: Path | None
    needed: int
    built: int
    lost: int
    notes: Sequence[str]


class DataSource:
    """What is known of a data set. All of it has a default but ``describe``."""

    opens_tokenizers: ClassVar[bool] = False
    """Whether an argument ``tokenizer`` may be the name of one, which the data set opens itself."""

    stage: ClassVar[str] = "pretraining"
    """What a run on it is ("mid-training" on conversations), where the configuration does not say."""

    notes: Sequence[str] = ()
    """What should be said once before a run."""

    @classmethod
    def run_arguments(cls, run: RunValues) -> dict[str, Any]:
        """Arguments of the constructor that the run fills in where the configuration leaves them out."""
        return {"seed": run.seed}

    @classmethod
    def open_named(
        cls, name: str, seq_len: int, *, held_out: bool = True, trained_as: Mapping[str, Any]
    ) -> DataSource | None:
        """What is in the files that ``name`` means, in their order; None where they are of another kind.

        Args:
            held_out: of a whole corpus only its validation split.
            trained_as: arguments of the training data that say how files are read, which other kinds may not have.
        """
        return None

    def describe(self) -> Description:
        """The line of the start-up table, and the identity that a checkpoint remembers."""
        raise NotImplementedError

    @property
    def manifest(self) -> MadeBy | None:
        """What is written beside the files of the tokenizer that made them; None: nothing."""
        return None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that belongs to the data, where the data set itself holds one."""
        return None

    def token_ranges(self) -> list[TokenRange]:
        """What is read of which file."""
        return []

    @property
    def token_files(self) -> list[Path]:
        """The files in reading order."""
        return [path for path, _, _ in self.token_ranges()]

    def blend_stats(self) -> list[BlendStats]:
        """What each file gives to a blend; empty where there is none."""
        return []

    def source_stats(self) -> list[SourceStats]:
        """What each source gives to a mixture; empty where there is none."""
        return []

    @property
    def source_names(self) -> Sequence[str]:
        """The sources that losses are told apart by; none where there are not several."""
        return ()

    @property
    def objective(self) -> Mapping[str, float] | None:
        """The share of each source in what is trained for; None: that in the samples."""
        return None

    def check_run(self, samples: int | None) -> None:
        """Refuse a run that reads more than it may; ``samples`` in all, None where only the time ends it."""

    def index_report(self) -> IndexReport | None:
        """What became of the sample indices; None where none are needed."""
        return None

    def check_vocab(self, vocab_size: int) -> None:
        """Check that a model of ``vocab_size`` ids has a row for every id.

        Raises:
            DataError: it has not.
        """


class WindowDataset(DataSource, Dataset[dict[str, torch.Tensor]], ABC):
    """Samples of ``seq_len`` tokens by number: sample ``k`` is the same tokens on every rank, in every run.

    Samples are numbered on beyond an epoch. ``sample_offsets`` says where they lie, ``read_windows`` copies them.
    """

    seq_len: int
    seq_len_argument: ClassVar[str] = "seq_len"
    """The constructor's argument for it."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Identity of the content, wherever it lies."""

    @abstractmethod
    def plan(self) -> dict[str, Any]:
        """All that decides which tokens sample ``k`` holds, as JSON values."""

    @abstractmethod
    def __len__(self) -> int:
        """Samples of one epoch, or as many as are wanted."""

    @property
    def plan_hash(self) -> str:
        """Hash of ``plan()``."""
        return plan_hash(self.plan())

    def continue_from(self, stored: Any, sample: int) -> Any:
        """Go on where a run with another plan was, if this data set can; what changes then, else None."""
        return None

    @property
    def num_tokens(self) -> int:
        """Tokens in all that is read."""
        return sum(end - first for _, first, end in self.token_ranges())

    @property
    def token_dtype(self) -> np.dtype:
        """A type that holds every id."""
        return np.dtype(np.int32)

    @property
    def named_split(self) -> str | None:
        """The split that the tokens are, where something says so."""
        return None

    def describe(self) -> Description:
        """As ``DataSource`` has it."""
        return Description(
            type(self).__name__,
            self.num_tokens,
            len(self.token_files),
            len(self),
            self.seq_len,
            self.named_split,
            self.fingerprint,
            self.plan(),
        )

    @abstractmethod
    def sample_offsets(self, sample_numbers: np.ndarray) -> np.ndarray:
        """Where samples lie, for ``read_windows``: int64 ``[N, K]``, K as the data set likes."""

    def stretches(self, offset: np.ndarray) -> list[Stretch]:
        """What the row at ``offset`` (int64 ``[K]``) is of which files, in order; empty: it cannot say."""
        return []

    def window_offsets(self, windows: np.ndarray) -> np.ndarray:
        """Where windows lie, numbered for evaluation: in the order of the files, where that differs."""
        return self.sample_offsets(windows)

    @abstractmethod
    def read_windows(self, offsets: np.ndarray, out: np.ndarray) -> None:
        """Copy the windows at ``offsets`` (int64 ``[B, K]``) into ``out`` (int64 ``[B, T + 1]``)."""

    @property
    def reads_remote(self) -> bool:
        """Whether ``expect`` has something to do."""
        return False

    def expect(self, offsets: np.ndarray) -> int:
        """Have the rows at ``offsets`` (int64 ``[N, K]``) fetched that are not on this machine.

        Returns:
            How many requests that takes.
        """
        return 0

    @property
    def follow_each_other(self) -> bool:
        """Whether offsets are (file, token), so that windows T tokens apart are one stretch of text."""
        return False

    def sources_at(self, offsets: np.ndarray) -> np.ndarray:
        """Of which source (its number in ``source_names``) the rows at ``offsets`` (``[N, K]``) are, int64 ``[N]``."""
        return np.zeros(len(offsets), dtype=np.int64)

    def row_weights(self, sample_numbers: np.ndarray, sources: np.ndarray) -> np.ndarray:
        """What the gradient of each sample's tokens is multiplied by where there is an ``objective``, fp32 ``[N]``.

        With p the objective's share of the sample's source and q the share of that source in the samples: p / q. Its
        mean over samples is 1.
        """
        return np.ones(len(sample_numbers), dtype=np.float32)

    def read_samples(self, sample_numbers: np.ndarray, out: np.ndarray) -> None:
        """Copy samples into ``out``, int64 ``[B, T + 1]``: inputs ``out[:, :-1]``, labels ``out[:, 1:]``."""
        self.read_windows(self.sample_offsets(sample_numbers), out)

    @property
    def label_rule(self) -> Any:
        """How a batch is more than two views of its rows (ignored labels, positions, segments); None: it is not.

        Rows of data sets with equal rules may stand in one batch.
        """
        return None

    @property
    def labelled(self) -> bool:
        """Whether there is such a rule."""
        return self.label_rule is not None

    def make_batch(self, rows: np.ndarray) -> Batch:
        """The batch of ``rows`` that were read (int64 ``[B, T + 1]``); views of them unless ``labelled``."""
        tensor = torch.from_numpy(rows)
        return Batch(tensor[:, :-1], tensor[:, 1:])

    def __getitem__(self, sample_number: int) -> dict[str, torch.Tensor]:
        """The fields of one sample's batch, int64 ``[T]`` each; numbers beyond an epoch are of later ones."""
        refuse_negative(sample_number)
        out = np.empty((1, self.seq_len + 1), dtype=np.int64)
        self.read_samples(np.array([sample_number]), out)
        return {name: rows[0] for name, rows in vars(self.make_batch(out)).items() if rows is not None}

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """The samples of one epoch."""
        return (self[number] for number in range(len(self)))

    def max_token_id(self) -> int:
        """The largest id in windows spread over the data (all of a small set)."""
        numbers = np.unique(np.linspace(0, len(self) - 1, min(len(self), _SAMPLED_WINDOWS)).astype(np.int64))
        rows = np.empty((len(numbers), self.seq_len + 1), dtype=np.int64)
        self.read_windows(self.window_offsets(numbers), rows)
        return int(rows.max())

    def check_vocab(self, vocab_size: int) -> None:
        """As ``DataSource`` has it, by a sample."""
        refuse_large_tokenizer(self.manifest, vocab_size)
        if (largest := self.max_token_id()) >= vocab_size:
            raise DataError(
                f"the data holds token id {largest:,}, the model has {vocab_size:,} ids",
                vocabulary_hint(largest + 1, vocab_size),
            )


def refuse_negative(sample_number: int) -> None:
    """Samples are numbered from 0; there is no last one for Python's -1 to mean."""
    if sample_number < 0:
        raise IndexError(f"sample number {sample_number}: they count from 0")


def vocabulary_hint(needed: int, vocab_size: int) -> str:
    """What to do where a model of ``vocab_size`` ids meets data that has ``needed``."""
    return f"set model.vocab_size to at least {needed}, or use data tokenized for {vocab_size:,} ids"


def refuse_large_tokenizer(manifest: MadeBy | None, vocab_size: int) -> None:
    """Refuse data whose tokenizer has more ids than the model.

    Raises:
        DataError: it has.
    """
    made_by = None if manifest is None else manifest.tokenizer
    if made_by is not None and made_by["vocab_size"] > vocab_size:
        raise DataError(
            f"the data was tokenized with {made_by['name']} ({made_by['vocab_size']:,} ids), "
            f"the model has {vocab_size:,}",
            vocabulary_hint(made_by["vocab_size"], vocab_size),
        )


class ForeignSource(DataSource):
    """A data set of a user's own, asked for what such classes often have."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.notes = getattr(dataset, "notes", ())

    @property
    def tokenizer(self) -> Any:
        """Its attribute ``tokenizer``."""
        return getattr(self.dataset, "tokenizer", None)

    def describe(self) -> Description:
        """Its class, length, ``seq_len`` or ``seq_length``, and ``fingerprint``, as far as there are such."""
        lengths = [getattr(self.dataset, name, None) for name in ("seq_len", "seq_length")]
        return Description(
            type(self.dataset).__name__,
            sequences=length_of(self.dataset),
            seq_len=next((found for found in lengths if isinstance(found, int)), None),
            fingerprint=getattr(self.dataset, "fingerprint", None),
        )


def source_of(dataset: Any) -> DataSource:
    """What is known of ``dataset``: itself, where it declares that."""
    return dataset if isinstance(dataset, DataSource) else ForeignSource(dataset)


def length_of(dataset: Any) -> int | None:
    """Items in one epoch, or None where the data set does not say."""
    try:
        return len(dataset)
    except (TypeError, NotImplementedError, AttributeError):
        return None
