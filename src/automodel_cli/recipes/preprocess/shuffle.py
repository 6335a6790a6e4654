"""Documents in random order: what is particular to them. The steps of a run are ``corpus.build.run``'s; then

1. every row goes to its bucket on disk (``scatter``), in several processes where that pays
2. with dedup: rows whose text came before are found by their hashes (``duplicates``)
3. the buckets are sorted one by one and written, validation first (``buckets``, ``document_files``)
4. the files get their names, then the manifest is written; temporary files go, also after an error

Killed at any point, the same command starts over and ends with the same bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from automodel_cli import __version__
from automodel_cli.assembly.runners import elsewhere
from automodel_cli.config.schema.preprocess import of_sample, unusual_reading
from automodel_cli.config.schema.shuffle import ShuffleConfig
from automodel_cli.corpus.build.disk_space import ExpectedSize, expected_size
from automodel_cli.corpus.build.forecast import WORTH_FORECAST_BYTES
from automodel_cli.corpus.build.mirror import Place
from automodel_cli.corpus.build.pipeline import BadRows, Progress
from automodel_cli.corpus.build.rehearsal import in_words, rehearse
from automodel_cli.corpus.build.run import (
    Build,
    BuildResult,
    Elsewhere,
    ProgressCallback,
    Say,
    silent,
)
from automodel_cli.corpus.documents.document_input import carried_columns, refuse_overlap
from automodel_cli.corpus.documents.listing import is_local
from automodel_cli.corpus.documents.parts import find_parts
from automodel_cli.corpus.documents.source import FileSource, read_options, source_in_words
from automodel_cli.corpus.jobs.job import Job
from automodel_cli.corpus.shuffle.bucket_reader import BucketReader
from automodel_cli.corpus.shuffle.buckets import Buckets, bucket_count
from automodel_cli.corpus.shuffle.document_files import Amounts, DocumentWriter, chunk_name, val_name
from automodel_cli.corpus.shuffle.document_folder import DocumentsManifest, DocumentsOutput, Finished
from automodel_cli.corpus.shuffle.duplicates import Duplicates, digest_range_count
from automodel_cli.corpus.shuffle.rows import RowOptions, RowReader
from automodel_cli.corpus.shuffle.scatter import DIGEST_FIELDS, LIKELY_ROW_BYTES, ScatterTask, scatter_all
from automodel_cli.errors import AutomodelError, ConfigError, DataError
from automodel_cli.files import make_folder
from automodel_cli.processes import cores
from automodel_cli.text import binary_size, plural

# Moved, parsed: below, starting processes takes longer.
_WORTH_WORKERS_BYTES = {False: 4 << 30, True: 128 << 20}
ShuffleResult = BuildResult[DocumentsManifest]


def run(cfg: ShuffleConfig, *, arguments: Sequence[str] = (), progress: ProgressCallback, say: Say) -> ShuffleResult:
    """Write the documents of ``cfg.dataset`` in random order.

    Raises:
        ConfigError: options that do not go together, or a folder made with other ones.
        DataError: the files cannot be read or hold no documents.
        AutomodelError: the disk is or would be full, or another process writes to the folder.
    """
    build = _prepare(cfg, progress, say)
    if not build.output.has_job:
        _check_space(build)
    return build.run(elsewhere(cfg, open_job, build, num_workers=cfg.num_workers, arguments=arguments))


def open_job(cfg: ShuffleConfig, *, progress: ProgressCallback = silent, say: Say = silent) -> Job:
    """The same in tasks, as each process that does some of them opens it.

    Raises:
        AutomodelError: as :func:`run`; or there is no such job.
    """
    return _prepare(cfg, progress, say).job()


@dataclass(kw_only=True)
class _Shuffle(Build[ShuffleConfig, DocumentsManifest]):
    """Files of documents in a folder of their own."""

    source: FileSource
    output: DocumentsOutput
    rows: RowOptions
    size: ExpectedSize

    def options(self) -> dict[str, Any]:
        names = ("document", "keep_columns", "seed", "chunks", "chunk_size", "val_fraction", "val_documents")
        checked = {"dedup": self.cfg.dedup, "check": self.rows.parses, "text_key": self.cfg.text_key}
        asked = {name: getattr(self.cfg, name) for name in names}
        return asked | unusual_reading(self.cfg) | checked | {"name": self.output.name}

    @property
    def bucket_count(self) -> int:
        """How many temporary buckets there will be."""
        return bucket_count(self.size.bytes, self.size.bytes // LIKELY_ROW_BYTES, self.cfg.memory)

    def say_plan(self) -> None:
        """Say what would be read and written, and with how many temporary buckets."""
        cfg, output, say = self.cfg, self.output, self.say
        about = "" if self.size.exact else "about "
        say(f"would read {source_in_words(self.source.describe())}: {about}{self.size.bytes / 1e6:,.1f} MB of rows")
        say(f"would use {self.bucket_count:,} temporary buckets in {output.work_folder}")
        target = f"{output.place}/{chunk_name(output.name, 0)}"
        if cfg.chunk_size:
            target += f" and more of {cfg.chunk_size / 1e6:,.1f} MB each"
        elif cfg.chunks > 1:
            target += f" ... {chunk_name(output.name, cfg.chunks - 1)}"
        say(f"would write {target}")
        if cfg.val_documents or cfg.val_fraction:
            share = f"{cfg.val_documents:,}" if cfg.val_documents else f"{cfg.val_fraction:.2%} of the"
            say(f"would write {share} documents to {val_name(output.name)}")
        say(f"would read in {plural(max(1, self.num_workers), 'process', 'processes')}")

    def say_forecast(self, elsewhere: Elsewhere | None) -> None:
        if elsewhere is None and self.size.bytes < WORTH_FORECAST_BYTES:
            return
        without = frozenset({"divide", "assemble"}) if elsewhere is None else frozenset()  # one process writes once
        plain = {"val_fraction": None, "val_documents": None, "num_workers": 1}
        found = rehearse(
            self.source,
            RowReader(RowOptions(self.source.options, check=self.cfg.check)),
            lambda sample, folder: open_job(of_sample(self.cfg, sample, folder, **plain)),
            without=without,
        )
        if found is None:
            return
        tasks = {"scatter": len(find_parts(self.source, 1))}
        slots: int | None = max(1, self.num_workers)
        if elsewhere is not None:
            slots = elsewhere.slots
            tasks |= {"duplicates": self.bucket_count, "join": self.bucket_count, "assemble": self.cfg.chunks}
        at_once = None if slots is None else {stage: min(slots, count) for stage, count in tasks.items()}
        for line in in_words(found, frozenset({"scatter"}), at_once, compares=False):
            self.say(line)

    def make(self) -> ShuffleResult:
        """What an interrupted run left goes; of this one no temporary file stays, whatever happens."""
        if self.output.has_job:
            raise ConfigError(
                f"{self.output.folder} holds an unfinished shuffle in tasks, by machines that may be at work",
                "go on with its --runner, or stop them and start over with --overwrite",
            )
        self.output.clear()
        self.output.mark()
        try:
            make_folder(self.output.work_folder, "--temp-dir")
            return self._shuffle()
        finally:
            self.output.tidy()

    def _shuffle(self) -> ShuffleResult:
        cfg, bad_rows = self.cfg, BadRows(self.cfg.strict)
        fields = DIGEST_FIELDS if self.rows.digest else ()
        buckets = Buckets.below(self.output.work_folder, cfg.seed, self.bucket_count, fields)
        amounts = {"memory_bytes": cfg.memory, "num_workers": self.num_workers}
        scatter_all(ScatterTask(buckets, self.rows), self.source, bad_rows, self.progress, **amounts)
        documents, _ = buckets.stored()
        duplicates = None
        if cfg.dedup:
            duplicates = Duplicates(buckets, cfg.memory)
            duplicates.find(lambda rows: self._report("comparing", bad_rows, rows, rows, documents))
        kept, key = documents - (duplicates.count if duplicates else 0), self.amounts.val_below
        below = buckets.count_below(key) - (duplicates.count_below(key) if duplicates else 0)
        division = self.amounts.divide(kept, below, self.source.name, bad_rows)
        writer = DocumentWriter(self.output.folder, self.output.name, division)
        try:
            self._write(buckets, duplicates, writer, bad_rows)
            assert writer.documents == division.val_documents + division.train_documents
            duplicate_count = duplicates.count if duplicates else None
            made = Finished(writer.documents, duplicate_count, bad_rows, tuple(writer.finish()))
            manifest = self._manifest(made)
            writer.publish()
            manifest.write()
        except BaseException:
            writer.abandon()
            raise
        return BuildResult(self.output.folder, manifest, bad_rows=bad_rows.first)

    def _manifest(self, made: Finished) -> DocumentsManifest:
        return DocumentsManifest(
            folder=self.output.folder,
            text_key=self.cfg.text_key,
            documents=made.documents,
            duplicates=made.duplicates,
            bad_rows=made.bad_rows.count,
            files=made.files,
            versions={"automodel": __version__},
            **self.made(),
        )

    def job(self) -> Job:
        """The run in stages of tasks, for runners."""
        from automodel_cli.corpus.shuffle.shuffle_job import ShuffleJob, ShuffleRequest  # a run here needs neither

        cfg = self.cfg
        request = ShuffleRequest(
            made=self.made(),
            seed=cfg.seed,
            rows=self.rows,
            fields=DIGEST_FIELDS if self.rows.digest else (),
            amounts=self.amounts,
            memory_bytes=cfg.memory,
            strict=cfg.strict,
            bucket_count=self.bucket_count,
            digest_ranges=digest_range_count(self.size.bytes // LIKELY_ROW_BYTES, cfg.memory) if cfg.dedup else 0,
        )
        return ShuffleJob(
            self.source,
            self.output,
            request,
            check_room=lambda: _check_space(self, in_stages=True),
            manifest_of=self._manifest,
            result_of=lambda manifest, bad_rows: BuildResult(self.output.folder, manifest, bad_rows=bad_rows.first),
        )

    @property
    def amounts(self) -> Amounts:
        """How many documents were asked for."""
        cfg = self.cfg
        return Amounts(cfg.val_documents, cfg.val_fraction, cfg.chunks, cfg.chunk_size)

    def _report(self, phase: str, bad_rows: BadRows, documents: int, done: int, wanted: int) -> None:
        self.progress(Progress(phase, documents, 0, done, bad_rows.count, None, wanted))

    def _write(
        self, buckets: Buckets, duplicates: Duplicates | None, writer: DocumentWriter, bad_rows: BadRows
    ) -> None:
        """All rows in the order of their keys; each bucket goes when it was read."""
        _, wanted = buckets.stored()
        done = 0
        reader = BucketReader(buckets, self.cfg.memory, dropped=duplicates.dropped if duplicates else None)
        for rows in reader.read():
            writer.feed(rows.data, rows.records["length"].astype("int64"))
            done += len(rows.data)
            self._report("joining", bad_rows, writer.documents, done, wanted)


# ------------------------------------------------------------------------------------------ preparing


def _prepare(cfg: ShuffleConfig, progress: ProgressCallback, say: Say) -> _Shuffle:
    if not is_local(cfg.dataset):
        raise DataError(
            f"there is no file or folder {cfg.dataset}",
            f"to shuffle a dataset of the Hub, download it first: "
            f"hf download {cfg.dataset} --repo-type dataset --local-dir FOLDER",
        )
    source = FileSource(cfg.dataset, read_options(cfg, cfg.text_key))
    if source.note:
        say(source.note)
    source.options = read = replace(source.options, carried=carried_columns(source, cfg.keep_columns, cfg.text_key))
    rows = RowOptions(read, check=cfg.check, digest=cfg.dedup)
    place = Place.of(cfg.output_dir or f"{source.name}_shuffled", temp_dir=cfg.temp_dir)
    output = DocumentsOutput(place.folder, cfg.name or source.name, cfg.temp_dir)
    output.mirror = place.mirror
    refuse_overlap(output.place, cfg.dataset, source)
    job = _Shuffle(
        cfg=cfg,
        source=source,
        output=output,
        num_workers=1,
        progress=progress,
        say=say,
        rows=rows,
        size=expected_size(source.files, read),
    )
    job.num_workers = _workers(job)
    return job


def _workers(job: _Shuffle) -> int:
    if job.cfg.num_workers is not None:
        return job.cfg.num_workers
    rendered = any(file.kind != "jsonl" for file in job.source.files)
    parses = job.rows.parses or rendered
    return cores() if job.size.bytes >= _WORTH_WORKERS_BYTES[parses] else 1


def _check_space(job: _Shuffle, *, in_stages: bool = False) -> None:
    """The buckets go one by one as the output grows, so in one place both take little more than one of them.

    In stages they go when all are joined, and what was joined when the output is whole.
    """
    needs: dict[int, list[Any]] = {}
    work = 0.05 + 0.05 * job.cfg.dedup + (1 + bool(job.cfg.temp_dir) if in_stages else bool(job.cfg.temp_dir))
    shares = {job.output.folder: 1.0, job.output.work_folder: work}
    for folder, share in shares.items():
        existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        need = needs.setdefault(existing.stat().st_dev, [existing, 0.0])
        need[1] += share * job.size.bytes
    for existing, need in needs.values():
        free = shutil.disk_usage(existing).free
        if need * (1.0 if job.size.exact else 0.7) > free:
            raise AutomodelError(
                f"shuffling needs {binary_size(need)} at {existing}, {binary_size(free)} are free",
                "free some space, or choose another --output-dir or --temp-dir",
            )
        if need > free:
            job.say(f"this may not fit: about {binary_size(need)} at {existing}, {binary_size(free)} free")
