"""A corpus without its duplicates: what happens in order.

1. the work is said before it begins: documents, bands, memory and disk it takes
2. stage by stage (``corpus.dedup``) the tasks are run, in this process or in several; an interrupted run is continued
3. files get their names, report and manifest are written, temporary files go

Killed at any point, the same command goes on and ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from automodel_cli.assembly.runners import elsewhere
from automodel_cli.config.schema.dedup import DedupConfig
from automodel_cli.config.schema.preprocess import of_sample, unusual_reading
from automodel_cli.corpus.build.disk_space import ExpectedSize, expected_size, free_bytes
from automodel_cli.corpus.build.forecast import WORTH_FORECAST_BYTES
from automodel_cli.corpus.build.mirror import Place
from automodel_cli.corpus.build.pipeline import NoText
from automodel_cli.corpus.build.rehearsal import in_words, rehearse
from automodel_cli.corpus.build.run import Build, Elsewhere, ProgressCallback, Say, silent
from automodel_cli.corpus.dedup.job import DedupJob, DedupResult
from automodel_cli.corpus.dedup.minhash import Banding, check_library, choose_banding
from automodel_cli.corpus.dedup.output import DedupOutput
from automodel_cli.corpus.dedup.plan import DedupSpec, Near, likely_documents, work_bytes
from automodel_cli.corpus.dedup.report import near_options
from automodel_cli.corpus.dedup.shingles import Shingling
from automodel_cli.corpus.documents.document_input import carried_columns, refuse_overlap
from automodel_cli.corpus.documents.listing import is_local
from automodel_cli.corpus.documents.source import FileSource, read_options, source_in_words
from automodel_cli.corpus.filters.language import PACKAGE, known_languages, package_version
from automodel_cli.corpus.filters.rules import FilterRules, with_preset
from automodel_cli.corpus.jobs.job import Job
from automodel_cli.corpus.jobs.local import LocalRunner
from automodel_cli.corpus.shuffle.document_files import chunk_name
from automodel_cli.corpus.shuffle.document_folder import DocumentsManifest
from automodel_cli.corpus.shuffle.rows import RowOptions, RowReader
from automodel_cli.errors import AutomodelError, ConfigError, DataError
from automodel_cli.processes import cores
from automodel_cli.text import binary_size, plural

_WORTH_WORKERS_BYTES = 16 << 20  # below, starting processes takes longer


def run(cfg: DedupConfig, *, arguments: Sequence[str] = (), progress: ProgressCallback, say: Say) -> DedupResult:
    """Write the documents of ``cfg.dataset`` that repeat no earlier one.

    Args:
        arguments: the command line without the program, for runners that start it elsewhere.

    Raises:
        ConfigError: options that do not go together, a folder made with other ones, or a missing package.
        DataError: the files cannot be read or hold no documents.
        AutomodelError: the disk is or would be full, or another process writes to the folder.
    """
    build = _prepare(cfg, progress, say)
    others = elsewhere(cfg, open_job, build, num_workers=cfg.num_workers, arguments=arguments)
    made = build.run(others)
    return made if isinstance(made, DedupResult) else DedupResult(**vars(made))


def open_job(cfg: DedupConfig, *, progress: ProgressCallback = silent, say: Say = silent) -> Job:
    """The run that ``cfg`` describes, for a process that does some of its tasks.

    Raises:
        AutomodelError: as :func:`run`.
    """
    return _opened(cfg)


@dataclass(kw_only=True)
class _Dedup(Build[DedupConfig, DocumentsManifest]):
    """Files of documents in a folder of their own."""

    source: FileSource
    output: DedupOutput
    _job: DedupJob
    size: ExpectedSize

    def options(self) -> dict[str, Any]:
        return self._job.spec.options

    def say_plan(self) -> None:
        """What would be read and written, how, and what it takes."""
        spec, about = self._job.spec, "" if self.size.exact else "about "
        say = self.say
        say(f"would read {source_in_words(self.source.describe())}: {about}{self.size.bytes / 1e6:,.1f} MB of rows")
        for line in work_in_words(spec, self.size):
            say(line)
        cutting = self._job.new_cutting()
        partitions = plural(cutting.exact_partitions, "partition")
        if spec.near is not None:
            partitions += f" of texts and {cutting.near_partitions:,} of bands"
        say(f"would work on {plural(len(cutting.parts), 'part')} and {partitions}")
        say(
            f"would write {self.output.place}/{chunk_name(self.output.name, 0)} and more, of at most "
            f"{spec.chunk_bytes / 1e6:,.1f} MB each"
        )
        if self.cfg.runner == "local":
            say(f"would run {plural(max(1, self.num_workers), 'process', 'processes')}")

    def say_forecast(self, elsewhere: Elsewhere | None) -> None:
        if elsewhere is None and self.size.bytes < WORTH_FORECAST_BYTES:
            return
        rows_of = RowReader(RowOptions(self.source.options, check=True))
        found = rehearse(self.source, rows_of, lambda sample, folder: _opened(of_sample(self.cfg, sample, folder)))
        if found is None:
            return
        cutting, spec = self._job.new_cutting(), self._job.spec
        parts = len(cutting.parts)
        tasks = {"read": parts, "exact": cutting.exact_partitions, "bands": parts, "near": cutting.near_partitions}
        tasks["write"] = -(-self.size.bytes // spec.chunk_bytes)
        slots = max(1, self.num_workers) if elsewhere is None else elsewhere.slots
        at_once = None if slots is None else {stage: min(slots, count) for stage, count in tasks.items()}
        for line in in_words(found, frozenset({"read", "write"}), at_once, compares=spec.near is not None):
            self.say(line)

    def job(self) -> DedupJob:
        """The run in tasks. Before it begins: is all there that it needs, and what does it take?"""
        spec = self._job.spec
        if spec.near is not None:
            check_library()
        if not spec.work.plan.exists():
            for line in work_in_words(spec, self.size):
                self.say(line)
            self._check_space()
        else:
            self.say(f"continuing the interrupted run in {self.output.place}")
        return self._job

    def make(self) -> DedupResult:
        """Go on where an interrupted run stopped."""
        continued = self._job.spec.work.plan.exists()
        job = self.job()
        job.begin()
        self.say_uncut(job, self.num_workers)
        try:
            LocalRunner(self.num_workers, self.progress, self.say).run(job, partial(open_job, self.cfg))
        except NoText:
            self.output.clear()
            raise
        return replace(job.finish(), continued=continued)

    def _check_space(self) -> None:
        needed = work_bytes(self._job.spec, self.size) + self.size.bytes
        free = free_bytes(self.output.folder)
        if needed * (1.0 if self.size.exact else 0.7) > free + self.size.bytes // 2:
            raise AutomodelError(
                f"this needs about {binary_size(needed)} at {self.output.folder}, {binary_size(free)} are free",
                "free some space, or choose another --output-dir",
            )
        if needed > free:
            self.say(
                f"this may not fit: about {binary_size(needed)}, {binary_size(free)} free; the same command goes on"
            )


def work_in_words(spec: DedupSpec, size: ExpectedSize) -> list[str]:
    """What a run does and takes, before it begins."""
    lines = [f"about {likely_documents(size):,} documents in {size.bytes / 1e6:,.1f} MB of rows"]
    if spec.near is not None:
        near, banding = spec.near, spec.near.banding
        chances = ", ".join(f"{banding.probability(x):.1%} at {x:g}" for x in _around(near.threshold))
        lines.append(
            f"near-duplicates from a similarity of {near.threshold:g} on: {banding.hashes} MinHash values of runs of "
            f"{near.shingling.size} {near.shingling.kind}, {banding.bands} bands of {banding.rows}"
        )
        lines.append(f"a pair becomes a candidate with probability {chances}")
    if spec.filters is not None:
        lines.append(f"filters: {', '.join(dict.fromkeys(name.partition(' ')[0] for name in spec.filters.names))}")
    disk = f"up to {binary_size(work_bytes(spec, size))} of temporary files and {binary_size(size.bytes)} of documents"
    lines.append(f"takes {disk}; {binary_size(spec.memory_bytes)} of memory for each process")
    return lines


def _around(threshold: float) -> list[float]:
    return [round(max(0.05, threshold - 0.2), 3), threshold, round(min(1.0, threshold + 0.1), 3)]


# ------------------------------------------------------------------------------------------ preparing


def _prepare(cfg: DedupConfig, progress: ProgressCallback, say: Say) -> _Dedup:
    job = _opened(cfg)
    source = job.source
    if source.note:
        say(source.note)
    size = expected_size(source.files, source.options)
    workers = cfg.num_workers
    if workers is None:
        workers = cores() if size.bytes >= _WORTH_WORKERS_BYTES else 1
    return _Dedup(
        cfg=cfg,
        source=source,
        output=job.output,
        num_workers=workers,
        progress=progress,
        say=say,
        _job=job,
        size=size,
    )


def _opened(cfg: DedupConfig) -> DedupJob:
    if not is_local(cfg.dataset):
        raise DataError(
            f"there is no file or folder {cfg.dataset}",
            f"a dataset of the Hub has to be downloaded first: "
            f"hf download {cfg.dataset} --repo-type dataset --local-dir FOLDER",
        )
    source = FileSource(cfg.dataset, read_options(cfg, cfg.text_key))
    carried = carried_columns(source, cfg.keep_columns, cfg.text_key)
    source.options = replace(source.options, carried=carried)
    place = Place.of(cfg.output_dir or f"{source.name}_dedup", temp_dir=cfg.temp_dir)
    output = DedupOutput(place.folder, cfg.name or source.name)
    output.mirror = place.mirror
    refuse_overlap(output.place, cfg.dataset, source)
    near, filters = _near(cfg), _filters(cfg)
    asked = {name: getattr(cfg, name) for name in ("document", "keep_columns", "chunk_size", "exact", "text_key")}
    options = {
        "command": "dedup",
        "name": output.name,
        "near": None if near is None else near_options(near),
        "filters": None if filters is None else asked_filters(filters),
        **asked,
        **unusual_reading(cfg),
    }
    spec = DedupSpec(
        dataset=cfg.dataset,
        read=source.options,
        options=options,
        folder=place.folder,
        name=output.name,
        exact=cfg.exact,
        near=near,
        filters=filters,
        chunk_bytes=cfg.chunk_size,
        memory_bytes=cfg.memory,
        strict=cfg.strict,
    )
    return DedupJob(spec, output)


def _filters(cfg: DedupConfig) -> FilterRules | None:
    given = {field.name: getattr(cfg, field.name) for field in fields(FilterRules)}
    if cfg.languages is None:
        del given["min_language_score"]
    elif unknown := [code for code in cfg.languages if code not in known_languages()]:
        known = ", ".join(sorted(known_languages()))
        raise ConfigError(f"--languages {unknown[0]} is not one of {PACKAGE}'s languages", f"it knows {known}")
    rules = with_preset(cfg.filters, given)
    if rules is not None and (wrong := rules.contradiction()) is not None:
        raise ConfigError(wrong, f"one of them is --filters {cfg.filters}'s: give both")
    return rules


def asked_filters(rules: FilterRules) -> dict[str, Any]:
    """The limits, for manifests: with the version of the package whose model finds languages."""
    named = {PACKAGE: package_version()} if rules.languages is not None else {}
    asked = {key: list(value) if isinstance(value, tuple) else value for key, value in rules.asked().items()}
    return asked | named


def _near(cfg: DedupConfig) -> Near | None:
    if cfg.near is None:
        return None
    if cfg.bands is not None and cfg.rows is not None:
        banding = Banding(cfg.bands, cfg.rows)
    else:
        banding = choose_banding(cfg.near, cfg.hashes, cfg.recall)
    return Near(
        threshold=cfg.near,
        shingling=Shingling(cfg.shingle, cfg.shingle_size),
        banding=banding,
        verification=cfg.verify,
    )
