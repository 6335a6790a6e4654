"""Cuts JSON arrays, or objects one after another, between their values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from automodel_cli.corpus.documents.compressed import stream_errors
from automodel_cli.corpus.documents.cutting.cut import Cut, open_stream
from automodel_cli.corpus.documents.json_values import iter_json
from automodel_cli.corpus.documents.listing import SourceFile
from automodel_cli.corpus.documents.units import BadRow, ReadOptions, Unit, document_of


def is_json_lines(file: SourceFile, options: ReadOptions) -> bool:
    """Whether a .json file holds an object a line, as many do."""
    with stream_errors(file.name), open_stream(file, options) as stream:
        first = stream.readline(16 << 20)
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def cut_json_values(cut: Cut, at: int) -> Iterator[Unit]:
    """JSON arrays, or objects one after another, decoded here and handed over as texts."""
    held: list[Any] = []
    size = 0
    with stream_errors(cut.file.name), cut.open() as stream:
        for number, (value, length) in enumerate(iter_json(stream, cut.file.name, cut.max_bytes)):
            if number < at:
                continue
            if held and cut.is_long(length):
                yield cut.unit("values", at, payload=held, size=size, rows=len(held))
                at, held, size = number, [], 0
            held.append(value if isinstance(value, BadRow) else document_of(value, cut.options))
            size += length
            del value
            if size >= cut.chunk_bytes:
                alone = cut.is_long(size)
                yield cut.unit("values", at, payload=held, size=size, rows=len(held), alone=alone)
                at, held, size = number + 1, [], 0
    if held:
        yield cut.unit("values", at, payload=held, size=size, rows=len(held))
