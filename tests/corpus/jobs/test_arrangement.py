"""The ids of a file from ranges of parts, against taking them one by one."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
import xxhash

from automodel_cli.corpus.documents.units import TokenChunk, Unit
from automodel_cli.corpus.jobs import arrangement, part_files
from automodel_cli.corpus.jobs.arrangement import Arrangement, PlannedFile, file_entry, write_ids
from automodel_cli.corpus.jobs.part_files import PartWriter, part_path, read_header
from automodel_cli.corpus.jobs.token_range import RangeLog, TokenRange, read_ranges
from automodel_cli.corpus.jobs.work_folder import JobError

DTYPE = np.dtype("<u4")


def write_parts(folder: Path) -> tuple[list[np.ndarray], tuple[str, ...]]:
    ids, headers = [], []
    for number in range(3):
        ids.append(np.arange(number * 1000, number * 1000 + 300, dtype=DTYPE))
        writer = PartWriter(folder, number, DTYPE)
        writer.write(Unit("jsonl", "a", 0, {}), TokenChunk.of_documents(ids[-1], np.array([300])))
        writer.close()
        headers.append(read_header(part_path(folder, number)).header_file)
    return ids, tuple(headers)


@pytest.mark.parametrize("seed", range(6))
def test_ids_are_those_that_the_ranges_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(part_files, "BLOCK_BYTES", 128)
    monkeypatch.setattr(arrangement, "_RANGES_AT_ONCE", 3)
    rng = random.Random(seed)
    ids, headers = write_parts(tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "x/a.idx").write_bytes(b"index")
    expected = []
    with (tmp_path / "x/a.ranges").open("wb") as out:
        log = RangeLog(out)
        for _ in range(20):
            part, start = rng.randrange(3), rng.randrange(300)
            piece = TokenRange(part, 0, 300, DTYPE)[start : start + rng.randrange(60)]
            cut = rng.randrange(len(piece) + 1)  # two that adjoin become one
            log.add(piece[:cut])
            log.add(piece[cut:])
            expected += ids[part][piece.start : piece.stop].tolist()
        log.flush()
    assert len(read_ranges(tmp_path / "x/a.ranges")) <= 20
    first = rng.randrange(len(expected))
    tokens = rng.randrange(1, len(expected) - first + 1)
    planned = PlannedFile("a.bin", "a.idx", tmp_path / "x/a.ranges", tmp_path / "x/a.idx", first, tokens)
    entry, made = file_entry(tmp_path / "x", planned), Arrangement(folder="x", parts=headers)
    out = io.BytesIO()
    digest = write_ids(out, b"head", entry, tmp_path, made, 4)
    assert out.getvalue() == b"head" + np.array(expected[first : first + tokens], DTYPE).tobytes()
    assert digest == f"xxh3:{xxhash.xxh3_64_hexdigest(out.getvalue())}"
    with pytest.raises(JobError, match="ids are missing"):
        too_many = entry.model_copy(update={"tokens": len(expected) + 1})
        write_ids(io.BytesIO(), b"", too_many, tmp_path, made, 4)


def test_a_range_slices_as_an_array_does() -> None:
    for pieces in (
        (slice(2, 5),),
        (slice(None, 3), slice(1, None)),
        (slice(50, 60),),
        (slice(7, 3),),
        (slice(-2, None),),
    ):
        array, ranges = np.arange(10), TokenRange(0, 100, 110, DTYPE)
        for piece in pieces:
            array, ranges = array[piece], ranges[piece]
        assert len(ranges) == len(array) and (len(array) == 0 or ranges.start == 100 + array[0])
