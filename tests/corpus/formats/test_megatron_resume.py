"""A pair goes on from what a journal noted, at whichever moment of writing and publishing the process ended."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from automodel_cli.corpus.formats.megatron_bin import bin_path, idx_path
from automodel_cli.corpus.formats.megatron_writer import MegatronWriter, can_reopen, reopen

U2 = np.dtype("<u2")
SYNCED = (5, 2, 3)  # tokens, sequences, documents


class Killed(BaseException):
    """Stands for a process that is no more: nothing is cleaned up."""


def write(writer: MegatronWriter, first: int) -> None:
    tokens = np.arange(first, first + 5, dtype=U2)
    writer.write(tokens, np.array([2, 3]), np.array([1, 0, 1]))


def expected(folder: Path) -> tuple[bytes, bytes]:
    writer = MegatronWriter(folder / "whole", dtype=U2)
    write(writer, 0)
    write(writer, 5)
    writer.close()
    return bin_path(folder / "whole").read_bytes(), idx_path(folder / "whole").read_bytes()


def die_at(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, number: int) -> None:
    original: Callable = getattr(owner, name)
    calls = [0]

    def counted(*args: object, **kwargs: object) -> object:
        calls[0] += 1
        if calls[0] == number:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)


STEPS = [
    *(("fsync", number) for number in range(1, 7)),
    *(("replace", number) for number in (1, 2)),
    *(("unlink", number) for number in (1, 2)),
]


@pytest.mark.parametrize(("name", "number"), [*STEPS, ("fsync", 99)])
def test_killed_at_every_step_of_publishing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    whole = expected(tmp_path)
    prefix = tmp_path / "x"
    writer = MegatronWriter(prefix, dtype=U2)
    write(writer, 0)
    assert writer.sync() == SYNCED
    write(writer, 5)
    with monkeypatch.context() as patch:
        die_at(patch, Path if name == "unlink" else os, name, number)
        if number == 99:
            writer.close()
        else:
            with pytest.raises(Killed):
                writer.close()
    for file in writer._pieces:  # what a kernel has of a dead process
        if not file.handle.closed:
            file.handle.close()
    assert can_reopen(prefix, U2, SYNCED)
    reopen(prefix, U2, SYNCED)
    reopen(prefix, U2, SYNCED)  # may itself have been interrupted at its end
    assert not idx_path(prefix).exists() and not bin_path(prefix).exists()
    again = MegatronWriter(prefix, dtype=U2, synced=SYNCED)
    write(again, 5)
    again.close()
    assert (bin_path(prefix).read_bytes(), idx_path(prefix).read_bytes()) == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["whole.bin", "whole.idx", "x.bin", "x.idx"]


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6])
def test_taking_a_pair_back_may_be_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    whole = expected(tmp_path)
    for suffix in (".bin", ".idx"):
        shutil.copy(tmp_path / f"whole{suffix}", tmp_path / f"x{suffix}")
    prefix = tmp_path / "x"
    with monkeypatch.context() as patch:
        die_at(patch, os, "fsync", number)
        with pytest.raises(Killed):
            reopen(prefix, U2, SYNCED)
            raise Killed
    assert can_reopen(prefix, U2, SYNCED)
    reopen(prefix, U2, SYNCED)
    writer = MegatronWriter(prefix, dtype=U2, synced=SYNCED)
    write(writer, 5)
    writer.close()
    assert (bin_path(prefix).read_bytes(), idx_path(prefix).read_bytes()) == whole


def test_what_is_not_there_cannot_be_reopened(tmp_path: Path) -> None:
    expected(tmp_path)
    prefix = tmp_path / "whole"
    assert can_reopen(prefix, U2, (10, 4, 6)) and not can_reopen(prefix, U2, (11, 4, 6))
    assert not can_reopen(prefix, np.dtype("<i4"), SYNCED)
    idx_path(prefix).unlink()
    assert not can_reopen(prefix, U2, SYNCED)  # its lengths are gone with it
    assert not can_reopen(tmp_path / "y", U2, SYNCED)
    data = bin_path(tmp_path / "z")
    data.write_bytes(b"x" * 4)
    idx_path(tmp_path / "z").write_bytes(b"no index")
    assert not can_reopen(tmp_path / "z", U2, SYNCED)
