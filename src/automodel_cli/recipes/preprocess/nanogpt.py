"""Text to nanoGPT-style token files: what is particular to them. The steps of a run are ``corpus.build``'s.

The source and the tokenizer are opened (``char``: the text is read once to find its characters), the rule for
validation is settled (a small or single document is tokenized once more, to count it), and the tokens go into shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from automodel_cli.assembly.runners import elsewhere
from automodel_cli.config.amounts import format_amount
from automodel_cli.config.schema.preprocess import (
    DEFAULT_DATASET,
    DEFAULT_SET_NAME,
    PreprocessNanogptConfig,
    unusual_reading,
)
from automodel_cli.corpus.build.corpus_writer import CorpusLayout, CorpusWriter
from automodel_cli.corpus.build.disk_space import Estimate, Ratios, estimate
from automodel_cli.corpus.build.mirror import Place
from automodel_cli.corpus.build.nanogpt_output import NanogptOutput
from automodel_cli.corpus.build.pipeline import BadRows, NoText, Progress
from automodel_cli.corpus.build.pool import likely_workers
from automodel_cli.corpus.build.run import BuildResult, ProgressCallback, Say, silent
from automodel_cli.corpus.build.token_build import TokenBuild
from automodel_cli.corpus.build.token_output import work_path
from automodel_cli.corpus.build.tokenize import EncodeTask
from automodel_cli.corpus.documents.readers import read_unit
from automodel_cli.corpus.documents.source import (
    FileSource,
    Source,
    open_source,
    read_options,
    source_in_words,
)
from automodel_cli.corpus.formats.manifest import CorpusManifest, Eot, Separator
from automodel_cli.corpus.formats.nanogpt_bin import header_bytes
from automodel_cli.corpus.jobs.job import Job
from automodel_cli.corpus.jobs.planned_file import PlannedFile
from automodel_cli.corpus.jobs.settled import Settled, settled_key
from automodel_cli.corpus.jobs.work_folder import WorkFolder
from automodel_cli.corpus.shuffle.splitting import SplitRule, likely_fraction
from automodel_cli.corpus.tokenizer import CharTokenizer, Tokenizer, open_tokenizer
from automodel_cli.corpus.tokenizers.engines import EngineMismatch
from automodel_cli.errors import ConfigError, DataError

# A source so small is tokenized once more to count it, so that --val-tokens is exact even with few documents.
_COUNTED_BYTES = 32 << 20
PreprocessResult = BuildResult[CorpusManifest]


def run(
    cfg: PreprocessNanogptConfig, *, arguments: Sequence[str] = (), progress: ProgressCallback, say: Say
) -> PreprocessResult:
    """Make the corpus that ``cfg`` describes.

    Raises:
        ConfigError: options that do not go together, or a folder made with other ones.
        DataError: the source cannot be read or holds no text; the folder is damaged.
        AutomodelError: the disk is full, or another process writes to the folder.
    """
    build = _prepare(cfg, progress, say)
    return build.run(elsewhere(cfg, open_job, build, num_workers=cfg.num_workers, arguments=arguments))


def open_job(cfg: PreprocessNanogptConfig, *, progress: ProgressCallback = silent, say: Say = silent) -> Job:
    """The same in tasks, as each process that does some of them opens it.

    Raises:
        AutomodelError: as :func:`run`; or there is no such job.
    """
    return _prepare(cfg, progress, say).job()


@dataclass(kw_only=True)
class _Nanogpt(TokenBuild[PreprocessNanogptConfig, CorpusManifest, CorpusWriter]):
    """A corpus of its own folder: shards of one stream of tokens, and of a second one for validation."""

    output: NanogptOutput
    eot: Eot
    separator: Separator
    rule: SplitRule
    settled: Settled

    def options(self) -> dict[str, Any]:
        """What decides the bytes, for the manifest and for a run that goes on."""
        cfg = self.cfg
        names = ("document", "text_key", "max_tokens", "val_fraction", "val_tokens", "shuffle", "format")
        decides_by_hash = cfg.shuffle or self.rule.rule in ("fraction", "tokens")
        return {
            **{name: getattr(cfg, name) for name in names},
            **unusual_reading(cfg),
            "eot": self.eot,
            "shard_tokens": cfg.shard_tokens,
            "seed": cfg.seed if decides_by_hash else None,
            # Left out where it is "eos", as in corpora from before there was a choice.
            **({"separator": "bos"} if self.separator == "bos" else {}),
            # Versions before took the first of the source's tokens.
            **({"max_tokens_of": "shuffled documents"} if cfg.shuffle and cfg.max_tokens else {}),
        }

    def say_plan(self) -> None:
        cfg, layout, say = self.cfg, self.output.layout, self.say
        say(f"would read {source_in_words(self.source.describe())}")
        amount = f"exactly {cfg.max_tokens:,} tokens" if cfg.max_tokens else "all tokens"
        if not cfg.max_tokens and (likely := self.likely_tokens()):
            amount += f" (about {likely:,})"
        path = layout.shard_path("train", 0)
        separator = f"{'beginning' if self.separator == 'bos' else 'end'}-of-text: {self.eot}"
        say(f"would write {amount} as {layout.dtype} to {self.output.shown(path)}, {separator}")
        if self.rule.rule != "none":
            say(f"would write validation tokens to {layout.shard_path('val', 0).name} (by {self.rule.rule})")

    def estimate(self, *, copies: int = 1, ratios: Ratios | None = None) -> Estimate | None:
        cfg = self.cfg
        return estimate(
            self.source,
            self.task.open(),
            itemsize=self.output.layout.dtype.itemsize,
            max_tokens=cfg.max_tokens,
            copies=copies,
            keeps_text=cfg.shuffle,
            ratios=ratios,
        )

    def likely_tokens(self) -> int | None:
        """A guess from the bytes: four to a token, one for bytes and characters."""
        if self.source.total_bytes is None:
            return None
        return self.source.total_bytes // (1 if self.tokenizer.kind in ("byte", "char") else 4)

    def writer(self, state: dict[str, Any] | None) -> CorpusWriter:
        return CorpusWriter(self.output.layout, self.rule, state)

    def check(self, writer: CorpusWriter, bad_rows: BadRows, say: Say) -> None:
        """No corpus without text, no empty split, and a word where there is less than was asked for."""
        cfg, train, val = self.cfg, writer.splits["train"], writer.splits["val"]
        if writer.tokens == 0:
            raise NoText(
                f"{self.source.name} holds no text ({bad_rows.in_words()})",
                "check --dataset, --text-key and --document",
            )
        if self.rule.rule != "none" and (val.tokens == 0 or train.tokens == 0):
            empty = "validation" if val.tokens == 0 else "training"
            raise DataError(
                f"no document of {writer.documents:,} fell into the {empty} split",
                "choose another --seed, another --val-fraction, or --val-tokens",
            )
        if cfg.max_tokens and writer.tokens < cfg.max_tokens:
            say(f"the source ended at {writer.tokens:,} of the {cfg.max_tokens:,} tokens asked for")
        if cfg.val_tokens and val.tokens < cfg.val_tokens:
            say(f"val holds {val.tokens:,} of the {cfg.val_tokens:,} tokens asked for: the source ended")
        writer.close()

    def publish(self, writer: CorpusWriter, bad_rows: BadRows) -> None:
        self.output.publish_manifest(
            writer.close(),
            self.made(),
            eot=self.eot,
            separator=self.separator,
            bad_rows=bad_rows.count,
        )

    @property
    def drops_tails(self) -> bool:
        return self.rule.rule == "tokens"

    def recorder(self, folder: Path) -> CorpusWriter:
        from automodel_cli.corpus.jobs.recorders import ShardRecorder  # as in TokenBuild.job

        return CorpusWriter(replace(self.output.layout, folder=folder), self.rule, open_shard=ShardRecorder)

    def planned(self, writer: CorpusWriter, folder: Path) -> tuple[list[PlannedFile], dict[str, Any]]:
        from automodel_cli.corpus.jobs.recorders import planned_shard  # as above

        shards = [shard for group in writer.close().values() for shard in group]
        return [planned_shard(shard.path, shard.num_tokens) for shard in shards], writer.sync()

    def head(self, tokens: int) -> bytes:
        layout = self.output.layout
        return b"" if layout.layout == "raw" else header_bytes(tokens, layout.dtype, layout.layout)


# ------------------------------------------------------------------------------------------ preparing


def _prepare(cfg: PreprocessNanogptConfig, progress: ProgressCallback, say: Say) -> _Nanogpt:
    set_name = cfg.set_name or (DEFAULT_SET_NAME if cfg.dataset == DEFAULT_DATASET else None)
    source = open_source(cfg.dataset, read_options(cfg, cfg.text_key), set_name, cfg.split)
    if source.note:
        say(source.note)
    if cfg.shuffle and cfg.max_tokens and not isinstance(source, FileSource):
        say("note: with shuffle, max_tokens is a sample of all documents, so the whole dataset is downloaded first")
    place = Place.of(cfg.output_dir or _default_folder(cfg, source.name), temp_dir=cfg.temp_dir)
    settled = WorkFolder(work_path(place.folder)).settled(_settled_key(cfg, source))
    is_char = cfg.tokenizer == "char"
    if is_char and settled.characters is None:
        settled = settled.with_characters(*_read_characters(source, cfg, progress))
    tokenizer = CharTokenizer(settled.characters or "") if is_char else open_tokenizer(cfg.tokenizer)
    engine = tokenizer.say_engine(cfg.engine, say)
    if isinstance(source, FileSource):
        source.cut_huge_texts = tokenizer.cuts_at_spaces and not cfg.shuffle
    output = NanogptOutput(
        CorpusLayout(
            folder=place.folder,
            layout="raw" if cfg.format == "raw" else "nemo",
            dtype=tokenizer.dtype,
            shard_tokens=cfg.shard_tokens,
        ),
        tokenizer,
    )
    output.mirror = place.mirror
    eot, separator = _separation(cfg, tokenizer, output)
    between = tokenizer.bos_id if separator == "bos" else tokenizer.eot_id
    task = EncodeTask(
        output.tokenizer_folder,
        tokenizer.engine_choice,
        source.options,
        tokenizer.dtype.str,
        before=(between,) if eot == "prepend" and between is not None else (),
        after=(between,) if eot == "append" and between is not None else (),
        tokenizer=tokenizer,
    )
    workers = cfg.num_workers
    if workers is None:
        workers = likely_workers([source.total_bytes, cfg.max_tokens and 4 * cfg.max_tokens])
    job = _Nanogpt(
        cfg=cfg,
        source=source,
        output=output,
        num_workers=workers,
        progress=progress,
        say=say,
        tokenizer=tokenizer,
        engine=engine,
        task=task,
        eot=eot,
        separator=separator,
        rule=SplitRule(),
        settled=settled,
    )
    job.rule = _split_rule(job)
    return job


def _settled_key(cfg: PreprocessNanogptConfig, source: Source) -> str:
    """What facts about the text follow from, besides the tokenizer."""
    names = (
        "document",
        "text_key",
        "tokenizer",
        "max_tokens",
        "val_fraction",
        "val_tokens",
        "shuffle",
        "eot",
        "format",
    )
    more = ("separator", "input_format", "max_document_bytes")
    return settled_key(source=source.identity(), **{name: getattr(cfg, name) for name in (*names, *more)})


def _default_folder(cfg: PreprocessNanogptConfig, name: str) -> str:
    return f"{name}_max_tokens_{format_amount(cfg.max_tokens)}" if cfg.max_tokens else f"{name}_all_tokens"


def _separation(cfg: PreprocessNanogptConfig, tokenizer: Tokenizer, output: NanogptOutput) -> tuple[Eot, Separator]:
    """Where the token between documents stands, and which one it is.

    In .bin files it is before each document, as NeMo's tool puts it: beginning-of-text where the tokenizer has one of
    its own. In raw files it is end-of-text after each document, as in nanoGPT's. Character data has none.
    """
    if cfg.eot == "none" or (cfg.eot is None and isinstance(tokenizer, CharTokenizer)):
        return "none", "eos"
    eot: Eot = cfg.eot or ("append" if cfg.format == "raw" else "prepend")
    separator = cfg.separator or _usual_separator(cfg, tokenizer, eot, output)
    word, token_id = ("beginning", tokenizer.bos_id) if separator == "bos" else ("end", tokenizer.eot_id)
    if token_id is None:
        raise ConfigError(
            f"tokenizer {tokenizer.name!r} has no {word}-of-text token to {eot}",
            f"name one as {separator}_token in its tokenizer_config.json, or use --eot none",
        )
    return eot, "eos" if token_id == tokenizer.eot_id else separator


def _usual_separator(cfg: PreprocessNanogptConfig, tokenizer: Tokenizer, eot: Eot, output: NanogptOutput) -> Separator:
    if eot == "append" or tokenizer.bos_id is None:
        return "eos"
    return "eos" if not cfg.overwrite and output.was_made_with_eos() else "bos"


def _read_characters(source: Source, cfg: PreprocessNanogptConfig, progress: ProgressCallback) -> tuple[set[str], int]:
    """The characters among the first ``max_tokens`` (of a shuffle: among all), and how many of those there are."""
    most = None if cfg.shuffle else cfg.max_tokens
    characters: set[str] = set()
    count = read_bytes = documents = 0
    for unit in source.units(None, cfg.chunk_size):
        for text in read_unit(unit, source.options).texts:
            text = text if most is None else text[: most - count]
            characters.update(text)
            count += len(text)
            documents += 1
        read_bytes += unit.size
        counts = (documents, count, read_bytes, 0)
        progress(Progress("characters", *counts, most, source.total_bytes, unit.through))
        if most is not None and count >= most:
            break
    if not characters:
        raise DataError(f"{source.name} holds no text", "check --dataset, --text-key and --document")
    return characters, count


def _split_rule(job: _Nanogpt) -> SplitRule:
    """How validation documents are chosen (contract 8 of docs/architecture.md)."""
    cfg, characters = job.cfg, job.settled.character_count
    base = SplitRule(seed=cfg.seed, max_tokens=cfg.max_tokens, val_tokens=cfg.val_tokens or 0)
    if cfg.val_fraction is None and cfg.val_tokens is None:
        return base
    source = job.source
    single = isinstance(source, FileSource) and source.single_document
    if single and cfg.val_fraction and not (characters or cfg.max_tokens or cfg.shuffle):
        assert isinstance(source, FileSource)
        if job.settled.tail_from is None:
            source.cut_tail(cfg.val_fraction)
            job.settled = job.settled.model_copy(update={"tail_from": source.tail_from})
        source.tail_from = job.settled.tail_from
        return replace(base, rule="given")
    if single or characters:
        total = _settled_total(job, characters or _counted_tokens(job))
        start = int(total * (1 - cfg.val_fraction)) if cfg.val_fraction else total - base.val_tokens
        return replace(base, rule="tail", tail_start=start)
    if cfg.val_fraction is not None:
        return replace(base, rule="fraction", fraction=cfg.val_fraction)
    settled = cfg.max_tokens
    if source.total_bytes is not None and source.total_bytes <= _COUNTED_BYTES:
        settled = _settled_total(job, _counted_tokens(job))
    likely = likely_fraction(base.val_tokens, settled or job.likely_tokens())
    return replace(base, rule="tokens", fraction=likely, total_tokens=settled)


def _settled_total(job: _Nanogpt, available: int) -> int:
    """Tokens that there will be: what the source has, up to ``max_tokens``."""
    total = min(available, job.cfg.max_tokens or available)
    if job.cfg.val_tokens and job.cfg.val_tokens >= total:
        raise ConfigError(
            f"val_tokens asks for {job.cfg.val_tokens:,} of {total:,} tokens",
            "ask for fewer, or give more text",
        )
    return total


def _counted_tokens(job: _Nanogpt) -> int:
    """Tokens of the source, counted once by the processes of a job together."""
    fingerprint, settled = job.tokenizer.fingerprint(), job.settled
    if settled.tokens is None or settled.tokenizer != fingerprint:
        counted = {"tokens": _count_tokens(job), "tokenizer": fingerprint}
        job.settled = settled = settled.model_copy(update=counted)
    assert settled.tokens is not None
    return settled.tokens


def _count_tokens(job: _Nanogpt) -> int:
    """Tokenize once without writing: the tail of a text is only known from its end."""
    encoder = job.task.open()
    tokens = documents = read_bytes = 0
    try:
        for unit in job.source.units(None, job.cfg.chunk_size):
            chunk = encoder(unit)
            tokens += len(chunk.tokens)
            documents += len(chunk.lengths) - chunk.continues
            read_bytes += unit.size
            wanted = (job.cfg.max_tokens, job.source.total_bytes)
            job.progress(Progress("counting", documents, tokens, read_bytes, 0, *wanted, unit.through))
    except EngineMismatch as error:
        job.use_reference_engine(str(error))
        return _count_tokens(job)
    return tokens
