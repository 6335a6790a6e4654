"""Files that are cut off or overwritten while they are read: an error that names them, not a dead process."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.token_files import write_token_file

from automodel_cli.corpus.formats.nanogpt_bin import inspect_token_file
from automodel_cli.corpus.formats.token_reader import TokenReader
from automodel_cli.corpus.formats.watched_file import WatchedFile
from automodel_cli.errors import DataError

_READER = """
import os, sys
import numpy as np
from automodel_cli.data.nanogpt_dataset import NanogptDataset
from automodel_cli.errors import DataError
path = sys.argv[1]
data = NanogptDataset(path, 64, shuffle_files=True, mmap=sys.argv[2] == "True")
out = np.empty((8, 65), dtype=np.int64)
data.read_samples(np.arange(8), out)
os.truncate(path, 5000)
try:
    for first in range(8, 4000, 8):
        data.read_samples(np.arange(first, first + 8), out)
except DataError as error:
    print(error.message)
"""


@pytest.mark.parametrize("mmap", [True, False])
def test_a_file_cut_off_under_a_reader_is_named(tmp_path: Path, mmap: bool) -> None:
    """In a process of its own: reading a mapping behind the end of its file kills it."""
    path = tmp_path / "train.bin"
    write_token_file(path, np.zeros(1_000_000, np.uint16))
    command = [sys.executable, "-c", _READER, str(path), str(mmap)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done
    assert "train.bin" in done.stdout and ("5,000 bytes long" in done.stdout or "ended while" in done.stdout)


def test_reads_of_a_reader_are_guarded(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_token_file(path, np.arange(9000, dtype=np.uint16))
    reader = TokenReader(inspect_token_file(path))
    os.truncate(path, 1200)
    with pytest.raises(DataError, match="1,200 bytes long, expected 19,024"):
        reader.read(8000, 10)


def test_overwritten_in_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.bin"
    write_token_file(path, np.arange(9000, dtype=np.uint16))
    reader = TokenReader(inspect_token_file(path))
    os.utime(path, ns=(1, 1))
    with caplog.at_level(logging.WARNING):
        for _ in range(200):
            reader.check()
    assert len(caplog.records) == 1 and "was written to" in caplog.text
    with path.open("r+b") as handle:
        handle.seek(1024)
        handle.write(b"\xff" * 100)
    os.utime(path, ns=(2, 2))
    with pytest.raises(DataError, match="was overwritten"):
        for _ in range(200):
            reader.check()


def test_shorter_than_it_has_to_be(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    with pytest.raises(DataError, match="3 bytes long, expected 10"):
        WatchedFile(tmp_path / "a", 10)
