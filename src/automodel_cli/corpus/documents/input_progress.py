"""How much of the input is done with each unit, by what the files take on the disk: what every bar of progress shows.

Text is measured in bytes, parquet in rows; of a compressed file it is an estimate from its beginning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

from automodel_cli.corpus.documents.compressed import likely_expansion
from automodel_cli.corpus.documents.listing import SourceFile
from automodel_cli.corpus.documents.units import ReadOptions, Unit


def with_shares_done(
    units: Iterator[Unit], files: Sequence[SourceFile], options: ReadOptions
) -> Iterator[Unit]:
    """The same units, which come in the order of their files, with ``through``."""
    before = list(accumulate((file.bytes for file in files), initial=0))
    file: _File | None = None
    for unit in units:
        if file is None or file.index != unit.file:
            file = _File(unit, files[unit.file], options)
        share = file.share_with(unit)
        done = before[unit.file] + (unit.size if unit.kind == "files" else share * files[unit.file].bytes)
        held = [replace(unit, through=min(1.0, done / max(1, before[-1])))]
        del unit  # it may hold the largest document there is
        yield held.pop()


class _File:
    """One file: how large it is in its own measure, and how much of that is done."""

    def __init__(self, first: Unit, file: SourceFile, options: ReadOptions) -> None:
        self.index, self.by_rows = first.file, file.kind == "parquet" and not file.not_text
        at = first.cursor["at"]
        if self.by_rows:
            from automodel_cli.corpus.documents import columns  # pyarrow, which other files do not need

            rows = [group.rows for group in columns.inspect_parquet(file.path, file.name, options)]
            self.whole, self.done = float(sum(rows)), sum(rows[:at]) + first.cursor.get("row", 0)
        else:
            packed = file.compression
            self.whole = file.bytes * (likely_expansion(file.path, file.name, packed) if packed else 1.0)
            self.done = 0 if first.kind == "values" else at  # those are counted, not measured

    def share_with(self, unit: Unit) -> float:
        """The part of the file that is done with this unit."""
        self.done += (unit.rows or 0) if self.by_rows else unit.size
        return min(1.0, self.done / max(1.0, self.whole))
