"""Text to Megatron-Core's token files, what happens in order:

1. the sources and the tokenizer are opened; the disk space is estimated
2. the prefix is locked; finished files are left alone, an interrupted run is continued
3. with ``--shuffle`` all documents are scattered to disk, to be read back in random order
4. tokens stream through the pipeline into pairs of files, one for each input file and key
5. with ``--shards`` everything is in one long pair a key by then, which is divided
6. the manifest is written last, and the journal goes

Interrupted at any point, the same command goes on and ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from automodel_cli.config.schema_megatron import PreprocessMegatronConfig
from automodel_cli.config.schema_preprocess import unusual_reading
from automodel_cli.corpus.disk_space import check_room, estimate, free_bytes
from automodel_cli.corpus.documents import FileSource, Source, open_source, source_in_words, unescape
from automodel_cli.corpus.engines import EngineMismatch, Sampled
from automodel_cli.corpus.journal import Position
from automodel_cli.corpus.megatron_bin import token_dtype
from automodel_cli.corpus.megatron_divide import divide
from automodel_cli.corpus.megatron_manifest import MegatronManifest
from automodel_cli.corpus.megatron_output import MegatronOutput
from automodel_cli.corpus.megatron_sink import MegatronLayout, MegatronSink, Pair
from automodel_cli.corpus.pipeline import BadRows, NoText, Progress, drive, teller, tokenizing
from automodel_cli.corpus.pool import cores, likely_workers
from automodel_cli.corpus.sentences import SentenceRule
from automodel_cli.corpus.shuffled_source import ShuffledSource
from automodel_cli.corpus.tokenize import EncodeTask
from automodel_cli.corpus.tokenizer import Tokenizer, open_tokenizer
from automodel_cli.corpus.units import ReadOptions
from automodel_cli.errors import ConfigError
from automodel_cli.files import exclusive_lock, make_folder

ProgressCallback = Callable[[Progress], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class MegatronResult:
    """What a run left behind; ``manifest`` is None after a dry run."""

    folder: Path
    manifest: MegatronManifest | None
    engine: str = ""
    already_complete: bool = False
    continued: bool = False
    bad_rows: list[str] = field(default_factory=list)


@dataclass
class _Job:
    """Everything that is settled before the first token."""

    cfg: PreprocessMegatronConfig
    source: Source
    tokenizer: Tokenizer
    output: MegatronOutput
    task: EncodeTask
    num_workers: int
    engine: str
    shuffled: ShuffledSource | None = None

    @property
    def documents(self) -> Source:
        """The source in the order in which it is written."""
        return self.source if self.shuffled is None else self.shuffled

    @property
    def layout(self) -> MegatronLayout:
        """Of what the pipeline writes: the pairs themselves, or the long ones to divide."""
        return self.output.spool if self.cfg.shards else self.output.layout

    def options(self) -> dict[str, Any]:
        """What decides the bytes, besides source and tokenizer."""
        cfg, layout = self.cfg, self.output.layout
        names = (
            "append_eod",
            "document",
            "max_tokens",
            "shard_tokens",
            "shards",
            "skip_empty",
            "special_tokens",
        )
        sentences = self.task.sentences
        return (
            {name: getattr(cfg, name) for name in names}
            | unusual_reading(cfg)
            | {
                "keys": list(layout.keys),
                "level": layout.level,
                "parts": layout.parts,
                "added_ids": list(self.tokenizer.added_ids()) if cfg.add_special_tokens else [[], []],
                "seed": cfg.seed if cfg.shuffle else None,
                "shuffle": cfg.shuffle,
                "lang": sentences and sentences.language,
                "keep_newlines": sentences and sentences.keep_newlines,
            }
        )

    def plan(self) -> dict[str, Any]:
        """What an interrupted run must have in common with this one."""
        source = {**self.source.describe(), "identity": self.source.identity()}
        return {"options": self.options(), "source": source, "tokenizer": self.tokenizer.describe()}


def run(cfg: PreprocessMegatronConfig, *, progress: ProgressCallback, say: Say) -> MegatronResult:
    """Make the files that ``cfg`` describes.

    Raises:
        ConfigError: options that do not go together, or files made with other ones.
        DataError: the source cannot be read or holds no text; files are damaged.
        AutomodelError: the disk is full, or another process writes with this prefix.
    """
    job = _prepare(cfg, say)
    if cfg.dry_run:
        _say_plan(job, say)
        return MegatronResult(job.output.folder, None, job.engine)
    make_folder(job.output.folder, "--output-prefix or --output-path")
    busy = f"another process is writing {job.output.layout.name} to {job.output.folder}"
    with exclusive_lock(job.output.lock_path, busy=busy):
        if not cfg.overwrite:
            finished = job.output.finished(job.options(), job.source.describe(), job.tokenizer)
            if finished is not None:
                say(f"{job.output.manifest_path} is already there: nothing to do")
                return MegatronResult(job.output.folder, finished, job.engine, already_complete=True)
        job.output.refuse_strangers(job.tokenizer)
        if cfg.overwrite:
            job.output.clear()
        return _write(job, progress, say)


# ------------------------------------------------------------------------------------------ preparing


def _prepare(cfg: PreprocessMegatronConfig, say: Say) -> _Job:
    source = _open_source(cfg)
    if source.note:
        say(source.note)
    tokenizer = open_tokenizer(cfg.tokenizer)
    engine = tokenizer.use_engine(cfg.engine)
    if tokenizer.note:
        say(tokenizer.note)
    say(f"tokenizer {tokenizer.name}: {tokenizer.vocab_size:,} ids, encoded by {engine}")
    if cfg.append_eod and tokenizer.eot_id is None:
        raise ConfigError(
            f"tokenizer {tokenizer.name!r} names no end-of-text token to append",
            "name one as eos_token in its tokenizer_config.json, or leave --append-eod out",
        )
    output = MegatronOutput(_layout(cfg, source, tokenizer))
    if isinstance(source, FileSource):
        # A document in pieces must not be placed, or parsed, by its first piece.
        whole = cfg.shard_tokens or cfg.special_tokens == "parse" or cfg.split_sentences or cfg.shuffle
        source.cut_huge_texts = tokenizer.cuts_at_spaces and not whole
    before, after = tokenizer.added_ids() if cfg.add_special_tokens else ([], [])
    task = EncodeTask(
        output.tokenizer_folder,
        "fast" if isinstance(tokenizer.engine, Sampled) else "reference",
        source.options,
        output.layout.dtype.str,
        before=tuple(before),
        after=tuple(after),
        end=(tokenizer.eot_id,) if cfg.append_eod and tokenizer.eot_id is not None else (),
        special_tokens=cfg.special_tokens,
        sentences=SentenceRule(cfg.lang, cfg.keep_newlines) if cfg.split_sentences else None,
    )
    if task.sentences is not None:
        task.sentences.splitter()  # what is missing is said now, by one process
    job = _Job(cfg, source, tokenizer, output, task, _workers(cfg, source), engine)
    if cfg.shuffle:
        assert isinstance(source, FileSource)
        amounts = {"memory_bytes": cfg.shuffle_memory, "num_workers": job.num_workers}
        job.shuffled = ShuffledSource(source, output.shuffle_folder, seed=cfg.seed, **amounts)
    return job


def _open_source(cfg: PreprocessMegatronConfig) -> Source:
    keys = cfg.json_keys
    options = ReadOptions(
        keys[0],
        unescape(cfg.document),
        more_keys=tuple(keys[1:]),
        lists=True,
        input_format=cfg.input_format,
        max_document_bytes=cfg.max_document_bytes,
    )
    source: Source
    if cfg.input is None:
        assert cfg.dataset is not None
        source = open_source(cfg.dataset, set_name=cfg.set_name, split=cfg.split, options=options)
    else:
        source = FileSource(cfg.input, options)
    files = source.files if isinstance(source, FileSource) else []
    texts = [file.name for file in files if file.kind == "text"]
    if texts and len(keys) > 1:
        raise ConfigError(
            f"{texts[0]} is a text file: it has no keys {', '.join(keys)}", "give one --json-keys"
        )
    return source


def _layout(cfg: PreprocessMegatronConfig, source: Source, tokenizer: Tokenizer) -> MegatronLayout:
    prefix = Path(cfg.output_prefix)
    one = not isinstance(source, FileSource) or source.documents_are_files or cfg.shuffle or cfg.shards
    return MegatronLayout(
        folder=prefix.parent if cfg.output_path is None else Path(cfg.output_path),
        name=prefix.name,
        keys=tuple(cfg.json_keys),
        level="sentence" if cfg.split_sentences else "document",
        dtype=token_dtype(tokenizer.vocab_size),
        parts="tokens" if cfg.shard_tokens else ("one" if one else "file"),
        part_tokens=cfg.shard_tokens,
        skip_empty=cfg.skip_empty,
    )


def _workers(cfg: PreprocessMegatronConfig, source: Source) -> int:
    """As many as asked for, but no more than there are cores: each costs half a second to start and then competes."""
    if cfg.workers is not None:
        return min(cfg.workers, cores())
    return likely_workers([source.total_bytes, cfg.max_tokens and 4 * cfg.max_tokens])


def _estimate(job: _Job) -> Any:
    cfg, layout = job.cfg, job.output.layout
    max_tokens = None if cfg.max_tokens is None else cfg.max_tokens * len(layout.keys)
    return estimate(
        job.source,
        job.task.open(job.tokenizer),
        itemsize=layout.dtype.itemsize,
        max_tokens=max_tokens,
        copies=2 if cfg.shards else 1,
        keeps_text=cfg.shuffle,
    )


def _say_plan(job: _Job, say: Say) -> None:
    layout, cfg = job.output.layout, job.cfg
    say(f"would read {source_in_words(job.source.describe())}")
    needed = _estimate(job)
    amount = f"exactly {cfg.max_tokens:,} tokens" if cfg.max_tokens else "all tokens"
    if needed is not None:
        amount += f" (about {needed.tokens:,}, {needed.bytes / 1e9:,.2f} GB"
        amount += f"; {free_bytes(layout.folder) / 1e9:,.2f} GB free)"
    first = layout.prefix(0, layout.keys[0])
    eod = f"end-of-document {job.tokenizer.eot_id}" if cfg.append_eod else "no end-of-document"
    order = f", in random order (seed {cfg.seed})" if cfg.shuffle else ""
    say(f"would write {amount} as {layout.dtype.name}, {eod}{order}")
    files = _sources_of_parts(job)
    for part, name in enumerate((files or [])[:3]):
        prefixes = ", ".join(layout.prefix(part, key).name for key in layout.keys)
        say(f"would make {prefixes} from {name}")
    if files is None:
        amount = "one pair"
        if cfg.shards or cfg.shard_tokens:
            amount = f"{cfg.shards} pairs" if cfg.shards else f"pairs of at most {cfg.shard_tokens:,} tokens"
        say(f"would make {amount} for each of {', '.join(layout.keys)}, from {first}.bin on")
    elif len(files) > 3:
        say(f"... up to number {len(files) - 1}")
    say(f"would use {max(1, job.num_workers)} processes to tokenize")


# -------------------------------------------------------------------------------------------- writing


def _write(job: _Job, progress: ProgressCallback, say: Say) -> MegatronResult:
    position = job.output.interrupted_position(job.plan(), say)
    continued = position is not None
    if not continued and (warning := check_room(job.output.folder, _estimate(job))):
        say(warning)
    brought = not continued and job.output.tokenizer_folder.is_dir()
    try:
        bad_rows = _run_phases(job, position or Position(), progress, say)
    except EngineMismatch as error:
        say(f"{error}: starting over with the reference engine, which is slower and right")
        job.output.clear(keep_tokenizer=brought)
        job.engine = job.tokenizer.use_engine("reference")
        job.task = replace(job.task, engine="reference")
        continued = False
        bad_rows = _run_phases(job, Position(), progress, say)
    except NoText:
        job.output.clear(keep_tokenizer=brought)
        raise
    manifest = job.output.finished(job.options(), job.source.describe(), job.tokenizer)
    assert manifest is not None
    return MegatronResult(
        job.output.folder, manifest, job.engine, continued=continued, bad_rows=bad_rows.first
    )


def _run_phases(job: _Job, position: Position, progress: ProgressCallback, say: Say) -> BadRows:
    bad_rows = BadRows(job.cfg.strict, position.bad["count"], list(position.bad["first"]))
    if position.cursor is None:
        position = Position("gather" if job.cfg.shuffle else "write")
        job.output.write_progress(job.plan(), position)
    job.tokenizer.save(job.output.tokenizer_folder)
    if position.phase == "gather":
        _gather(job, bad_rows, progress)
        position = Position("write", {"key": 0}, bad=_saved(bad_rows))
        job.output.write_progress(job.plan(), position)
    job.layout.folder.mkdir(exist_ok=True)
    if position.phase == "write":
        sink = _write_pairs(job, position, bad_rows, progress, say)
        pairs = sink.pairs
        if job.cfg.shards:
            position = Position("divide", {}, bad=_saved(bad_rows), writer=sink.sync())
            job.output.write_progress(job.plan(), position)
    if job.cfg.shards:
        pairs = _divide(job, progress)
    job.output.publish_manifest(
        pairs,
        tokenizer=job.tokenizer,
        eod_id=job.tokenizer.eot_id if job.cfg.append_eod else None,
        bad_rows=bad_rows.count,
        sources=_sources_of_parts(job),
        source=job.source.describe(),
        options=job.options(),
        tools=job.task.sentences.versions() if job.task.sentences is not None else {},
    )
    return bad_rows


def _gather(job: _Job, bad_rows: BadRows, progress: ProgressCallback) -> None:
    """All documents to disk, for a shuffle."""
    assert job.shuffled is not None
    documents = read_bytes = 0

    def tell(more_documents: int, more_bytes: int) -> None:
        nonlocal documents, read_bytes
        documents, read_bytes = documents + more_documents, read_bytes + more_bytes
        counts = (documents, 0, read_bytes, bad_rows.count)
        progress(Progress("scattering", *counts, bytes_wanted=job.source.total_bytes))

    try:
        job.shuffled.gather(bad_rows, tell)
    except BaseException:
        job.shuffled.remove()
        raise


def _write_pairs(
    job: _Job, position: Position, bad_rows: BadRows, progress: ProgressCallback, say: Say
) -> MegatronSink:
    plan = job.plan()
    sink = MegatronSink(job.layout, max_tokens=job.cfg.max_tokens, state=position.writer)

    def note(cursor: dict[str, Any], rows: int) -> None:
        job.output.write_progress(plan, Position("write", cursor, rows, _saved(bad_rows), sink.sync()))

    wanted = {"tokens_wanted": job.cfg.max_tokens, "bytes_wanted": job.documents.total_bytes}
    tell = teller("writing", sink, bad_rows, progress, **wanted)
    try:
        units = job.documents.units(position.cursor, job.cfg.chunk_size)
        workers = {"num_workers": job.num_workers, "prefetch": job.cfg.prefetch}
        if not sink.full:
            with tokenizing(job.task, job.tokenizer, **workers) as tokenize:
                drive(tokenize(units), sink, bad_rows, rows=position.rows, note=note, tell=tell)
        _check_amounts(job, sink, sink.close(), bad_rows, say)
    except BaseException:
        sink.abandon()
        raise
    return sink


def _divide(job: _Job, progress: ProgressCallback) -> list[Pair]:
    assert job.cfg.shards is not None
    return divide(
        job.output.spool,
        job.output.layout,
        job.cfg.shards,
        lambda tokens: progress(Progress("dividing", 0, tokens, 0, 0)),
    )


def _saved(bad_rows: BadRows) -> dict[str, Any]:
    return {"count": bad_rows.count, "first": bad_rows.first}


def _sources_of_parts(job: _Job) -> list[str] | None:
    if job.output.layout.parts != "file":
        return None
    assert isinstance(job.source, FileSource)
    return [file.name for file in job.source.files]


def _check_amounts(job: _Job, sink: MegatronSink, pairs: list[Pair], bad_rows: BadRows, say: Say) -> None:
    """No files without tokens, and a word where there is less than was asked for."""
    if not pairs:
        first = f"; first: {bad_rows.first[0]}" if bad_rows.first else ""
        raise NoText(
            f"{job.source.name} holds no text ({bad_rows.count:,} bad rows{first})",
            "check --input or --dataset, and --json-keys",
        )
    if job.cfg.max_tokens and sink.tokens < job.cfg.max_tokens:
        say(f"the source ended at {sink.tokens:,} of the {job.cfg.max_tokens:,} tokens asked for")
    there = {(pair.part, pair.key) for pair in pairs}
    for part, name in enumerate(_sources_of_parts(job) or []) if not sink.full else ():
        for key in job.layout.keys:
            if (part, key) not in there:
                say(f"{name} holds no text in {key!r}: no {job.layout.prefix(part, key).name}")
