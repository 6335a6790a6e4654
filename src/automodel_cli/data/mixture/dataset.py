"""``Mixture``: windows of several data sets, by weights that may change in the course of a run.

Sample ``k`` is window ``order(k)`` of one source (``order``); a source's windows are permuted anew in each pass over it
by the source itself. So a position is one integer, as for a single data set, and ranks are not known here. The files of
all sources are read as those of one.

Shapes: N samples, T = ``seq_len`` tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from automodel_cli.arguments import constructor_takes
from automodel_cli.batch import Batch
from automodel_cli.batch_sizes import BatchSizes
from automodel_cli.corpus.tokenizers.same_tokenizer import MadeBy
from automodel_cli.data.arguments import MixtureArguments
from automodel_cli.data.files.documents import Document
from automodel_cli.data.files.file_windows import FileWindows
from automodel_cli.data.files.token_dataset import TokenFileDataset
from automodel_cli.data.interface import RunValues, SourceStats, TokenRange
from automodel_cli.data.mixture.history import DataChange, as_json, change_of, read_plan, read_segments, stage_plans
from automodel_cli.data.mixture.order import ALGORITHM, MixtureOrder, Stage
from automodel_cli.data.mixture.sources import fims_of, objective_weights_of, open_sources, weights_of
from automodel_cli.data.mixture.stages import stages_of
from automodel_cli.data.objective import refuse_reserved, shares, token_weights
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.files import hash_bytes

Locate = Callable[[TokenFileDataset, np.ndarray], np.ndarray]


class Mixture(FileWindows):
    """Windows of several sources. Arguments: ``MixtureArguments``.

    Raises:
        ConfigError: sources, weights or stages that mean nothing, or contradict each other.
        DataError: as the sources have it.
    """

    @constructor_takes(MixtureArguments)
    def __init__(self, options: MixtureArguments) -> None:
        self.seq_len = options.seq_len
        self.sources = open_sources(options)
        self._parts = list(self.sources.values())
        mapped = all(source.maps_files for source in self._parts)
        super().__init__([file for source in self._parts for file in source.files], "auto" if mapped else False)
        self.fims = fims_of(options, self.sources)
        self._fims = [fim for fim, source in zip(self.fims.values(), self._parts, strict=True) for _ in source.files]
        self.order = MixtureOrder(stages_of(options, weights_of(options, self.sources)))
        self._objective = self._objective_of(options)
        self._given: dict[str, int] = {}  # windows of each source before the order begins
        self._history: list[dict[str, Any]] = []  # the mixtures before it
        self.notes = [f"source {name}: {note}" for name, source in self.sources.items() for note in source.notes]
        self._sizes = np.array([len(source) for source in self._parts], dtype=np.int64)
        self._first_window = np.concatenate([[0], np.cumsum(self._sizes)])
        self._training = options.split == "train"
        self._wanted: int | None = None
        if self._training and options.max_steps is not None and options.global_batch_size is not None:
            self._wanted = BatchSizes.of(options.global_batch_size).samples(options.max_steps)
        self._first_file = np.cumsum([0, *(len(source.files) for source in self._parts)])
        self._in_turn: np.ndarray | None = None  # windows to evaluate on, made when first asked for
        self._read = len(self)  # samples of the run, as far as is known
        self._max_passes = math.inf if options.max_passes is None else options.max_passes
        if not self._max_passes > 0:
            raise ConfigError(
                f"dataset.max_passes is {options.max_passes}", "give a number above 0, or null for no limit"
            )

    def _objective_of(self, options: MixtureArguments) -> dict[str, float] | None:
        given = objective_weights_of(options)
        if given is None:
            return None
        refuse_reserved(given, "dataset.sources")
        found = shares(given, "dataset.sources")
        token_weights(list(found.values()), self.order.shares())  # every stage has to train something
        return found

    @classmethod
    def run_arguments(cls, run: RunValues) -> dict[str, Any]:
        """The length of the run, from which shares of it and passes follow."""
        sizes = {"global_batch_size": run.global_batch_size, "max_steps": run.max_steps}
        return {"seed": run.seed, "split": run.split, **sizes}

    def check_run(self, samples: int | None) -> None:
        """As ``DataSource`` has it: what was read before a change of the mixture counts too.

        Raises:
            DataError: a source would be read more often than ``max_passes``.
        """
        self._read = self._read if samples is None else samples
        for stats in self.source_stats() if self._training else ():
            if stats.windows > self._max_passes * stats.available:
                raise DataError(
                    f"source {stats.name} would be read {stats.windows / stats.available:.3g} times, "
                    f"dataset.max_passes is {self._max_passes:g}",
                    "give it more text or less weight, train shorter, or raise max_passes",
                )

    # ---------------------------------------------------------------------------------------- what it is

    @property
    def fingerprint(self) -> str:
        """As ``WindowDataset`` has it."""
        parts = [f"{name}\n{source.fingerprint}" for name, source in self.sources.items()]
        return hash_bytes("\n".join(parts).encode())

    @property
    def stages(self) -> list[Stage]:
        """Those that the run comes to."""
        return [stage for stage in self.order.stages if stage.first < self._read]

    def plan(self) -> dict[str, Any]:
        """As ``WindowDataset`` has it: the plan of a run that never changed its data has no history."""
        changed = {"from_sample": self.order.first, "given": self._given, "history": self._history}
        return {
            "kind": "mixture",
            "order": ALGORITHM,
            "seq_len": self.seq_len,
            **self._segment(),
            **(changed if self._history else {}),
        }

    def _segment(self) -> dict[str, Any]:
        return {
            "sources": {name: self._plan_of(name) for name in self.sources},
            "stages": stage_plans(self.order.stages, list(self.sources)),
        }

    def _plan_of(self, name: str) -> dict[str, Any]:
        fim = self.fims[name]
        return {**self.sources[name].plan(), **({} if fim is None else {"fim": fim.plan()})}

    def continue_from(self, stored: Any, sample: int) -> DataChange | None:
        """Go on from where a run with the plan ``stored`` was after ``sample`` samples, each source at its window.

        Returns:
            What is another now; None where nothing is, or where no mixture can go on from that plan (then the plans
            differ).

        Raises:
            DataError: a source's name means another source than it did.
        """
        own = self._segment()
        before = read_plan(stored, own["sources"], self.seq_len, sample)
        if before is None:
            return None
        change, self._history = None, [as_json(segment) for segment in before.history]
        if (stored.get("sources"), stored.get("stages")) == (own["sources"], own["stages"]):
            first, self._given = before.from_sample, before.given
        else:
            change = change_of(before, own["sources"], self.order, sample)
            first, self._given = sample, before.given_at(sample)
            self._history.append(as_json(before))
        given = [self._given.get(name, 0) for name in self.sources]
        self.order = MixtureOrder(self.order.stages, first, given)
        return change

    def source_stats(self) -> list[SourceStats]:
        """What each source gives to the samples that are read."""
        given = self._sizes
        if self._training:
            given = self.order.given(max(self._read, self.order.first))
        return [
            SourceStats(
                name,
                source.num_tokens,
                len(source),
                int(windows),
                tuple(stage.weights[number] / sum(stage.weights) for stage in self.stages),
            )
            for number, ((name, source), windows) in enumerate(zip(self.sources.items(), given, strict=True))
        ]

    @property
    def source_names(self) -> Sequence[str]:
        """Their names, where there are several."""
        return tuple(self.sources) if len(self.sources) > 1 else ()

    @property
    def objective(self) -> Mapping[str, float] | None:
        """The shares of ``objective_weight``, where sources have one."""
        return self._objective

    def sources_at(self, offsets: np.ndarray) -> np.ndarray:
        """As ``WindowDataset`` has it, by the file."""
        return np.searchsorted(self._first_file, offsets[:, 0], side="right") - 1

    def row_weights(self, sample_numbers: np.ndarray, sources: np.ndarray) -> np.ndarray:
        """As ``WindowDataset`` has it, by the weights in force at each sample (of a ramp those of its piece)."""
        assert self._objective is not None
        table = token_weights(list(self._objective.values()), self.order.shares())
        return table[self.order.pieces_of(sample_numbers), sources].astype(np.float32)

    def token_ranges(self) -> list[TokenRange]:
        """Those of all sources."""
        return [found for source in self._parts for found in source.token_ranges()]

    @property
    def manifest(self) -> MadeBy | None:
        """That of the first source that has one: they name one tokenizer."""
        return next((source.manifest for source in self._parts if source.manifest is not None), None)

    @property
    def tokenizer(self) -> Any:
        """That of the first source that has one."""
        return next((source.tokenizer for source in self._parts if source.tokenizer is not None), None)

    @property
    def named_split(self) -> str | None:
        """The split that all sources are, where they say so."""
        splits = {source.named_split for source in self._parts}
        return splits.pop() if len(splits) == 1 else None

    @property
    def label_rule(self) -> Any:
        """That of the sources, which is one."""
        return self._parts[0].label_rule

    def make_batch(self, rows: np.ndarray) -> Batch:
        """As ``WindowDataset`` has it."""
        return self._parts[0].make_batch(rows)

    def __len__(self) -> int:
        """Samples that the run wants; else as many as the sources have windows."""
        return int(self._first_window[-1]) if self._wanted is None else self._wanted

    # ------------------------------------------------------------------------------------------- reading

    def sample_offsets(self, sample_numbers: np.ndarray) -> np.ndarray:
        """Where samples lie: int64 ``[N, 2]`` of (file, first token), with ``fim`` also their numbers in the source."""
        numbers = np.asarray(sample_numbers, dtype=np.int64).ravel()
        if self._history and numbers.min(initial=self.order.first) < self.order.first:
            sources, windows = self._earlier(numbers)
        else:
            sources, windows = self.order(numbers)
        found = self._located(sources, windows, lambda source, own: source.sample_offsets(own))
        return found if not any(self._fims) else np.column_stack([found, windows])

    def _earlier(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, its window) of samples of which some are of a mixture before this one.

        Raises:
            DataError: one is of a source that this mixture has not.
        """
        names, segments = list(self.sources), read_segments(self._history)
        begins = np.array([segment.from_sample for segment in segments] + [self.order.first])
        segment_of = np.searchsorted(begins, numbers, side="right") - 1
        sources, windows = np.empty_like(numbers), np.empty_like(numbers)
        for number in np.unique(segment_of).tolist():
            mine = segment_of == number
            if number == len(segments):
                sources[mine], windows[mine] = self.order(numbers[mine])
                continue
            own = list(segments[number].sources)
            found, windows[mine] = segments[number].order()(numbers[mine])
            if absent := sorted({own[one] for one in found.tolist()} - set(names)):
                raise DataError(
                    f"samples before {begins[number + 1]:,} are of source {absent[0]} too, which is there no more",
                    "name a checkpoint from before the change",
                )
            sources[mine] = np.array([names.index(name) if name in names else -1 for name in own])[found]
        return sources, windows

    def _source_of(self, file: int) -> str | None:
        return list(self.sources)[int(np.searchsorted(self._first_file, file, side="right")) - 1]

    def documents(self, number: int, first: int, end: int) -> list[Document]:
        """As ``TokenFileDataset`` has it: as the file's source knows them."""
        source = int(np.searchsorted(self._first_file, number, side="right")) - 1
        return self._parts[source].documents(number - int(self._first_file[source]), first, end)

    def window_offsets(self, windows: np.ndarray) -> np.ndarray:
        """The same of windows to evaluate on: all of every source once, so that any beginning has its part of each."""
        if self._in_turn is None:
            # Window w of n comes at (w + 1/2) / n of the pass.
            places = np.concatenate([(np.arange(size) + 0.5) / size for size in self._sizes.tolist()])
            self._in_turn = np.argsort(places, kind="stable")
        numbers = self._in_turn[np.asarray(windows, dtype=np.int64).ravel()]
        sources = np.searchsorted(self._first_window, numbers, side="right") - 1
        return self._located(
            sources, numbers - self._first_window[sources], lambda source, own: source.window_offsets(own)
        )

    def _located(self, sources: np.ndarray, windows: np.ndarray, locate: Locate) -> np.ndarray:
        offsets = np.empty((len(sources), 2), dtype=np.int64)
        for number in np.unique(sources).tolist():
            mine = sources == number
            offsets[mine] = locate(self._parts[number], windows[mine])
            offsets[mine, 0] += self._first_file[number]
        return offsets
