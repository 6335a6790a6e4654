"""Conversations to token files: tasks from the Hub or from files, rendered, mixed, with what is learned in a mask.

1. each task is opened, and its rows are chosen for training and validation by their numbers and the seed
2. the chosen rows of each task and split are rendered, in several processes where that pays, into files of their own
3. the order of the mixture is written, then the manifest; between two files the journal says how far the run came
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from automodel_cli.config.load import load_config
from automodel_cli.config.schema.chat import MixtureConfig, PreprocessChatConfig, TaskConfig
from automodel_cli.corpus.build.conversation_output import ConversationOutput
from automodel_cli.corpus.build.mirror import local_folder
from automodel_cli.corpus.build.pipeline import BadRows, NoText, Progress
from automodel_cli.corpus.build.pool import LocalExecutor
from automodel_cli.corpus.build.run import Build, BuildResult, ProgressCallback, Say
from automodel_cli.corpus.conversations import mixture
from automodel_cli.corpus.conversations.chat_format import chat_format_of
from automodel_cli.corpus.conversations.chatml import with_chatml
from automodel_cli.corpus.conversations.encode import ConversationChunk, ConversationTask
from automodel_cli.corpus.conversations.rows import RowSource, open_rows
from automodel_cli.corpus.conversations.tasks import TASKS, TaskName
from automodel_cli.corpus.documents.listing import is_local
from automodel_cli.corpus.documents.units import Unit
from automodel_cli.corpus.formats.conversation_files import ConversationWriter, write_order
from automodel_cli.corpus.formats.journal import Position
from automodel_cli.corpus.formats.manifest import CorpusManifest, Plan, Split
from automodel_cli.corpus.tokenizer import Tokenizer, open_tokenizer
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.files import hash_bytes
from automodel_cli.processes import cores
from automodel_cli.text import plural

_WORKER_ROWS = 20_000  # a worker's start takes as long as some thousand rows
_LOOK = "look at its columns and at which task reads them"
ChatResult = BuildResult[CorpusManifest]


def run(cfg: PreprocessChatConfig, *, progress: ProgressCallback, say: Say) -> ChatResult:
    """Make the files that ``cfg`` describes.

    Raises:
        ConfigError: the mixture has mistakes, or the folder was made with other options.
        DataError: a data set cannot be read, or a task has no conversation; the folder is damaged.
        AutomodelError: the disk is full, or another process writes to the folder.
    """
    return _prepare(cfg, progress, say).run()


@dataclass(frozen=True)
class _Part:
    """What one task gives to one split: the rows of ``source`` that are ``chosen`` (bool)."""

    name: str
    split: Split
    task: TaskName
    source: RowSource
    chosen: np.ndarray

    @functools.cached_property
    def rows(self) -> int:
        return int(self.chosen.sum())

    def __str__(self) -> str:
        return f"task {self.name}, {'training' if self.split == 'train' else 'validation'},"


@dataclass(frozen=True)
class _Sources:
    """All parts, as a manifest knows them."""

    parts: list[_Part]

    def describe(self) -> dict[str, Any]:
        return {f"{part.split}_{part.name}": part.source.describe() for part in self.parts}

    def identity(self) -> str:
        return hash_bytes("\n".join(part.source.identity() for part in self.parts).encode())


@dataclass(kw_only=True)
class _Chat(Build[PreprocessChatConfig, CorpusManifest]):
    """A folder of files by task and split."""

    source: _Sources
    output: ConversationOutput
    mixture: MixtureConfig
    tokenizer: Tokenizer
    format_name: str

    def options(self) -> dict[str, Any]:
        mix, decides = self.mixture, ("max_examples", "max_val_examples", "val_fraction", "epochs", "weight")
        return {
            "format": self.format_name,
            "train_on": self.cfg.train_on,
            **{name: getattr(mix, name) for name in ("strategy", "examples", "seed")},
            "tasks": {
                name: {"task": task.task or name, **{key: getattr(task, key) for key in decides}}
                for name, task in mix.tasks.items()
            },
        }

    def made(self) -> Plan:
        return {**super().made(), "tokenizer": self.tokenizer.describe()}

    def plan(self) -> Plan:
        """What an interrupted run must have in common with this one."""
        made = self.made()
        return {**made, "source": {**made["source"], "identity": self.source.identity()}}

    def say_plan(self) -> None:
        for part in self.source.parts:
            rows = plural(part.rows, "row")
            self.say(f"would read {rows} of {part.name} and write {self.output.path(part.split, part.name)}")
        self.say(f"would mix the tasks ({self.mixture.strategy}) and learn {self.cfg.train_on}")
        self.say(f"would tokenize in {plural(max(1, self.num_workers), 'process', 'processes')}")

    def make(self) -> ChatResult:
        """Write the files, or go on where an interrupted run of the same plan stopped."""
        output, plan = self.output, self.plan()
        position = output.interrupted_position(plan, self.say)
        written: dict[str, int] = {} if position is None else dict(position.writer or {})
        known = {} if position is None else position.bad
        bad_rows = BadRows(self.cfg.strict, known.get("count", 0), list(known.get("first", [])))
        output.write_progress(plan, Position("write", {}, bad=bad_rows.saved(), writer=written))
        self.tokenizer.save(output.tokenizer_folder)
        left = [part for part in self.source.parts if output.path(part.split, part.name).name not in written]
        task = ConversationTask(output.tokenizer_folder, self.cfg.train_on, self.tokenizer)
        try:
            executor = LocalExecutor(self.num_workers, self.cfg.prefetch)
            with executor.map_ordered(task, _units(left, self.cfg.chunk_size)) as chunks:
                for number, of_part in itertools.groupby(chunks, key=lambda pair: pair[0].file):
                    path = output.path(left[number].split, left[number].name)
                    written[path.name] = self._write(left[number], path, of_part, bad_rows)
                    output.write_progress(plan, Position("write", {}, bad=bad_rows.saved(), writer=written))
        except NoText:
            output.clear()
            raise
        examples = self._mix(written)
        files = {output.path(part.split, part.name): part.split for part in self.source.parts}
        output.publish_manifest(files, self.made(), examples=examples, bad_rows=bad_rows.count)
        manifest = output.finished(self.made())
        return BuildResult(output.folder, manifest, False, position is not None, bad_rows.first)

    def _write(
        self, part: _Part, path: Path, chunks: Iterable[tuple[Unit, ConversationChunk]], bad_rows: BadRows
    ) -> int:
        """The conversations of one part; how many there are.

        Raises:
            NoText: there are none.
        """
        writer = ConversationWriter(path, self.tokenizer.dtype)
        documents = tokens = rows = 0
        try:
            for unit, chunk in chunks:
                writer.write(chunk.tokens, chunk.mask, chunk.lengths)
                bad_rows.add(unit, 0, chunk.bad)
                documents += len(chunk.lengths)
                tokens += len(chunk.tokens)
                rows += chunk.rows
                self.progress(Progress(path.stem, documents, tokens, 0, bad_rows.count, through=rows / part.rows))
            if documents == 0:
                raise NoText(f"{part} has no conversation ({bad_rows.in_words()})", _LOOK)
            writer.close()
        except BaseException:
            writer.abandon()
            raise
        return documents

    def _mix(self, written: dict[str, int]) -> int:
        """Publish the order of the mixture; how many examples it has."""
        tasks, mix = self.mixture.tasks, self.mixture
        sizes = [written[self.output.path("train", name).name] for name in tasks]
        wanted = mixture.shares(
            sizes,
            mix.strategy,
            epochs=[task.epochs for task in tasks.values()],
            weights=[task.weight for task in tasks.values()],
            examples=mix.examples,
        )
        write_order(self.output.folder, mixture.order(sizes, wanted, mix.seed))
        return sum(wanted)


def _units(parts: list[_Part], size: int) -> Iterator[Unit]:
    """The chosen rows of all parts, numbered as files, so many rows at a time."""
    for number, part in enumerate(parts):
        for name, rows in itertools.groupby(part.source.rows(part.chosen), key=lambda row: row[0]):
            numbered = ((at, row) for _, at, row in rows)
            while some := list(itertools.islice(numbered, size)):
                yield Unit("values", name, number, {}, payload=(part.task, some))


# ------------------------------------------------------------------------------------------ preparing


def _prepare(cfg: PreprocessChatConfig, progress: ProgressCallback, say: Say) -> _Chat:
    mix = _mixture(cfg)
    tokenizer = open_tokenizer(cfg.tokenizer)
    chat = chat_format_of(tokenizer) or chat_format_of(with_chatml(tokenizer))
    assert chat is not None
    if tokenizer.note:
        say(tokenizer.note)
    what = "its chat template" if chat.name == "template" else "ChatML"
    say(f"tokenizer {tokenizer.name}: {chat.tokenizer.vocab_size:,} ids with {what}")
    parts = [part for name, task in mix.tasks.items() for part in _parts(name, task, mix.seed)]
    for part in parts:
        if not part.rows:
            raise DataError(f"{part} has no rows", "give it more, or another val_fraction")
    likely = min(cores(), 1 + sum(part.rows for part in parts) // _WORKER_ROWS)
    return _Chat(
        cfg=cfg,
        source=_Sources(parts),
        output=ConversationOutput(local_folder(cfg.output_dir), chat.tokenizer),
        num_workers=likely if cfg.num_workers is None else cfg.num_workers,
        progress=progress,
        say=say,
        mixture=mix,
        tokenizer=chat.tokenizer,
        format_name=chat.name,
    )


def _mixture(cfg: PreprocessChatConfig) -> MixtureConfig:
    if cfg.mixture is not None:
        return load_config(MixtureConfig, cfg.mixture)
    one = TaskConfig(task="messages", dataset=cfg.dataset, val_fraction=cfg.val_fraction)
    return MixtureConfig(tasks={"messages": one})


def _parts(name: str, task: TaskConfig, seed: int) -> Iterator[_Part]:
    """The rows of a task that train, and those that validate if any do."""
    reads: TaskName = task.task or name  # type: ignore[assignment]
    known = TASKS[reads]
    dataset = task.dataset or known.dataset
    own = dataset == known.dataset
    set_name = task.set_name or (known.set_name if own else None)
    of_hub = [key for key in ("set_name", "split", "val_split") if getattr(task, key) is not None]
    if of_hub and dataset is not None and is_local(dataset):  # else it would validate on what it trains on
        raise ConfigError(
            f"task {name} has {of_hub[0]}, which only a dataset of the Hub has; {dataset} is local",
            "leave it out; val_dataset or val_fraction say what is validated on",
        )
    if dataset is not None:
        source = open_rows(dataset, set_name, task.split or (known.split if own else "train"))
    elif known.made is not None:
        source = known.made()
    else:
        raise ConfigError(f"task {name} names no dataset", "give it a Hub dataset or local files: dataset: PATH")
    order = mixture.shuffled(len(source), seed, f"examples of {name}")
    held_out = round(len(source) * (task.val_fraction or 0))
    yield _Part(name, "train", reads, source, _chosen(order, held_out, task.max_examples))
    if task.val_fraction is not None:
        yield _Part(name, "val", reads, source, _chosen(order[:held_out], 0, task.max_val_examples, len(source)))
        return
    val_split = task.val_split or (known.val_split if own and task.val_dataset is None else None)
    if task.val_dataset is None and val_split is None:
        return
    val = open_rows(task.val_dataset or str(dataset), set_name, val_split or "validation")
    order = mixture.shuffled(len(val), seed, f"validation examples of {name}")
    yield _Part(name, "val", reads, val, _chosen(order, 0, task.max_val_examples))


def _chosen(order: np.ndarray, first: int, most: int | None, rows: int | None = None) -> np.ndarray:
    """Which rows come from place ``first`` on in ``order``, at most so many of them: bool, one a row."""
    chosen = np.zeros(len(order) if rows is None else rows, dtype=bool)
    chosen[order[first:][:most]] = True
    return chosen
