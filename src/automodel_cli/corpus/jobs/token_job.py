"""Token files made in stages of independent tasks; the bytes are those of a run in one process.

| stage    | a task                                                                      | what it leaves           |
|----------|-----------------------------------------------------------------------------|--------------------------|
| tokenize | reads a part of the source and writes its ids, with what is known of them   | a part (``part_files``)  |
| arrange  | the only one: decides which ids make which file; writes the files' indices  | ``arranged.json``        |
| assemble | makes a file of its ids, and hashes it                                      | a file (``arrangement``) |

``finish`` moves the files to their places and writes the manifest. What is under way is in the folder ``.work`` of the
output (``work_folder``). Parts that are not needed are left out: with ``--max-tokens`` those after the parts that give
enough, in strict mode those after one with a bad row.

Where the fast engine turns out to be wrong about a text, all that it made is forgotten: tasks that were done are not
done any more, and the reference engine does them again. So a runner asks again for what is done after a stage.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Protocol

from automodel_cli.corpus.build.output import difference
from automodel_cli.corpus.build.pipeline import BadRows, NoText, Sink, run_pipeline
from automodel_cli.corpus.build.token_output import TokenOutput
from automodel_cli.corpus.build.tokenize import EncodeTask, UnitEncoder
from automodel_cli.corpus.documents.parts import Part, find_parts, part_units
from automodel_cli.corpus.documents.source import Source
from automodel_cli.corpus.documents.units import TokenChunk, Unit
from automodel_cli.corpus.formats.journal import Position
from automodel_cli.corpus.formats.manifest import Facts, Plan
from automodel_cli.corpus.jobs.arrangement import (
    FORMAT,
    MADE_FORMAT,
    Arrangement,
    MadeFile,
    Refusal,
    file_entry,
    write_ids,
)
from automodel_cli.corpus.jobs.job import Report, TaskReport
from automodel_cli.corpus.jobs.part_files import PartHeader, PartWriter, part_path, read_chunks, read_header
from automodel_cli.corpus.jobs.planned_file import PlannedFile
from automodel_cli.corpus.jobs.settled import Settled
from automodel_cli.corpus.jobs.work_folder import (
    JobError,
    JobPlan,
    gone_named,
    new_tag,
    publish_json,
    read_published,
)
from automodel_cli.corpus.shuffle.scatter_stages import ScatterStages
from automodel_cli.corpus.shuffle.shuffled_parts import ShuffledParts
from automodel_cli.corpus.tokenizer import Tokenizer
from automodel_cli.corpus.tokenizers.engines import EngineMismatch
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.files import disk_errors_named, file_bytes, fsync_file, fsync_folder

_WRITE_BYTES = 4 << 20


class JobSettings(Protocol):
    """The options that a job looks at."""

    max_tokens: int | None
    strict: bool
    chunk_size: int
    shuffle: bool


class JobBuild(Protocol):
    """All that is settled before the first byte, and what a format adds: ``build.token_build`` says more."""

    source: Source
    tokenizer: Tokenizer
    task: EncodeTask
    settled: Settled | None
    doubt: str | None

    @property
    def say(self) -> Callable[[str], None]: ...

    @property
    def cfg(self) -> JobSettings: ...

    @property
    def output(self) -> TokenOutput[Any]: ...

    @property
    def drops_tails(self) -> bool: ...

    def plan(self) -> Plan: ...

    def check_room(self, *, copies: int = 1) -> None: ...

    def bucket_count(self) -> int: ...

    def shuffled_parts(self, parts: tuple[Part, ...], bucket_count: int) -> ShuffledParts: ...

    def use_reference_engine(self, doubt: str) -> None: ...

    def recorder(self, folder: Path) -> Any: ...

    def check(self, writer: Any, bad_rows: BadRows, say: Callable[[str], None]) -> None: ...

    def planned(self, writer: Any, folder: Path) -> tuple[list[PlannedFile], dict[str, Any]]: ...

    def head(self, tokens: int) -> bytes: ...

    def publish_made(self, state: dict[str, Any], bad_rows: BadRows, facts: Facts) -> Any: ...


@dataclass
class _Prefix:
    """What the first parts have together, that are all done."""

    engine: Path
    parts: int = 0
    tokens: int = 0
    longest: int = 0
    bad_rows: int = 0

    def add(self, header: PartHeader) -> None:
        self.parts += 1
        self.tokens += header.first_tokens
        self.longest = max(self.longest, header.longest)
        self.bad_rows += header.bad_rows


class TokenJob:
    """See above; the protocol is ``jobs.job.Job``."""

    def __init__(self, build: JobBuild) -> None:
        self.name = build.output.what
        self._build, self._work = build, build.output.work
        self._prefix = _Prefix(self._work.path)  # of no engine yet
        self._encoder: tuple[Path, UnitEncoder] | None = None
        before = ScatterStages.NAMES if build.cfg.shuffle else ()
        self.stages: tuple[str, ...] = (*before, "tokenize", "arrange", "assemble")
        self._arranged: tuple[Path, Arrangement] | None = None

    # -------------------------------------------------------------------------------------- the plan

    def begin(self) -> None:
        build, output, plan = self._build, self._build.output, self._build.plan()
        output.refuse_interrupted(plan, build.say)
        with self._work.beginning():
            if self._work.plan() is None:
                if output.has_manifest:  # who begins looked for it; this process came late
                    raise JobError(f"{output.manifest_path} is already there: the job is finished")
                self._begin(plan)
            _ = self._plan  # compare
            if not output.has_begun:  # somebody removed the mark
                output.write_progress(plan, Position("parts"))

    def _begin(self, plan: Plan) -> None:
        build, output = self._build, self._build.output
        build.check_room(copies=2)  # ids in parts, and in files
        brought = output.tokenizer_folder.is_dir()
        output.write_progress(plan, Position("parts"))  # what is written from here on is known to be ours
        build.tokenizer.save(output.tokenizer_folder)
        parts = find_parts(build.source, build.cfg.chunk_size)
        buckets = None
        if build.cfg.shuffle:
            buckets = build.bucket_count()
            build.shuffled_parts(tuple(parts), buckets).begin()
        self._work.make_folders()
        if build.doubt is not None:
            self._work.doubt_engine(build.doubt)
        fields = tuple(astuple(part) for part in parts)
        self._work.write_plan(JobPlan(plan=plan, parts=fields, settled=build.settled, brought=brought, buckets=buckets))

    @functools.cached_property
    def _plan(self) -> JobPlan:
        """What the first process wrote; everything else is done only where it fits what this one was asked.

        Raises:
            ConfigError: it does not.
            JobError: nobody has begun, or the plan is damaged.
        """
        found = self._work.plan()
        if found is None:
            raise JobError(f"{self._work.path} holds no plan: nobody has begun this job", "run the same command again")
        asked = self._build.plan()
        if found.plan != asked:
            raise ConfigError(
                f"{self._work.path} holds a job of other options, or this machine sees another source: "
                f"{difference(found.plan, asked)}",
                "give every machine the same options, files and tokenizer",
            )
        return found

    def _engine(self) -> Path:
        """The folder of what counts; from when the fast engine is doubted on, this process uses the reference."""
        doubt = self._work.doubt  # asked once: the answer may change at any moment
        if doubt is not None and self._build.doubt is None:
            self._build.use_reference_engine(doubt)
        return self._work.engine(doubted=doubt is not None)

    # -------------------------------------------------------------------------------------- the tasks

    def tasks(self, stage: str) -> int:
        if stage in ScatterStages.NAMES:
            return len(self._plan.parts)
        if stage == "tokenize":
            return self._prefix.parts if self._has_enough() else self._part_count
        return 1 if stage == "arrange" else len(self._arrangement().files)

    @property
    def _part_count(self) -> int:
        """How many parts are tokenized: those of the source, or with shuffle its buckets."""
        return len(self._plan.parts) if self._plan.buckets is None else self._plan.buckets

    @functools.cached_property
    def _shuffled(self) -> ShuffledParts | None:
        """With shuffle: what is tokenized in place of the source's parts."""
        plan = self._plan
        if plan.buckets is None:
            return None
        return self._build.shuffled_parts(tuple(Part(*fields) for fields in plan.parts), plan.buckets)

    def is_done(self, stage: str, task: int) -> bool:
        if stage in ScatterStages.NAMES:
            assert self._shuffled is not None
            return self._shuffled.is_done(stage, task)
        engine = self._engine()
        if stage == "tokenize":
            return part_path(engine, task).exists() or (self._has_enough() and task >= self._prefix.parts)
        return (_arranged_path(engine) if stage == "arrange" else _made_path(engine, task)).exists()

    def run_task(self, stage: str, task: int, report: Report) -> None:
        _ = self._plan
        if stage in ScatterStages.NAMES:
            assert self._shuffled is not None
            self._shuffled.run_task(stage, task, report)
            return
        work = {"tokenize": self._tokenize, "arrange": self._arrange, "assemble": self._assemble}[stage]
        while not self.is_done(stage, task):  # again, where another process came to doubt the engine meanwhile
            try:
                work(self._engine(), task, report)
            except EngineMismatch as error:
                self._work.doubt_engine(str(error))

    # ------------------------------------------------------------------------------------ parts needed

    def _has_enough(self) -> bool:
        """Whether the parts that are done, from the first one on and without a gap, give all that was asked for."""
        cfg, engine = self._build.cfg, self._engine()
        if cfg.max_tokens is None and not cfg.strict:
            return False
        if self._prefix.engine != engine:
            self._prefix = _Prefix(engine)
        prefix = self._prefix
        while not (enough := self._suffices(prefix)) and part_path(engine, prefix.parts).exists():
            prefix.add(read_header(part_path(engine, prefix.parts)))
        return enough

    def _suffices(self, prefix: _Prefix) -> bool:
        refused = self._build.cfg.strict and prefix.bad_rows > 0
        return refused or self._is_enough(prefix.tokens, prefix.longest)

    def _is_enough(self, tokens: int, longest: int) -> bool:
        """Whether documents of so many tokens certainly give ``max_tokens``.

        Each of the two splits may drop the rest of the document that meets the end of its share.
        """
        most = self._build.cfg.max_tokens
        return most is not None and tokens - 2 * longest * self._build.drops_tails >= most

    # --------------------------------------------------------------------------------------- tokenize

    def _tokenize(self, engine: Path, task: int, report: Report) -> None:
        build = self._build
        encode, strict = self._opened(engine), build.cfg.strict
        if self._shuffled is not None:
            units = self._shuffled.units(task, build.cfg.chunk_size)
        else:
            units = part_units(build.source, Part(*self._plan.parts[task]), build.cfg.chunk_size)
        writer = PartWriter(engine, task, encode.dtype)
        try:
            for unit in units:
                writer.write(unit, encode(unit))
                amounts = writer.amounts
                report(_report(amounts))
                if (strict and amounts["bad_rows"]) or self._is_enough(amounts["first_tokens"], amounts["longest"]):
                    break  # nothing that follows is wanted
            writer.close()
        except BaseException:
            writer.abandon()
            raise

    def _opened(self, engine: Path) -> UnitEncoder:
        if self._encoder is None or self._encoder[0] != engine:
            self._encoder = engine, self._build.task.open()
        return self._encoder[1]

    # ---------------------------------------------------------------------------------------- arrange

    def _arrange(self, engine: Path, task: int, report: Report) -> None:
        build, bad_rows = self._build, BadRows(self._build.cfg.strict)
        if self._shuffled is not None:
            bad_rows = self._shuffled.bad_rows()
        notes: list[str] = []
        folder = engine / new_tag()
        with gone_named(folder), disk_errors_named(folder):
            folder.mkdir()
        writer = build.recorder(folder)
        parts: list[str] = []
        made = Arrangement(folder=folder.name)
        try:
            chunks = self._chunks(engine, parts)
            run_pipeline(chunks, writer, bad_rows, note=_forget, on_progress=_reporter(writer, bad_rows, report))
            build.check(writer, bad_rows, notes.append)
            files, state = build.planned(writer, folder)
        except DataError as error:  # of the text: no other process would fare better
            writer.abandon()
            refusal = Refusal(message=error.message, hint=error.hint, no_text=isinstance(error, NoText))
            made = made.model_copy(update={"refusal": refusal})
        except BaseException:
            writer.abandon()
            raise
        else:
            entries = tuple(file_entry(folder, file) for file in files)
            facts = {"files": entries, "parts": tuple(parts), "state": state, "notes": tuple(notes)}
            made = made.model_copy(update=facts)
        made = made.model_copy(update={"bad_rows": bad_rows.count, "first_bad_rows": tuple(bad_rows.first)})
        publish_json(_arranged_path(engine), {"format": FORMAT, **made.model_dump(mode="json")})

    def _chunks(self, engine: Path, parts: list[str]) -> Iterator[tuple[Unit, TokenChunk]]:
        """All chunks in order; ``parts`` is filled with the headers that they are read by."""
        dtype = self._opened(engine).dtype
        for number in range(self._part_count):
            header = read_header(part_path(engine, number))
            parts.append(header.header_file)
            yield from read_chunks(engine, number, header, dtype)

    def _arrangement(self) -> Arrangement:
        """What was arranged; read once, as it is long, and as another that takes its place is as good."""
        engine = self._engine()
        if self._arranged is None or self._arranged[0] != engine:
            self._arranged = engine, read_published(_arranged_path(engine), Arrangement, FORMAT)
        return self._arranged[1]

    # --------------------------------------------------------------------------------------- assemble

    def _assemble(self, engine: Path, task: int, report: Report) -> None:
        made = self._arrangement()
        entry, itemsize = made.files[task], self._opened(engine).dtype.itemsize
        path = _made_path(engine, task).with_suffix(f".{new_tag()}.bin")
        try:
            with gone_named(path), disk_errors_named(path), path.open("xb", buffering=_WRITE_BYTES) as out:
                digest = write_ids(out, self._build.head(entry.tokens), entry, engine, made, itemsize)
                fsync_file(out)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        facts = MadeFile(file=path.name, bytes=file_bytes(path), xxh3=digest)
        publish_json(_made_path(engine, task), {"format": MADE_FORMAT, **facts.model_dump(mode="json")})
        report(TaskReport(tokens=entry.tokens))

    # ----------------------------------------------------------------------------------------- finish

    def finish(self) -> Any:
        """Move the files to their places and publish the manifest; see :class:`Job`.

        Raises:
            DataError: what a local run refuses at its end: no text, an empty split, a bad row in strict mode.
        """
        build, engine = self._build, self._engine()
        made, plan = self._arrangement(), self._plan
        if made.refusal is not None:
            if made.refusal.no_text:
                build.output.clear(keep_tokenizer=plan.brought)
            raise (NoText if made.refusal.no_text else DataError)(made.refusal.message, made.refusal.hint)
        assert made.state is not None
        if build.doubt is not None:
            build.say(f"{build.doubt}: all was made with the reference engine, which is slower but right")
        facts = self._move(engine, made)
        for note in made.notes:
            build.say(note)
        bad_rows = BadRows(build.cfg.strict, made.bad_rows, list(made.first_bad_rows))
        return build.publish_made(made.state, bad_rows, facts)

    def _move(self, engine: Path, made: Arrangement) -> Facts:
        """Every file to its place, the index after its tokens; what was moved before stays."""
        facts: dict[str, dict[str, Any]] = {}
        folder = self._build.output.folder
        for task, entry in enumerate(made.files):
            file = read_published(_made_path(engine, task), MadeFile, MADE_FORMAT)
            _move(engine / file.file, folder / entry.name, file.bytes)
            _move(engine / made.folder / entry.index, folder / entry.index_name, entry.index_bytes)
            facts[entry.name] = {"bytes": file.bytes, "xxh3": file.xxh3}
            facts[entry.index_name] = {"bytes": entry.index_bytes, "xxh3": entry.index_xxh3}
        fsync_folder(folder)
        return facts


def _move(source: Path, target: Path, size: int) -> None:
    try:
        source.replace(target)
    except FileNotFoundError:
        if file_bytes(target) != size:
            raise JobError(f"{source} is gone, and {target} is not it", "start over with --overwrite") from None


def _arranged_path(engine: Path) -> Path:
    return engine / "arranged.json"


def _made_path(engine: Path, task: int) -> Path:
    return engine / f"file_{task:06d}.json"


def _forget(cursor: dict[str, Any], rows: int) -> None:
    """There is no going on in the middle of a task."""


def _report(amounts: dict[str, int]) -> TaskReport:
    return TaskReport(amounts["documents"], amounts["tokens"], amounts["text_bytes"], amounts["bad_rows"])


def _reporter(writer: Sink, bad_rows: BadRows, report: Report) -> Callable[[int, float | None], None]:
    read_bytes = 0

    def on_progress(text_bytes: int, through: float | None) -> None:
        nonlocal read_bytes
        read_bytes += text_bytes
        report(TaskReport(writer.documents, writer.tokens, read_bytes, bad_rows.count))

    return on_progress
