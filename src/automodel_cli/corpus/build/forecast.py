"""How long a run will take, before it begins: some of the text is really tokenized, at many places of the source.

The sample goes through what the run itself uses (as many processes, the same units), and its tokens are hashed and
written to a file without a name. What is measured is the time between the first answer and the last.
"""

from __future__ import annotations

import heapq
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import xxhash

from automodel_cli.corpus.build.disk_space import Ratios, expected_size
from automodel_cli.corpus.build.pipeline import Sink
from automodel_cli.corpus.build.pool import Executor
from automodel_cli.corpus.build.tokenize import EncodeTask
from automodel_cli.corpus.documents.parts import find_parts, part_units
from automodel_cli.corpus.documents.source import FileSource
from automodel_cli.corpus.documents.units import TokenChunk, Unit
from automodel_cli.corpus.jobs.token_range import TokenRange
from automodel_cli.corpus.tokenizer import Tokenizer
from automodel_cli.text import duration, plural

WORTH_FORECAST_BYTES = 64 << 20  # less takes seconds
_SHARE = 0.01
_LEAST_BYTES = 24 << 20  # so that what a fast engine does can be timed
_MOST_S = 3.0
_PLACES = 24
_SMALLER_UNITS = 8  # than those of the run: many answers, so that it matters little where the time is stopped


@dataclass(frozen=True)
class Sample:
    """What a sample of the text took.

    Attributes:
        text_bytes: of the whole source.
        bytes: of the sample, measured as ``text_bytes`` is.
        tokens, sequences: in the sample.
        places: of the source that it is from.
        start_s: until the first answer.
        rate: bytes of text a second, after that.
        write_rate: bytes of tokens a second, hashed and written alone.
    """

    text_bytes: int
    bytes: int
    tokens: int
    sequences: int
    places: int
    start_s: float
    rate: float
    write_rate: float

    @property
    def ratios(self) -> Ratios:
        """What an estimate of the space needs."""
        return Ratios(self.tokens / self.bytes, self.sequences / self.tokens)

    def bytes_to_read(self, max_tokens: int | None) -> int:
        """Of the source, until there are so many tokens."""
        if max_tokens is None:
            return self.text_bytes
        return min(self.text_bytes, int(max_tokens * self.bytes / self.tokens))


def take_sample(
    source: FileSource,
    task: EncodeTask,
    tokenizer: Tokenizer,
    executor: Executor,
    sink: Callable[[Path], Sink],
    *,
    chunk_documents: int,
    near: Path,
    clock: Callable[[], float] = time.perf_counter,
) -> Sample | None:
    """Tokenize a hundredth of ``source``, but no longer than some seconds; None where there are no tokens in that.

    Args:
        sink: makes what takes the chunks, with ranges of ids in place of ids, in a folder that goes afterwards.
        clock: of the executor's work; ``time.process_time`` for work in this process that others will do elsewhere,
            on machines that may be less busy than this one.
        near: a folder on the disk that the run will write to; it need not exist.

    Raises:
        AutomodelError: what the run would meet too.
    """
    text_bytes = source_bytes(source)
    wanted = max(_LEAST_BYTES, int(_SHARE * text_bytes))
    places = find_parts(source, chunk_documents, max(1, text_bytes // _PLACES))
    small = max(1, chunk_documents // _SMALLER_UNITS)

    def units() -> Iterator[Unit]:
        for place in places:
            left = wanted // len(places)
            for unit in part_units(source, place, small):
                yield unit
                left -= unit.size
                if left <= 0:
                    break

    with tempfile.TemporaryDirectory(prefix="automodel-sample-") as folder, _nameless_file(near) as out:
        tokenizer.save(folder)
        task = replace(task, tokenizer_folder=Path(folder))
        (files := Path(folder, "files")).mkdir()
        feed = sink(files).feed
        with executor.map_ordered(task, units()) as chunks:
            return _measure(chunks, feed, out.fileno(), text_bytes, len(places), clock)


def _measure(
    chunks: Iterator[tuple[Unit, TokenChunk]],
    feed: Callable[[TokenChunk], bool],
    out: int,
    text_bytes: int,
    places: int,
    clock: Callable[[], float],
) -> Sample | None:
    read = tokens = sequences = timed = written = 0
    writing_s, digest = 0.0, xxhash.xxh3_64()
    began_s = clock()
    first_s = last_s = 0.0
    for unit, chunk in chunks:
        data = chunk.tokens.tobytes()
        begin_s = clock()
        digest.update(data)
        os.write(out, data)
        writing_s, written = writing_s + clock() - begin_s, written + len(data)
        sequences += sum(len(field.lengths) for field in chunk.fields)
        count, dtype = len(chunk.tokens), chunk.tokens.dtype
        chunk.tokens = TokenRange(0, tokens, tokens + count, dtype)  # type: ignore[assignment]
        feed(chunk)
        last_s = clock()
        read, tokens = read + unit.size, tokens + count
        if not first_s:
            first_s = last_s
            continue
        timed += unit.size
        if last_s - first_s > _MOST_S:
            break
    if not tokens or not timed:
        return None
    rate, write_rate = timed / (last_s - first_s), written / writing_s
    return Sample(text_bytes, read, tokens, sequences, places, first_s - began_s, rate, write_rate)


@dataclass(frozen=True)
class Forecast:
    """What a run will take, from a sample.

    Attributes:
        max_tokens: the most that will be written.
        itemsize: bytes of a token in a file.
        workers: processes or tasks at a time; None where nobody knows yet.
        parts: bytes of each part of the source that is a task; None for a run on this machine alone, whose processes
            the sample went through.
    """

    sample: Sample
    max_tokens: int | None
    itemsize: int
    workers: int | None
    parts: Sequence[int] | None

    @property
    def core_seconds(self) -> float:
        """Time of all cores together."""
        read = self.sample.bytes_to_read(self.max_tokens) / self.sample.rate
        return read * (self.workers or 1) if self.parts is None else read + self._assembling_s

    @property
    def seconds(self) -> float | None:
        """Time until it is done, without the waiting for machines; None where the workers are not known."""
        sample, read = self.sample, self.sample.bytes_to_read(self.max_tokens)
        if self.parts is None:
            return sample.start_s + read / sample.rate
        if self.workers is None:
            return None
        part_s = [min(part, read) / sample.rate for part in self.parts]
        needed = part_s[: max(1, round(len(part_s) * read / max(1, sample.text_bytes)))]
        return sample.start_s + makespan(needed, self.workers) + self._assembling_s

    @property
    def _assembling_s(self) -> float:
        """The tokens of the parts are read, and written once more to the files."""
        tokens = self.sample.bytes_to_read(self.max_tokens) * self.sample.ratios.tokens_a_byte
        return tokens * self.itemsize / self.sample.write_rate

    def lines(self, price: float | None) -> Iterator[str]:
        """The forecast for people; ``price`` of a core for an hour."""
        sample = self.sample
        if self.parts is not None:
            at_once = "" if self.workers is None else f", {min(self.workers, len(self.parts)):,} at a time"
            yield f"plan: {plural(len(self.parts), 'task')} of one core each{at_once}"
        took = "" if self.seconds is None else f"about {duration(self.seconds)}, "
        hours = self.core_seconds / 3600
        cores = f"{hours:,.1f} core hours" if hours >= 1 else f"{60 * hours:,.1f} core minutes"
        cost = "" if price is None else f", cost {price * hours:,.2f}"
        tokenized = f"{sample.bytes / 1e6:,.1f} MB from {plural(sample.places, 'place')}: {sample.rate / 1e6:,.1f} MB/s"
        yield f"plan: {took}{cores}{cost} (tokenized {tokenized})"


def source_bytes(source: FileSource) -> int:
    """Bytes of text in all files, as units count them; of compressed files about."""
    if any(file.compression for file in source.files):
        return expected_size(source.files, source.options).bytes
    return sum(part.bytes for part in find_parts(source, 1, 1 << 62))


def _nameless_file(near: Path) -> tempfile._TemporaryFileWrapper[bytes]:
    """A file that vanishes with this process, on the disk of ``near`` if that may be written to."""
    while not near.exists() and near != near.parent:
        near = near.parent
    return tempfile.TemporaryFile(dir=near if os.access(near, os.W_OK) else None)  # type: ignore[return-value]


def makespan(sizes: Sequence[float], workers: int) -> float:
    """When the last task ends, if each begins as soon as one of ``workers`` is free, in the order of ``sizes``."""
    free_at = [0.0] * max(1, min(workers, len(sizes)))
    for size in sizes:
        heapq.heappush(free_at, heapq.heappop(free_at) + size)
    return max(free_at)
