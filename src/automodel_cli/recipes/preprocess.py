"""Text to token files, what happens in order:

1. the source and the tokenizer are opened (``char``: the text is read once to find its characters)
2. the output folder is locked; a finished corpus is left alone, an interrupted one is continued
3. tokens stream through the pipeline into shards; with shuffle through buckets first
4. the manifest is written last, and the journal goes

Interrupted at any point, the same command goes on and ends with the same bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from automodel_cli.config.amounts import format_amount
from automodel_cli.config.schema_preprocess import (
    DEFAULT_DATASET,
    DEFAULT_SET_NAME,
    PreprocessNanogptConfig,
    unusual_reading,
)
from automodel_cli.corpus import output_folder
from automodel_cli.corpus.corpus_writer import CorpusLayout, CorpusWriter
from automodel_cli.corpus.documents import FileSource, Source, open_source, source_in_words, unescape
from automodel_cli.corpus.engines import EngineMismatch, Sampled
from automodel_cli.corpus.journal import Position, write_progress
from automodel_cli.corpus.manifest import CorpusManifest, Separator
from automodel_cli.corpus.pipeline import BadRows, Count, NoText, Progress, Sink, drive, teller, tokenising
from automodel_cli.corpus.pool import likely_workers
from automodel_cli.corpus.readers import read_unit
from automodel_cli.corpus.shuffle import ShuffleStore, iter_shuffled
from automodel_cli.corpus.splitting import SplitRule, likely_fraction
from automodel_cli.corpus.tokenise import Eot, Tokeniser, Work
from automodel_cli.corpus.tokenizer import CharTokenizer, Tokenizer, open_tokenizer
from automodel_cli.corpus.tokenizer_base import EngineChoice
from automodel_cli.corpus.units import ReadOptions, TokenChunk, Unit
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.files import exclusive_lock, make_folder

# A source so small is tokenised once more to count it, so that --val-tokens is exact even with few documents.
_COUNTED_BYTES = 32 << 20
ProgressCallback = Callable[[Progress], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class PreprocessResult:
    """What a run left behind; ``manifest`` is None after a dry run."""

    folder: Path
    manifest: CorpusManifest | None
    engine: str = ""
    already_complete: bool = False
    continued: bool = False
    bad_rows: list[str] = field(default_factory=list)


@dataclass
class _Job:
    """Everything that is settled before the first token."""

    cfg: PreprocessNanogptConfig
    source: Source
    tokenizer: Tokenizer
    eot: Eot
    separator: Separator
    layout: CorpusLayout
    rule: SplitRule
    num_workers: int
    engine: str = ""

    @property
    def folder(self) -> Path:
        return self.layout.folder

    def options(self) -> dict[str, Any]:
        """What decides the bytes, besides source and tokenizer."""
        cfg = self.cfg
        names = ("document", "text_key", "max_tokens", "val_fraction", "val_tokens", "shuffle", "format")
        decides_by_hash = cfg.shuffle or self.rule.rule in ("fraction", "tokens")
        return {
            **{name: getattr(cfg, name) for name in names},
            **unusual_reading(cfg),
            "eot": self.eot,
            "shard_tokens": self.layout.shard_tokens,
            "seed": cfg.seed if decides_by_hash else None,
            # Left out where it is "eos", as in corpora from before there was a choice.
            **({"separator": "bos"} if self.separator == "bos" else {}),
        }

    def plan(self) -> dict[str, Any]:
        """What an interrupted run must have in common with this one."""
        source = {**self.source.describe(), "identity": self.source.identity()}
        return {"options": self.options(), "source": source, "tokenizer": self.tokenizer.describe()}


def run(cfg: PreprocessNanogptConfig, *, progress: ProgressCallback, say: Say) -> PreprocessResult:
    """Make the corpus that ``cfg`` describes.

    Raises:
        ConfigError: options that do not go together, or a folder made with other ones.
        DataError: the source cannot be read or holds no text; the folder is damaged.
        AutomodelError: the disk is full, or another process writes to the folder.
    """
    job = _prepare(cfg, progress, say)
    if cfg.dry_run:
        _say_plan(job, say)
        return PreprocessResult(job.folder, None, job.engine)
    make_folder(job.folder)
    busy = f"another process is writing to {job.folder}"
    with exclusive_lock(job.folder / output_folder.LOCK_NAME, busy=busy):
        if not cfg.overwrite:
            described = job.source.describe()
            finished = output_folder.finished_corpus(job.folder, job.options(), described, job.tokenizer)
            if finished is not None:
                say(f"{job.folder} is already complete: nothing to do")
                return PreprocessResult(job.folder, finished, job.engine, already_complete=True)
        output_folder.refuse_strangers(job.layout, job.tokenizer)
        if cfg.overwrite:
            output_folder.clear(job.folder)
        return _write(job, progress, say)


# ------------------------------------------------------------------------------------------ preparing


def _prepare(cfg: PreprocessNanogptConfig, progress: ProgressCallback, say: Say) -> _Job:
    set_name = cfg.set_name or (DEFAULT_SET_NAME if cfg.dataset == DEFAULT_DATASET else None)
    options = ReadOptions(
        cfg.text_key,
        unescape(cfg.document),
        input_format=cfg.input_format,
        max_document_bytes=cfg.max_document_bytes,
    )
    source = open_source(cfg.dataset, set_name=set_name, split=cfg.split, options=options)
    if source.note:
        say(source.note)
    is_char = cfg.tokenizer == "char"
    characters, count = _read_characters(source, cfg, progress) if is_char else (set(), 0)
    tokenizer = CharTokenizer(characters) if is_char else open_tokenizer(cfg.tokenizer)
    engine = tokenizer.use_engine(cfg.engine)
    if tokenizer.note:
        say(tokenizer.note)
    say(f"tokenizer {tokenizer.name}: {tokenizer.vocab_size:,} ids, encoded by {engine}")
    if isinstance(source, FileSource):
        source.cut_huge_texts = tokenizer.cuts_at_spaces
    layout = CorpusLayout(
        folder=Path(cfg.output_dir or _default_folder(cfg, source.name)),
        layout="raw" if cfg.format == "raw" else "nemo",
        dtype=tokenizer.dtype,
        shard_tokens=cfg.shard_tokens,
    )
    eot, separator = _separation(cfg, tokenizer, layout.folder)
    workers = _workers(cfg, source)
    job = _Job(cfg, source, tokenizer, eot, separator, layout, SplitRule(), workers, engine)
    job.rule = _split_rule(job, count, progress)
    return job


def _default_folder(cfg: PreprocessNanogptConfig, name: str) -> str:
    return f"{name}_max_tokens_{format_amount(cfg.max_tokens)}" if cfg.max_tokens else f"{name}_all_tokens"


def _workers(cfg: PreprocessNanogptConfig, source: Source) -> int:
    if cfg.num_workers is not None:
        return cfg.num_workers
    return likely_workers([source.total_bytes, cfg.max_tokens and 4 * cfg.max_tokens])


def _separation(cfg: PreprocessNanogptConfig, tokenizer: Tokenizer, folder: Path) -> tuple[Eot, Separator]:
    """Where the token between documents stands, and which one it is.

    In .bin files it is before each document, as NeMo's tool puts it: beginning-of-text where the tokenizer has one of
    its own. In raw files it is end-of-text after each document, as in nanoGPT's. Character data has none.
    """
    if cfg.eot == "none" or (cfg.eot is None and isinstance(tokenizer, CharTokenizer)):
        return "none", "eos"
    eot: Eot = cfg.eot or ("append" if cfg.format == "raw" else "prepend")
    separator = cfg.separator or _usual_separator(cfg, tokenizer, eot, folder)
    word, token_id = ("beginning", tokenizer.bos_id) if separator == "bos" else ("end", tokenizer.eot_id)
    if token_id is None:
        raise ConfigError(
            f"tokenizer {tokenizer.name!r} has no {word}-of-text token to {eot}",
            f"name one as {separator}_token in its tokenizer_config.json, or use --eot none",
        )
    return eot, "eos" if token_id == tokenizer.eot_id else separator


def _usual_separator(cfg: PreprocessNanogptConfig, tokenizer: Tokenizer, eot: Eot, folder: Path) -> Separator:
    if eot == "append" or tokenizer.bos_id is None:
        return "eos"
    return "eos" if not cfg.overwrite and output_folder.was_made_with_eos(folder) else "bos"


def _read_characters(
    source: Source, cfg: PreprocessNanogptConfig, progress: ProgressCallback
) -> tuple[set[str], int]:
    """The characters among the first ``max_tokens``, and how many of those there are."""
    characters: set[str] = set()
    count = read_bytes = documents = 0
    for unit in source.units(None, cfg.chunk_size):
        for text in read_unit(unit, source.options).texts:
            text = text if cfg.max_tokens is None else text[: cfg.max_tokens - count]
            characters.update(text)
            count += len(text)
            documents += 1
        read_bytes += unit.size
        progress(Progress("characters", documents, count, read_bytes, 0, cfg.max_tokens, source.total_bytes))
        if cfg.max_tokens is not None and count >= cfg.max_tokens:
            break
    if not characters:
        raise DataError(f"{source.name} holds no text", "check --dataset, --text-key and --document")
    return characters, count


def _split_rule(job: _Job, characters: int, progress: ProgressCallback) -> SplitRule:
    """How validation documents are chosen (contract: by hash; of one document, or of characters, the tail)."""
    cfg = job.cfg
    base = SplitRule(seed=cfg.seed, max_tokens=cfg.max_tokens, val_tokens=cfg.val_tokens or 0)
    if cfg.val_fraction is None and cfg.val_tokens is None:
        return base
    source = job.source
    single = isinstance(source, FileSource) and source.single_document
    if single and cfg.val_fraction is not None and not characters and cfg.max_tokens is None:
        assert isinstance(source, FileSource)
        source.cut_tail(cfg.val_fraction)
        return replace(base, rule="given")
    if single or characters:
        total = _settled_total(job, characters or _count_tokens(job, progress))
        start = int(total * (1 - cfg.val_fraction)) if cfg.val_fraction else total - base.val_tokens
        return replace(base, rule="tail", tail_start=start)
    if cfg.val_fraction is not None:
        return replace(base, rule="fraction", fraction=cfg.val_fraction)
    settled = cfg.max_tokens
    if source.total_bytes is not None and source.total_bytes <= _COUNTED_BYTES:
        settled = _settled_total(job, _count_tokens(job, progress))
    likely = likely_fraction(base.val_tokens, settled or _likely_tokens(job))
    return replace(base, rule="tokens", fraction=likely, total_tokens=settled)


def _settled_total(job: _Job, available: int) -> int:
    """Tokens that there will be: what the source has, up to ``max_tokens``."""
    total = min(available, job.cfg.max_tokens or available)
    if job.cfg.val_tokens and job.cfg.val_tokens >= total:
        raise ConfigError(
            f"val_tokens asks for {job.cfg.val_tokens:,} of {total:,} tokens",
            "ask for fewer, or give more text",
        )
    return total


def _likely_tokens(job: _Job) -> int | None:
    """A guess from the bytes: four to a token, one for bytes and characters."""
    if job.source.total_bytes is None:
        return None
    return job.source.total_bytes // (1 if job.tokenizer.kind in ("byte", "char") else 4)


def _count_tokens(job: _Job, progress: ProgressCallback) -> int:
    """Tokenise once without writing: the tail of a text is only known from its end."""
    count = Count()
    tokenise = Tokeniser(job.tokenizer, job.source.options, job.eot, job.separator)
    chunks = ((unit, tokenise(unit)) for unit in job.source.units(None, job.cfg.chunk_size))
    tell = _teller(job, "counting", count, BadRows(), progress)
    try:
        drive(chunks, count, BadRows(), note=lambda *_: None, tell=tell)
    except EngineMismatch:
        job.engine = job.tokenizer.use_engine("reference")
        job.cfg = job.cfg.model_copy(update={"engine": "reference"})
        return _count_tokens(job, progress)
    return count.tokens


def _separator_in_words(job: _Job) -> str:
    """``end-of-text: prepend``, or with the other token."""
    return f"{'beginning' if job.separator == 'bos' else 'end'}-of-text: {job.eot}"


def _say_plan(job: _Job, say: Say) -> None:
    say(f"would read {source_in_words(job.source.describe())}")
    amount = f"exactly {job.cfg.max_tokens:,} tokens" if job.cfg.max_tokens else "all tokens"
    if not job.cfg.max_tokens and (likely := _likely_tokens(job)):
        amount += f" (about {likely:,})"
    first = job.layout.shard_path("train", 0).name
    say(f"would write {amount} as {job.layout.dtype} to {job.folder}/{first}, {_separator_in_words(job)}")
    if job.rule.rule != "none":
        say(f"would write validation tokens to {job.layout.shard_path('val', 0).name} (by {job.rule.rule})")
    say(f"would use {max(1, job.num_workers)} processes to tokenise")


# -------------------------------------------------------------------------------------------- writing


def _write(job: _Job, progress: ProgressCallback, say: Say) -> PreprocessResult:
    position = output_folder.interrupted_position(job.folder, job.plan(), job.layout, say)
    continued = position is not None
    brought = not continued and (job.folder / output_folder.TOKENIZER_FOLDER).is_dir()
    try:
        bad_rows = _run_phases(job, position or Position(), progress, say)
    except EngineMismatch as error:
        say(f"{error}: starting over with the reference engine, which is slower and right")
        output_folder.clear(job.folder, keep_tokenizer=brought)
        job.cfg = job.cfg.model_copy(update={"engine": "reference"})
        job.engine = job.tokenizer.use_engine("reference")
        continued = False
        bad_rows = _run_phases(job, Position(), progress, say)
    except NoText:
        output_folder.clear(job.folder, keep_tokenizer=brought)
        raise
    manifest = output_folder.finished_corpus(job.folder, job.options(), job.source.describe(), job.tokenizer)
    assert manifest is not None
    return PreprocessResult(job.folder, manifest, job.engine, continued=continued, bad_rows=bad_rows.first)


def _run_phases(job: _Job, position: Position, progress: ProgressCallback, say: Say) -> BadRows:
    bad_rows = BadRows(job.cfg.strict, position.bad["count"], list(position.bad["first"]))
    if position.cursor is None and position.phase == "write":
        position = Position(phase="gather" if job.cfg.shuffle else "write")
        write_progress(job.folder, job.plan(), position)
    job.tokenizer.save(job.folder / output_folder.TOKENIZER_FOLDER)
    if position.phase == "gather":
        _gather(job, bad_rows, progress)
        position = Position(phase="write", cursor={"key": 0}, bad=_saved(bad_rows))
        write_progress(job.folder, job.plan(), position)
    writer = CorpusWriter(job.layout, job.rule, position.writer)
    try:
        with _source_chunks(job, position) as chunks:
            _drive(job, chunks, writer, bad_rows, position, progress)
        _check_amounts(job, writer, bad_rows, say)
        shards = writer.close()
    except BaseException:
        writer.abandon()
        raise
    output_folder.publish_manifest(
        job.layout,
        shards,
        tokenizer=job.tokenizer,
        eot=job.eot,
        separator=job.separator,
        bad_rows=bad_rows.count,
        source=job.source.describe(),
        options=job.options(),
    )
    return bad_rows


def _gather(job: _Job, bad_rows: BadRows, progress: ProgressCallback) -> None:
    """First phase of a shuffle: all documents into buckets."""
    store = ShuffleStore(
        job.folder,
        dtype=job.layout.dtype,
        seed=job.cfg.seed,
        max_tokens=job.cfg.max_tokens,
        likely_tokens=_likely_tokens(job),
        memory_bytes=job.cfg.shuffle_memory,
    )
    try:
        with _chunks(job, job.source.units(None, job.cfg.chunk_size)) as chunks:
            tell = _teller(job, "gathering", store, bad_rows, progress)
            drive(chunks, store, bad_rows, note=lambda *_: None, tell=tell)
        store.close()
    except BaseException:
        store.abandon()
        raise


@contextlib.contextmanager
def _chunks(job: _Job, units: Iterator[Unit]) -> Iterator[Iterator[tuple[Unit, TokenChunk]]]:
    engine: EngineChoice = "fast" if isinstance(job.tokenizer.engine, Sampled) else "reference"
    work = Work(job.folder / "tokenizer", engine, job.source.options, job.eot, job.separator)
    with tokenising(work, job.tokenizer, num_workers=job.num_workers, prefetch=job.cfg.prefetch) as tokenise:
        yield tokenise(units)


@contextlib.contextmanager
def _source_chunks(job: _Job, position: Position) -> Iterator[Iterator[tuple[Unit, TokenChunk]]]:
    """The chunks to write: from the source, or from the buckets of a shuffle."""
    if not job.cfg.shuffle:
        with _chunks(job, job.source.units(position.cursor, job.cfg.chunk_size)) as chunks:
            yield chunks
        return
    first = (position.cursor or {"key": 0})["key"]
    memory_bytes = job.cfg.shuffle_memory
    shuffled = iter_shuffled(job.folder, job.layout.dtype, first=first, memory_bytes=memory_bytes)
    yield ((Unit("rows", "buckets", 0, {"key": key}), chunk) for key, chunk in shuffled)


def _drive(
    job: _Job,
    chunks: Iterator[tuple[Unit, TokenChunk]],
    writer: CorpusWriter,
    bad_rows: BadRows,
    position: Position,
    progress: ProgressCallback,
) -> None:
    plan = job.plan()

    def note(cursor: dict[str, Any], rows: int) -> None:
        here = Position("write", cursor, rows, _saved(bad_rows), writer.sync())
        write_progress(job.folder, plan, here)

    if not writer.full:
        tell = _teller(job, "writing", writer, bad_rows, progress)
        drive(chunks, writer, bad_rows, rows=position.rows, note=note, tell=tell)


def _saved(bad_rows: BadRows) -> dict[str, Any]:
    return {"count": bad_rows.count, "first": bad_rows.first}


def _teller(
    job: _Job, phase: str, sink: Sink, bad_rows: BadRows, progress: ProgressCallback
) -> Callable[[int], None]:
    wanted = {"tokens_wanted": job.cfg.max_tokens, "bytes_wanted": job.source.total_bytes}
    return teller(phase, sink, bad_rows, progress, **wanted)


def _check_amounts(job: _Job, writer: CorpusWriter, bad_rows: BadRows, say: Say) -> None:
    """No corpus without text, no empty split, and a word where there is less than was asked for."""
    train, val = writer.splits["train"], writer.splits["val"]
    if writer.tokens == 0:
        first = f"; first: {bad_rows.first[0]}" if bad_rows.first else ""
        raise NoText(
            f"{job.source.name} holds no text ({bad_rows.count:,} bad rows{first})",
            "check --dataset, --text-key and --document",
        )
    if job.rule.rule != "none" and (val.tokens == 0 or train.tokens == 0):
        empty = "validation" if val.tokens == 0 else "training"
        raise DataError(
            f"no document of {writer.documents:,} fell into the {empty} split",
            "choose another --seed, another --val-fraction, or --val-tokens",
        )
    if job.cfg.max_tokens and writer.tokens < job.cfg.max_tokens:
        say(f"the source ended at {writer.tokens:,} of the {job.cfg.max_tokens:,} tokens asked for")
    if job.cfg.val_tokens and val.tokens < job.cfg.val_tokens:
        say(f"val holds {val.tokens:,} of the {job.cfg.val_tokens:,} tokens asked for: the source ended")
