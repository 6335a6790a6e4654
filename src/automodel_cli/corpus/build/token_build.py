"""One run that makes token files, whatever their format; interrupted, it is continued:

1. with shuffle all documents go to disk first, to be read back in random order
2. tokens stream through the pipeline into the writer
3. the manifest is published, and the journal goes
"""

from __future__ import annotations

import functools
import time
from abc import abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

from automodel_cli.corpus.build.disk_space import Estimate, Ratios, check_room, free_bytes
from automodel_cli.corpus.build.forecast import WORTH_FORECAST_BYTES, Forecast, source_bytes, take_sample
from automodel_cli.corpus.build.output import ManifestT
from automodel_cli.corpus.build.pipeline import BadRows, NoText, Progress, Sink, run_pipeline
from automodel_cli.corpus.build.pool import Executor, LocalExecutor
from automodel_cli.corpus.build.run import Build, BuildResult, Elsewhere, Say, Settings
from automodel_cli.corpus.build.token_output import TokenOutput
from automodel_cli.corpus.build.tokenize import EncodeTask
from automodel_cli.corpus.documents.parts import Part, find_parts
from automodel_cli.corpus.documents.source import FileSource, Source
from automodel_cli.corpus.formats.journal import Position
from automodel_cli.corpus.formats.manifest import Facts, Plan
from automodel_cli.corpus.jobs.job import Job
from automodel_cli.corpus.jobs.planned_file import PlannedFile
from automodel_cli.corpus.jobs.settled import Settled
from automodel_cli.corpus.shuffle.shuffled_source import ShuffledSource, likely_bucket_count
from automodel_cli.corpus.tokenizer import Tokenizer
from automodel_cli.corpus.tokenizers.engines import EngineMismatch
from automodel_cli.text import binary_size, plural

if TYPE_CHECKING:
    from automodel_cli.corpus.shuffle.shuffled_parts import ShuffledParts


class TokenSettings(Settings, Protocol):
    """The options that every kind of token files has."""

    max_tokens: int | None
    shuffle: bool
    seed: int
    shuffle_memory: int
    chunk_size: int
    prefetch: int
    cost_per_hour: float | None


WriterT = TypeVar("WriterT", bound=Sink)
TokenSettingsT = TypeVar("TokenSettingsT", bound=TokenSettings)


@dataclass(kw_only=True)
class TokenBuild(Build[TokenSettingsT, ManifestT], Generic[TokenSettingsT, ManifestT, WriterT]):
    """A run that makes token files."""

    source: Source
    output: TokenOutput[ManifestT]
    tokenizer: Tokenizer
    engine: str
    task: EncodeTask
    settled: Settled | None = None
    doubt: str | None = None  # why the fast engine is not trusted

    # ------------------------------------------------------------------------------- of each format

    @abstractmethod
    def writer(self, state: dict[str, Any] | None) -> WriterT:
        """What takes the chunks, from ``state`` on."""

    @abstractmethod
    def check(self, writer: WriterT, bad_rows: BadRows, say: Say) -> None:
        """All chunks are written: check the amounts and publish the files.

        Raises:
            NoText: there are no tokens.
            DataError: the documents cannot be divided as was asked.
        """

    def finish(self, writer: WriterT, bad_rows: BadRows) -> None:
        """:meth:`check`, and what is to be noted before :meth:`publish`."""
        self.check(writer, bad_rows, self.say)

    @abstractmethod
    def publish(self, writer: WriterT, bad_rows: BadRows) -> None:
        """Write the manifest."""

    # ------------------------------------------------------------------ of each format, for a run in tasks

    @property
    def drops_tails(self) -> bool:
        """Whether the rest of a document that meets the end of its split's share is dropped."""
        return False

    @abstractmethod
    def recorder(self, folder: Path) -> WriterT:
        """:meth:`writer` for ranges of ids in place of ids; what it leaves goes to ``folder``."""

    @abstractmethod
    def planned(self, writer: WriterT, folder: Path) -> tuple[list[PlannedFile], dict[str, Any]]:
        """The files of a checked recorder, and a state from which :meth:`writer` knows them.

        Raises:
            DataError: the documents cannot be divided as was asked.
        """

    @abstractmethod
    def head(self, tokens: int) -> bytes:
        """What a token file of ``tokens`` begins with."""

    # ------------------------------------------------------------------------------------ of every run

    @functools.cached_property
    def shuffled(self) -> ShuffledSource:
        """The source in random order."""
        cfg, folder = self.cfg, self.output.shuffle_folder
        amounts = {"memory_bytes": cfg.shuffle_memory, "num_workers": self.num_workers}
        return ShuffledSource(self.source, folder, seed=cfg.seed, **amounts)

    @property
    def documents(self) -> Source:
        """The source in the order in which it is tokenized for the writer."""
        return self.shuffled if self.cfg.shuffle else self.source

    def made(self) -> Plan:
        return {**super().made(), "tokenizer": self.tokenizer.describe()}

    def plan(self) -> Plan:
        """What an interrupted run must have in common with this one."""
        made = self.made()
        return {**made, "source": {**made["source"], "identity": self.source.identity()}}

    def use_reference_engine(self, doubt: str) -> None:
        """The fast engine is wrong about some text."""
        self.doubt = doubt
        self.engine = self.tokenizer.use_engine("reference")
        self.task = replace(self.task, engine="reference")

    @abstractmethod
    def estimate(self, *, copies: int = 1, ratios: Ratios | None = None) -> Estimate | None:
        """What will be written; ``copies`` times all ids will be on the disk at once."""

    @property
    def keeps_all(self) -> bool:
        """Whether all of it is on the disk at once, though files that go to object storage leave it when finished."""
        return self.cfg.shuffle

    def check_room(self, *, copies: int = 1) -> None:
        """Before a run begins from nothing: is there disk space, where all ids will be written so many times?

        Raises:
            AutomodelError: there certainly is not.
        """
        if self.output.mirror is not None and copies == 1 and not self.keeps_all:
            return
        if warning := check_room(self.output.folder, self.estimate(copies=copies), self.output.option):
            self.say(warning)

    def say_forecast(self, elsewhere: Elsewhere | None) -> None:
        """How many processes or tasks there will be and, where that is worth a sample, how long they take."""
        source, price = self.source, self.cfg.cost_per_hour
        if elsewhere is None:
            self.say(f"would tokenize in {plural(max(1, self.num_workers), 'process', 'processes')}")
        if not isinstance(source, FileSource) or self.cfg.shuffle:  # a shuffle takes a time of its own
            return
        if elsewhere is None and price is None and source_bytes(source) < WORTH_FORECAST_BYTES:
            return
        try:
            forecast = self._forecast(source, elsewhere)
        except EngineMismatch:  # the run finds it too, and knows what to do
            return
        if forecast is None:
            return
        for line in forecast.lines(price):
            self.say(line)
        needed = self.estimate(copies=1 if elsewhere is None else 2, ratios=forecast.sample.ratios)
        if needed is not None:
            free = binary_size(free_bytes(self.output.folder))
            self.say(f"plan: {binary_size(needed.bytes)} at {self.output.folder}, where {free} are free")

    def _forecast(self, source: FileSource, elsewhere: Elsewhere | None) -> Forecast | None:
        cfg = self.cfg
        # The sample's ids come here: there is no file for a worker to put them in.
        executor, clock = LocalExecutor(self.num_workers, cfg.prefetch), time.perf_counter
        workers: int | None = max(1, self.num_workers)
        parts: list[int] | None = None
        if elsewhere is not None:
            executor, clock = LocalExecutor(1), time.process_time
            workers = elsewhere.slots
            parts = [part.bytes for part in find_parts(source, cfg.chunk_size)]
        sample = take_sample(
            source,
            self.task,
            self.tokenizer,
            executor,
            self.recorder,
            chunk_documents=cfg.chunk_size,
            near=self.output.folder,
            clock=clock,
        )
        itemsize = np.dtype(self.task.dtype).itemsize
        return None if sample is None else Forecast(sample, cfg.max_tokens, itemsize, workers, parts)

    @property
    def executor(self) -> Executor:
        """What runs the tokenizer."""
        return LocalExecutor(self.num_workers, self.cfg.prefetch, holds=True)

    def make(self) -> BuildResult[ManifestT]:
        """Write the corpus, or go on where an interrupted run of the same plan stopped."""
        output = self.output
        position = output.interrupted_position(self.plan(), self.say)
        continued = position is not None
        if not continued:
            self.check_room()
        brought = not continued and output.tokenizer_folder.is_dir()
        try:
            bad_rows = self._run_phases(position or Position())
        except EngineMismatch as error:
            self.say(f"{error}: starting over with the reference engine, which is slower but right")
            output.clear(keep_tokenizer=brought)
            self.use_reference_engine(str(error))
            continued = False
            bad_rows = self._run_phases(Position())
        except NoText:
            output.clear(keep_tokenizer=brought)
            raise
        return self._result(bad_rows, continued=continued)

    def job(self) -> Job:
        from automodel_cli.corpus.jobs.token_job import TokenJob  # models of files that a run here does not need

        return TokenJob(self)

    def bucket_count(self) -> int:
        """Of a shuffle in tasks that begins."""
        return likely_bucket_count(self.source, self.cfg.shuffle_memory)

    def shuffled_parts(self, parts: tuple[Part, ...], bucket_count: int) -> ShuffledParts:
        """The source in random order, for a run in tasks; ``parts`` are those of the source."""
        from automodel_cli.corpus.shuffle.shuffled_parts import ShuffledParts  # as above

        cfg, folder = self.cfg, self.output.shuffle_folder
        memory_bytes, strict = cfg.shuffle_memory, cfg.strict
        shuffled = functools.partial(ShuffledParts, seed=cfg.seed, memory_bytes=memory_bytes, strict=strict)
        return shuffled(self.source, folder, parts, bucket_count)

    def publish_made(self, state: dict[str, Any], bad_rows: BadRows, facts: Facts) -> BuildResult[ManifestT]:
        """All files were made by tasks, hashed (``facts``), and are in their places."""
        self.output.hashed = facts
        self.publish(self.writer(state), bad_rows)
        return self._result(bad_rows)

    def _result(self, bad_rows: BadRows, *, continued: bool = False) -> BuildResult[ManifestT]:
        manifest = self.output.finished(self.made())
        assert manifest is not None
        return BuildResult(self.output.folder, manifest, False, continued, bad_rows.first, self.engine)

    def _run_phases(self, position: Position) -> BadRows:
        bad_rows = BadRows(self.cfg.strict, position.bad["count"], list(position.bad["first"]))
        if position.cursor is None:
            position = Position("gather" if self.cfg.shuffle else "write")
            self.output.write_progress(self.plan(), position)
        self.tokenizer.save(self.output.tokenizer_folder)
        if position.phase == "gather":
            self._gather(bad_rows)
            position = Position("write", {"key": 0}, bad=bad_rows.saved())
            self.output.write_progress(self.plan(), position)
        writer = self.writer(position.writer)
        if position.phase == "write":
            self._fill(writer, position, bad_rows)
        self.publish(writer, bad_rows)
        return bad_rows

    def _gather(self, bad_rows: BadRows) -> None:
        try:
            self.shuffled.gather(bad_rows, self.progress)
        except BaseException:
            self.shuffled.remove()
            raise

    def _fill(self, writer: WriterT, position: Position, bad_rows: BadRows) -> None:
        plan = self.plan()

        def note(cursor: dict[str, Any], rows: int) -> None:
            here = Position("write", cursor, rows, bad_rows.saved(), writer.sync())
            self.output.write_progress(plan, here)

        read_bytes = 0

        def on_progress(text_bytes: int, through: float | None) -> None:
            nonlocal read_bytes
            read_bytes += text_bytes
            counts = (writer.documents, writer.tokens, read_bytes, bad_rows.count)
            wanted = (self.cfg.max_tokens, self.documents.total_bytes)
            self.progress(Progress("writing", *counts, *wanted, through))

        try:
            if not writer.full:
                units = self.documents.units(position.cursor, self.cfg.chunk_size)
                with self.executor.map_ordered(self.task, units) as chunks:
                    run_pipeline(chunks, writer, bad_rows, rows=position.rows, note=note, on_progress=on_progress)
            self.finish(writer, bad_rows)
        except BaseException:
            writer.abandon()
            raise
