"""Documents in random order, what happens in order:

1. the files are listed, their size and the disk space that is needed are worked out
2. the output folder is locked; a finished one is left alone, what an interrupted run left is removed
3. every row goes to its bucket on disk (``scatter``), in several processes where that pays
4. with dedup: rows whose text came before are found by their hashes (``duplicates``)
5. the buckets are sorted one by one and written, validation first (``buckets``, ``document_files``)
6. the files get their names, then the manifest is written; temporary files go, also after an error

Killed at any point, the same command starts over and ends with the same bytes.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import xxhash

from automodel_cli.config.schema.preprocess import unusual_reading
from automodel_cli.config.schema.shuffle import ShuffleConfig
from automodel_cli.corpus.build.disk_space import ExpectedSize, expected_size
from automodel_cli.corpus.build.pipeline import BadRows, Progress
from automodel_cli.corpus.documents.listing import is_local
from automodel_cli.corpus.documents.source import FileSource, source_in_words, unescape
from automodel_cli.corpus.documents.units import ReadOptions
from automodel_cli.corpus.shuffle.buckets import BUCKET_FILES, WORK_FILES, BucketReader, Buckets, bucket_count
from automodel_cli.corpus.shuffle.document_files import Division, DocumentWriter, chunk_name, val_name
from automodel_cli.corpus.shuffle.document_folder import (
    LOCK_NAME,
    WORK_NAME,
    DocumentsManifest,
    finished_documents,
    prepare,
    remove_work,
    write_documents_manifest,
)
from automodel_cli.corpus.shuffle.duplicates import Duplicates
from automodel_cli.corpus.shuffle.rows import RowOptions
from automodel_cli.corpus.shuffle.scatter import (
    DIGEST_FIELDS,
    LIKELY_ROW_BYTES,
    ScatterTask,
    scattering,
)
from automodel_cli.errors import AutomodelError, ConfigError, DataError
from automodel_cli.files import disk_errors_named, exclusive_lock, make_folder, remove_known
from automodel_cli.processes import cores
from automodel_cli.text import plural

# Moved, parsed: below, starting processes takes longer.
_WORTH_WORKERS_BYTES = {False: 4 << 30, True: 128 << 20}
ProgressCallback = Callable[[Progress], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class ShuffleResult:
    """What a run left behind; ``manifest`` is None after a dry run."""

    folder: Path
    manifest: DocumentsManifest | None
    already_complete: bool = False
    bad_rows: list[str] = field(default_factory=list)


@dataclass
class _Job:
    """Everything that is settled before the first row."""

    cfg: ShuffleConfig
    source: FileSource
    rows: RowOptions
    size: ExpectedSize
    folder: Path
    name: str
    num_workers: int

    @property
    def work_folder(self) -> Path:
        """For temporary files; always the same for an output folder, so that a later run finds what was left."""
        if self.cfg.temp_dir is None:
            return self.folder / WORK_NAME
        mark = xxhash.xxh3_64_hexdigest(str(self.folder.resolve()).encode())
        return Path(self.cfg.temp_dir) / f".automodel-shuffle-{mark}"

    def options(self) -> dict[str, Any]:
        """What decides the bytes, besides the source."""
        names = ("document", "keep_columns", "seed", "chunks", "chunk_size", "val_fraction", "val_documents")
        checked = {"dedup": self.cfg.dedup, "check": self.rows.parses, "text_key": self.cfg.text_key}
        asked = {name: getattr(self.cfg, name) for name in names}
        return asked | unusual_reading(self.cfg) | checked | {"name": self.name}


def run(cfg: ShuffleConfig, *, progress: ProgressCallback, say: Say) -> ShuffleResult:
    """Write the documents of ``cfg.dataset`` in random order.

    Raises:
        ConfigError: options that do not go together, or a folder made with other ones.
        DataError: the files cannot be read or hold no documents.
        AutomodelError: the disk is or would be full, or another process writes to the folder.
    """
    job = _prepare(cfg, say)
    if cfg.dry_run:
        _say_plan(job, say)
        return ShuffleResult(job.folder, None)
    make_folder(job.folder)
    busy = f"another process is writing to {job.folder}"
    with exclusive_lock(job.folder / LOCK_NAME, busy=busy):
        if not cfg.overwrite:
            finished = finished_documents(job.folder, job.options(), job.source.describe())
            if finished is not None:
                remove_work(job.folder)  # killed after the manifest
                say(f"{job.folder} is already complete: nothing to do")
                return ShuffleResult(job.folder, finished, already_complete=True)
        prepare(job.folder, job.name, overwrite=cfg.overwrite)
        with _work_folder(job) as folder:
            return _shuffle(job, folder, progress)


# ------------------------------------------------------------------------------------------ preparing


def _prepare(cfg: ShuffleConfig, say: Say) -> _Job:
    if not is_local(cfg.dataset):
        raise DataError(
            f"there is no file or folder {cfg.dataset}",
            f"to shuffle a dataset of the Hub, download it first: "
            f"hf download {cfg.dataset} --repo-type dataset --local-dir FOLDER",
        )
    read = ReadOptions(
        cfg.text_key,
        unescape(cfg.document),
        input_format=cfg.input_format,
        max_document_bytes=cfg.max_document_bytes,
    )
    source = FileSource(cfg.dataset, read)
    if source.note:
        say(source.note)
    source.options = read = replace(read, carried=_carried(cfg, source))
    rows = RowOptions(read, check=cfg.check, digest=cfg.dedup)
    folder = Path(cfg.output_dir or f"{source.name}_shuffled")
    _refuse_overlap(folder, Path(cfg.dataset), source)
    size = expected_size(source.files, read)
    job = _Job(cfg, source, rows, size, folder, cfg.name or source.name, 1)
    job.num_workers = _workers(job)
    _check_space(job, say)
    return job


def _carried(cfg: ShuffleConfig, source: FileSource) -> tuple[str, ...]:
    """The columns of parquet files to keep."""
    parquet = [file for file in source.files if file.kind == "parquet"]
    if not cfg.keep_columns or not parquet:
        return ()
    if cfg.keep_columns != ["all"]:
        return tuple(cfg.keep_columns)
    from automodel_cli.corpus.documents import columns  # pyarrow.parquet, which other files do not need

    names = columns.column_names(parquet[0].path, parquet[0].name)
    return tuple(name for name in names if name != cfg.text_key)


def _refuse_overlap(folder: Path, dataset: Path, source: FileSource) -> None:
    """What is written must not be read as input, now or by the next run."""
    inside = folder.resolve()
    for file in source.files:
        if inside in Path(file.path).resolve().parents:
            raise ConfigError(
                f"the input {file.path} lies in the output folder {folder}", "use another --output-dir"
            )
    if dataset.is_dir() and dataset.resolve() in inside.parents:
        raise ConfigError(
            f"the output folder {folder} lies in the input folder {dataset}: the next run would read it",
            "use another --output-dir, or name the input files with a glob",
        )


def _workers(job: _Job) -> int:
    if job.cfg.num_workers is not None:
        return job.cfg.num_workers
    rendered = any(file.kind != "jsonl" for file in job.source.files)
    parses = job.rows.parses or rendered
    return cores() if job.size.bytes >= _WORTH_WORKERS_BYTES[parses] else 1


def _check_space(job: _Job, say: Say) -> None:
    """The buckets go one by one as the output grows, so in one place both take little more than one of them."""
    needs: dict[int, list[Any]] = {}
    shares = {job.folder: 1.0, job.work_folder: 0.05 + 0.05 * job.cfg.dedup + bool(job.cfg.temp_dir)}
    for folder, share in shares.items():
        existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        need = needs.setdefault(existing.stat().st_dev, [existing, 0.0])
        need[1] += share * job.size.bytes
    for existing, need in needs.values():
        free = shutil.disk_usage(existing).free
        if need * (1.0 if job.size.exact else 0.7) > free:
            raise AutomodelError(
                f"shuffling needs {need / 1e9:,.1f} GB at {existing}, {free / 1e9:,.1f} GB are free",
                "free some space, or choose another --output-dir or --temp-dir",
            )
        if need > free:
            say(f"this may not fit: about {need / 1e9:,.1f} GB at {existing}, {free / 1e9:,.1f} GB free")


def _say_plan(job: _Job, say: Say) -> None:
    about = "" if job.size.exact else "about "
    say(f"would read {source_in_words(job.source.describe())}: {about}{job.size.bytes / 1e6:,.1f} MB of rows")
    say(f"would use {_bucket_count(job):,} temporary buckets in {job.work_folder}")
    target = f"{job.folder}/{chunk_name(job.name, 0)}"
    if job.cfg.chunk_size:
        target += f" and more of {job.cfg.chunk_size / 1e6:,.1f} MB each"
    elif job.cfg.chunks > 1:
        target += f" ... {chunk_name(job.name, job.cfg.chunks - 1)}"
    say(f"would write {target}")
    if job.cfg.val_documents or job.cfg.val_fraction:
        share = (
            f"{job.cfg.val_documents:,}" if job.cfg.val_documents else f"{job.cfg.val_fraction:.2%} of the"
        )
        say(f"would write {share} documents to {val_name(job.name)}")
    processes = max(1, job.num_workers)
    say(f"would read in {plural(processes, 'process', 'processes')}")


# ----------------------------------------------------------------------------------------- shuffling


@contextmanager
def _work_folder(job: _Job) -> Iterator[Path]:
    """A folder for the buckets; temporary files are gone afterwards, whatever happened.

    It is a new one each time: a worker that outlives its killed parent by a moment finds no place to write to.
    """
    try:
        make_folder(job.work_folder, "--temp-dir")
        with disk_errors_named(job.work_folder):
            for left in job.work_folder.glob("buckets*"):
                remove_known(left, BUCKET_FILES)
            folder = Path(tempfile.mkdtemp(prefix="buckets-", dir=job.work_folder))
        yield folder
    finally:
        remove_known(job.work_folder, WORK_FILES)
        remove_work(job.folder)


def _bucket_count(job: _Job) -> int:
    return bucket_count(job.size.bytes, job.size.bytes // LIKELY_ROW_BYTES, job.cfg.memory)


def _shuffle(job: _Job, folder: Path, progress: ProgressCallback) -> ShuffleResult:
    fields = DIGEST_FIELDS if job.rows.digest else ()
    buckets = Buckets(folder, job.cfg.seed, _bucket_count(job), fields)
    buckets.create()
    bad_rows = _scatter(job, buckets, progress)
    documents, _ = buckets.stored()
    duplicates = None
    if job.cfg.dedup:
        duplicates = Duplicates(buckets, job.cfg.memory)
        duplicates.find(lambda rows: progress(_event("comparing", bad_rows, rows, rows, documents)))
    division = _divide(job, buckets, duplicates, documents, bad_rows)
    writer = DocumentWriter(job.folder, job.name, division)
    try:
        _write(job, buckets, duplicates, writer, bad_rows, progress)
        assert writer.documents == division.val_documents + division.train_documents
        manifest = DocumentsManifest(
            text_key=job.cfg.text_key,
            documents=writer.documents,
            duplicates=duplicates.count if duplicates else None,
            bad_rows=bad_rows.count,
            files=tuple(writer.finish()),
            source=job.source.describe(),
            options=job.options(),
        )
        writer.publish()
        write_documents_manifest(job.folder, manifest)
    except BaseException:
        writer.abandon()
        raise
    return ShuffleResult(job.folder, manifest, bad_rows=bad_rows.first)


def _event(phase: str, bad_rows: BadRows, documents: int, done: int, wanted: int) -> Progress:
    return Progress(phase, documents, 0, done, bad_rows.count, None, wanted)


def _scatter(job: _Job, buckets: Buckets, progress: ProgressCallback) -> BadRows:
    """All rows into buckets."""
    bad_rows = BadRows(job.cfg.strict)
    task = ScatterTask(buckets, job.rows)
    done = documents = 0
    amounts = {"memory_bytes": job.cfg.memory, "num_workers": job.num_workers}
    with scattering(task, job.source, **amounts) as scattered:
        for unit, found in scattered:
            bad_rows.add(unit, unit.first_row, found.bad)
            done += unit.size
            documents += found.documents
            progress(Progress("scattering", documents, 0, done, bad_rows.count, through=unit.through))
    return bad_rows


def _divide(
    job: _Job, buckets: Buckets, duplicates: Duplicates | None, documents: int, bad_rows: BadRows
) -> Division:
    """How many documents go where. Those with the smallest keys validate, so the splits cannot overlap."""
    cfg = job.cfg
    kept = documents - (duplicates.count if duplicates else 0)
    if kept == 0:
        raise DataError(
            f"{job.source.name} holds no documents ({bad_rows.in_words()})",
            "check --dataset, --text-key and --document",
        )
    val = cfg.val_documents or 0
    if cfg.val_fraction is not None:
        below = int(cfg.val_fraction * 2**64)
        val = buckets.count_below(below) - (duplicates.count_below(below) if duplicates else 0)
    train = kept - val
    if train < cfg.chunks or (cfg.val_fraction is not None and val == 0):
        raise DataError(
            f"{kept:,} documents are too few for {cfg.chunks:,} chunks"
            + (f" and {val:,} documents of validation" if cfg.val_documents or cfg.val_fraction else ""),
            "ask for fewer chunks, another amount for validation, or another seed",
        )
    return Division(val, train, cfg.chunks, cfg.chunk_size)


def _write(
    job: _Job,
    buckets: Buckets,
    duplicates: Duplicates | None,
    writer: DocumentWriter,
    bad_rows: BadRows,
    progress: ProgressCallback,
) -> None:
    """All rows in the order of their keys; each bucket goes when it was read."""
    _, wanted = buckets.stored()
    done = 0
    reader = BucketReader(buckets, job.cfg.memory, dropped=duplicates.dropped if duplicates else None)
    for rows in reader.read():
        writer.feed(rows.data, rows.records["length"].astype("int64"))
        done += len(rows.data)
        progress(_event("joining", bad_rows, writer.documents, done, wanted))
