"""Text to Megatron-Core's token files: what is particular to them. The steps of a run are ``corpus.build``'s.

The disk space is estimated first. With ``--shuffle`` it is the text that is shuffled: all documents are scattered to
disk, then read back in random order. With ``--shards`` everything is written to one long pair a key, which is divided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from automodel_cli.assembly.runners import elsewhere
from automodel_cli.config.schema.megatron import PreprocessMegatronConfig
from automodel_cli.config.schema.preprocess import unusual_reading
from automodel_cli.corpus.build.disk_space import Estimate, Ratios, estimate, free_bytes
from automodel_cli.corpus.build.megatron_output import MegatronOutput
from automodel_cli.corpus.build.megatron_sink import MegatronLayout, MegatronSink
from automodel_cli.corpus.build.mirror import Place
from automodel_cli.corpus.build.pipeline import BadRows, NoText, Progress
from automodel_cli.corpus.build.pool import likely_workers
from automodel_cli.corpus.build.run import BuildResult, ProgressCallback, Say, silent
from automodel_cli.corpus.build.token_build import TokenBuild
from automodel_cli.corpus.build.tokenize import EncodeTask
from automodel_cli.corpus.documents.sentences import SentenceRule
from automodel_cli.corpus.documents.source import (
    FileSource,
    Source,
    open_source,
    read_options,
    source_in_words,
)
from automodel_cli.corpus.formats.journal import Position
from automodel_cli.corpus.formats.megatron_bin import token_dtype
from automodel_cli.corpus.formats.megatron_divide import divide
from automodel_cli.corpus.formats.megatron_manifest import MegatronManifest
from automodel_cli.corpus.jobs.job import Job
from automodel_cli.corpus.jobs.planned_file import PlannedFile
from automodel_cli.corpus.tokenizer import Tokenizer, open_tokenizer
from automodel_cli.errors import ConfigError
from automodel_cli.processes import cores
from automodel_cli.text import binary_size

MegatronResult = BuildResult[MegatronManifest]


def run(
    cfg: PreprocessMegatronConfig, *, arguments: Sequence[str] = (), progress: ProgressCallback, say: Say
) -> MegatronResult:
    """Make the files that ``cfg`` describes.

    Raises:
        ConfigError: options that do not go together, or files made with other ones.
        DataError: the source cannot be read or holds no text; files are damaged.
        AutomodelError: the disk is full, or another process writes with this prefix.
    """
    build = _prepare(cfg, progress, say)
    return build.run(elsewhere(cfg, open_job, build, num_workers=cfg.workers, arguments=arguments))


def open_job(cfg: PreprocessMegatronConfig, *, progress: ProgressCallback = silent, say: Say = silent) -> Job:
    """The same in tasks, as each process that does some of them opens it.

    Raises:
        AutomodelError: as :func:`run`; or there is no such job.
    """
    return _prepare(cfg, progress, say).job()


@dataclass(kw_only=True)
class _Megatron(TokenBuild[PreprocessMegatronConfig, MegatronManifest, MegatronSink]):
    """Pairs of files, one for each input file and key, in a folder that other runs may share."""

    output: MegatronOutput

    def options(self) -> dict[str, Any]:
        """What decides the bytes of the files, as the manifest keeps it."""
        cfg, layout, sentences = self.cfg, self.output.layout, self.task.sentences
        names = ("append_eod", "document", "max_tokens", "shard_tokens", "shards", "skip_empty")
        return {
            **{name: getattr(cfg, name) for name in (*names, "special_tokens", "shuffle")},
            **unusual_reading(cfg),
            "keys": list(layout.keys),
            "level": layout.level,
            "parts": layout.parts,
            "added_ids": [list(self.task.before), list(self.task.after)],
            "seed": cfg.seed if cfg.shuffle else None,
            "lang": sentences and sentences.language,
            "keep_newlines": sentences and sentences.keep_newlines,
        }

    def estimate(self, *, copies: int = 1, ratios: Ratios | None = None) -> Estimate | None:
        cfg, layout = self.cfg, self.output.layout
        return estimate(
            self.source,
            self.task.open(),
            itemsize=layout.dtype.itemsize,
            max_tokens=None if cfg.max_tokens is None else cfg.max_tokens * len(layout.keys),
            copies=2 if cfg.shards else copies,
            keeps_text=cfg.shuffle,
            ratios=ratios,
        )

    @property
    def keeps_all(self) -> bool:
        return self.cfg.shuffle or self.cfg.shards is not None

    def say_plan(self) -> None:
        """The lines of a dry run."""
        cfg, layout, say = self.cfg, self.output.layout, self.say
        say(f"would read {source_in_words(self.source.describe())}")
        needed = self.estimate()
        amount = f"exactly {cfg.max_tokens:,} tokens" if cfg.max_tokens else "all tokens"
        if needed is not None:
            amount += f" (about {needed.tokens:,}, {binary_size(needed.bytes)}"
            amount += f"; {binary_size(free_bytes(layout.folder))} free)"
        eod = f"end-of-document {self.tokenizer.eot_id}" if cfg.append_eod else "no end-of-document"
        order = f", in random order (seed {cfg.seed})" if cfg.shuffle else ""
        say(f"would write {amount} as {layout.dtype.name}, {eod}{order}")
        files = self.sources_of_parts()
        for part, name in enumerate((files or [])[:3]):
            prefixes = ", ".join(layout.prefix(part, key).name for key in layout.keys)
            say(f"would make {prefixes} from {name}")
        if files is None:
            amount = f"{cfg.shards} pairs" if cfg.shards else "one pair"
            if cfg.shard_tokens:
                amount = f"pairs of at most {cfg.shard_tokens:,} tokens"
            first = self.output.shown(layout.prefix(0, layout.keys[0]))
            say(f"would make {amount} for each of {', '.join(layout.keys)}, from {first}.bin on")
        elif len(files) > 3:
            say(f"... up to number {len(files) - 1}")

    def sources_of_parts(self) -> list[str] | None:
        """The input file of each part, where each has one."""
        if self.output.layout.parts != "file":
            return None
        assert isinstance(self.source, FileSource)
        return [file.name for file in self.source.files]

    def writer(self, state: dict[str, Any] | None) -> MegatronSink:
        layout = self.output.spool if self.cfg.shards else self.output.layout
        layout.folder.mkdir(exist_ok=True)
        return MegatronSink(layout, max_tokens=self.cfg.max_tokens, state=state)

    def check(self, writer: MegatronSink, bad_rows: BadRows, say: Say) -> None:
        """No files without tokens, and a word where there is less than was asked for."""
        cfg, pairs = self.cfg, writer.close()
        if not pairs:
            raise NoText(
                f"{self.source.name} holds no text ({bad_rows.in_words()})",
                "check --input or --dataset, and --json-keys",
            )
        if cfg.max_tokens and writer.tokens < cfg.max_tokens:
            say(f"the source ended at {writer.tokens:,} of the {cfg.max_tokens:,} tokens asked for")
        there, layout = {(pair.part, pair.key) for pair in pairs}, self.output.layout
        for part, name in enumerate(self.sources_of_parts() or []) if not writer.full else ():
            for key in layout.keys:
                if (part, key) not in there:
                    say(f"{name} holds no text in {key!r}: no {layout.prefix(part, key).name}")

    def finish(self, writer: MegatronSink, bad_rows: BadRows) -> None:
        super().finish(writer, bad_rows)
        if self.cfg.shards:
            here = Position("divide", {}, bad=bad_rows.saved(), writer=writer.sync())
            self.output.write_progress(self.plan(), here)

    def publish(self, writer: MegatronSink, bad_rows: BadRows) -> None:
        """Divide the pairs where a number of them was asked for, then the manifest that makes them whole."""
        output, pairs = self.output, writer.pairs
        if self.cfg.shards and not output.hashed:  # files that were hashed are those in the end

            def on_progress(tokens: int) -> None:
                self.progress(Progress("dividing", 0, tokens, 0, 0))

            pairs = divide(output.spool, output.layout, self.cfg.shards, on_progress)
        output.publish_manifest(
            pairs,
            self.made(),
            eod_id=self.tokenizer.eot_id if self.cfg.append_eod else None,
            bad_rows=bad_rows.count,
            sources=self.sources_of_parts(),
            tools=self.task.sentences.versions() if self.task.sentences is not None else {},
        )

    def recorder(self, folder: Path) -> MegatronSink:
        from automodel_cli.corpus.jobs.recorders import MegatronRecorder  # as in TokenBuild.job

        layout = replace(self.output.layout, folder=folder)
        if self.cfg.shards:
            layout = replace(self.output.spool, folder=folder / "spool")
            layout.folder.mkdir()
        return MegatronSink(layout, max_tokens=self.cfg.max_tokens, open_pair=MegatronRecorder)

    def planned(self, writer: MegatronSink, folder: Path) -> tuple[list[PlannedFile], dict[str, Any]]:
        from automodel_cli.corpus.jobs.recorders import divide_recorded, planned_pair  # as above

        layout, pairs = replace(self.output.layout, folder=folder), writer.close()
        if not self.cfg.shards:
            return [planned_pair(layout, pair) for pair in pairs], writer.sync()
        pairs, files = divide_recorded(writer.layout, pairs, layout, self.cfg.shards)
        writer.pairs = pairs
        return files, writer.sync()

    def head(self, tokens: int) -> bytes:
        return b""


# ------------------------------------------------------------------------------------------ preparing


def _prepare(cfg: PreprocessMegatronConfig, progress: ProgressCallback, say: Say) -> _Megatron:
    source = _open_source(cfg)
    if source.note:
        say(source.note)
    tokenizer = open_tokenizer(cfg.tokenizer)
    engine = tokenizer.say_engine(cfg.engine, say)
    if cfg.append_eod and tokenizer.eot_id is None:
        raise ConfigError(
            f"tokenizer {tokenizer.name!r} names no end-of-text token to append",
            "name one as eos_token in its tokenizer_config.json, or leave --append-eod out",
        )
    place = _place(cfg)
    output = MegatronOutput(_layout(cfg, source, tokenizer, place), tokenizer)
    output.mirror = place.mirror
    if isinstance(source, FileSource):
        # A document in pieces must not be placed, or parsed, by its first piece.
        whole = cfg.shard_tokens or cfg.special_tokens == "parse" or cfg.split_sentences or cfg.shuffle
        source.cut_huge_texts = tokenizer.cuts_at_spaces and not whole
    before, after = tokenizer.added_ids() if cfg.add_special_tokens else ([], [])
    task = EncodeTask(
        output.tokenizer_folder,
        tokenizer.engine_choice,
        source.options,
        output.layout.dtype.str,
        before=tuple(before),
        after=tuple(after),
        end=(tokenizer.eot_id,) if cfg.append_eod and tokenizer.eot_id is not None else (),
        special_tokens=cfg.special_tokens,
        sentences=SentenceRule(cfg.lang, cfg.keep_newlines) if cfg.split_sentences else None,
        tokenizer=tokenizer,
    )
    if task.sentences is not None:
        task.sentences.splitter()  # what is missing is said now, by one process
    return _Megatron(
        cfg=cfg,
        source=source,
        output=output,
        num_workers=_workers(cfg, source),
        progress=progress,
        say=say,
        tokenizer=tokenizer,
        engine=engine,
        task=task,
    )


def _open_source(cfg: PreprocessMegatronConfig) -> Source:
    options = read_options(cfg, *cfg.json_keys, lists=True)
    source: Source
    if cfg.input is None:
        assert cfg.dataset is not None
        source = open_source(cfg.dataset, options, cfg.set_name, cfg.split)
    else:
        source = FileSource(cfg.input, options)
    files = source.files if isinstance(source, FileSource) else []
    texts = [file.name for file in files if file.kind == "text"]
    if texts and options.more_keys:
        raise ConfigError(
            f"{texts[0]} is a text file: it has no keys {', '.join(options.keys)}", "give one --json-keys"
        )
    return source


def _place(cfg: PreprocessMegatronConfig) -> Place:
    """The folder that the prefix, or ``--output-path``, names."""
    folder, _, name = cfg.output_prefix.rpartition("/")
    return Place.of(cfg.output_path or folder or ".", prefix=f"{name}.", temp_dir=cfg.temp_dir)


def _layout(cfg: PreprocessMegatronConfig, source: Source, tokenizer: Tokenizer, place: Place) -> MegatronLayout:
    one = not isinstance(source, FileSource) or source.documents_are_files or cfg.shuffle or cfg.shards
    return MegatronLayout(
        folder=place.folder,
        name=PurePosixPath(cfg.output_prefix).name,
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
