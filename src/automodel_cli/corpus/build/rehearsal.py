"""How long a run in stages of documents will take: some of the rows really go through all of it, in a folder that goes.

The sample is read where it lies, at many places of the source, and becomes a file of its own. What is measured is this
process's time, beyond what the beginning of the sample takes alone (imports have gone before, files are opened in any
case); every stage is taken to grow with the text. The stages that compare documents do so only about: a sample
holds few of the pairs that all of it holds.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from automodel_cli.corpus.build.forecast import source_bytes
from automodel_cli.corpus.build.pipeline import NoText
from automodel_cli.corpus.documents.parts import Part, find_parts, part_units
from automodel_cli.corpus.documents.source import FileSource
from automodel_cli.corpus.documents.units import Unit
from automodel_cli.corpus.jobs.job import Job
from automodel_cli.corpus.shuffle.rows import RowBlock
from automodel_cli.errors import DataError
from automodel_cli.text import duration, plural

_SHARE = 0.01
_LEAST_BYTES, _MOST_BYTES = 2 << 20, 8 << 20
_PLACES = 24
_UNIT_DOCUMENTS = 32
_UNITS = ((3600, "hours"), (60, "minutes"), (1, "seconds"))
Clock = Callable[[], float]


@dataclass(frozen=True)
class Rehearsal:
    """What a sample took.

    Attributes:
        text_bytes: of the whole source; ``bytes``: of the sample, measured alike.
        places: of the source that it is from.
        read_s: to read it where it lies, where that is another thing than to read lines of JSON.
        stage_s: of each stage.
    """

    text_bytes: int
    bytes: int
    places: int
    read_s: float
    stage_s: Mapping[str, float]

    @property
    def scale(self) -> float:
        """How many such samples the source is."""
        return self.text_bytes / self.bytes

    def core_seconds(self, reading: frozenset[str]) -> float:
        """Time of all cores together, for the whole source; the stages ``reading`` read it."""
        return self.scale * (sum(self.stage_s.values()) + self.read_s * len(reading & self.stage_s.keys()))

    def seconds(self, reading: frozenset[str], at_once: Mapping[str, int]) -> float:
        """Time until it is done, where a stage has so many tasks at once; those that are not named have one."""
        took = {stage: own + self.read_s * (stage in reading) for stage, own in self.stage_s.items()}
        return self.scale * sum(own / max(1, at_once.get(stage, 1)) for stage, own in took.items())


def rehearse(
    source: FileSource,
    rows_of: Callable[[Unit], RowBlock],
    open_job: Callable[[Path, Path], Job],
    *,
    without: frozenset[str] = frozenset(),
    clock: Clock = time.process_time,
) -> Rehearsal | None:
    """Let a hundredth of ``source``, at most some megabytes, go through a run; None where it holds no documents.

    Args:
        open_job: makes the run of a file in an empty folder.
        without: stages that the run itself does not have.

    Raises:
        AutomodelError: what the run would meet too.
    """
    text_bytes = source_bytes(source)
    with tempfile.TemporaryDirectory(prefix="automodel-sample-") as name:
        sample = Path(name, "sample.jsonl")
        places = find_parts(source, _UNIT_DOCUMENTS, max(1, text_bytes // _PLACES))
        began_s = clock()
        wanted = min(_MOST_BYTES, max(_LEAST_BYTES, int(_SHARE * text_bytes)))
        taken = _take(source, places, rows_of, sample, wanted)
        read_s = clock() - began_s if any(file.kind != "jsonl" or file.compression for file in source.files) else 0.0
        if not sample.stat().st_size:
            return None
        beginning = Path(name, "beginning.jsonl")
        share = _copy_beginning(sample, beginning)
        try:
            took = [_stages(open_job, path, clock) for path in (beginning, beginning, sample)]
        except (NoText, DataError):  # all rows are bad: the run says so
            return None
    grown = {stage: max(0.0, own - took[1][stage]) / (1 - share) for stage, own in took[2].items()}
    return Rehearsal(text_bytes, taken, len(places), read_s, {k: own for k, own in grown.items() if k not in without})


def _take(
    source: FileSource, places: list[Part], rows_of: Callable[[Unit], RowBlock], sample: Path, wanted: int
) -> int:
    """Write rows from all places; how many bytes of the source they are."""
    taken = 0
    with sample.open("wb") as out:
        for place in places:
            left = wanted // len(places)
            for unit in part_units(source, place, _UNIT_DOCUMENTS):
                block = rows_of(unit)
                out.write(block.data[: int(block.lengths.sum())].data)
                taken, left = taken + unit.size, left - unit.size
                if left <= 0:
                    break
    return taken


def _copy_beginning(sample: Path, beginning: Path) -> float:
    """A sixteenth of the rows, at least one; which share of the sample they are, less than all."""
    size = sample.stat().st_size
    with sample.open("rb") as rows, beginning.open("wb") as out:
        while out.tell() < size // 16 or not out.tell():
            out.write(rows.readline())
        return min(0.5, out.tell() / size)


def _stages(open_job: Callable[[Path, Path], Job], sample: Path, clock: Clock) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=sample.parent) as folder:
        return _timed(open_job(sample, Path(folder)), clock)


def _timed(job: Job, clock: Clock) -> dict[str, float]:
    job.begin()
    took = {}
    for stage in job.stages:
        began_s = clock()
        for task in range(job.tasks(stage)):
            job.run_task(stage, task, lambda report: None)
        took[stage] = clock() - began_s
    return took


def in_words(
    found: Rehearsal, reading: frozenset[str], at_once: Mapping[str, int] | None, *, compares: bool
) -> Iterator[str]:
    """The forecast for people.

    Args:
        at_once: as of ``Rehearsal.seconds``; None where nobody knows how many there will be.
        compares: whether stages compare documents.
    """
    core_s = found.core_seconds(reading)
    took = "" if at_once is None else f"about {duration(found.seconds(reading, at_once))}, "
    size, unit = next((one for one in _UNITS if core_s >= one[0]), _UNITS[-1])
    cores = f"{core_s / size:,.1f} core {unit}"
    sample = f"{found.bytes / 1e6:,.1f} MB from {plural(found.places, 'place')} went through all stages"
    yield f"plan: {took}{cores} ({sample}: {found.text_bytes / 1e6 / max(core_s, 1e-9):,.1f} MB/s a core)"
    if compares:
        yield "plan: a source that repeats itself more than its sample takes longer"
