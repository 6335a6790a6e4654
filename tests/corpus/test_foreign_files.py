"""Files of other kinds are named and refused; nanoGPT's own headerless files are read without a word more."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zstandard
from safetensors.numpy import save

from automodel_cli.corpus.nanogpt_bin import TokenReader, inspect_token_file
from automodel_cli.errors import DataError

TEXT = b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * 200


def _tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"), None)
    return stream.getvalue()


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.txt", TEXT)
    return stream.getvalue()


def _llm_c(magic: int) -> bytes:
    return struct.pack("<3i", magic, 3, 1024).ljust(1024, b"\0") + b"\1\2\3\4" * 500


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (gzip.compress(TEXT), "gzip"),
        (zstandard.compress(TEXT), "zstandard"),
        (_zip(), "zip archive"),
        (_tar(), "tar archive"),
        (b"PAR1" + TEXT, "parquet"),
        (save({"w": np.zeros((8, 8), np.float32)}), "safetensors"),
        (b"MMIDIDX\0\0" + bytes(99), "index of Megatron"),
        (_llm_c(20240326), "weights of a GPT-2"),
        (_llm_c(20240522), "multiple-choice"),
        (TEXT, "looks like text"),
        ("Ein süßer Text über Äpfel, 数学, и так далее.\n".encode() * 300, "looks like text"),
        (b"".join(json.dumps({"text": "a" * n}).encode() + b"\n" for n in range(400)), "looks like text"),
        (
            "Der Fluß führt an größeren Städten vorbei nach Süden.\n".encode("latin-1") * 301,
            "looks like text",
        ),
    ],
)
def test_other_kinds_are_named(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "train.bin"
    path.write_bytes(content + b" " * (len(content) % 2))
    with pytest.raises(DataError, match=what):
        inspect_token_file(path)


def _ids(vocabulary: int, count: int, dtype: str) -> np.ndarray:
    """Ids that are spread as those of text are: a few very often."""
    rare = np.random.default_rng(0).pareto(0.3, count)
    return np.minimum(rare * 3, vocabulary - 1).astype(dtype)


@pytest.mark.parametrize("count", [1, 2, 5, 8, 60, 1000, 100_000])
@pytest.mark.parametrize("vocabulary", [2, 7, 65, 256, 4096, 32_000, 50_257, 65_536])
def test_headerless_files_of_nanogpt_go_on_working(tmp_path: Path, vocabulary: int, count: int) -> None:
    path = tmp_path / "train.bin"
    for ids in (_ids(vocabulary, count, "<u2"), np.arange(count) % vocabulary):
        ids.astype("<u2").tofile(path)
        file = inspect_token_file(path)
        assert (file.layout, file.dtype, file.num_tokens) == ("raw", np.dtype("<u2"), count)
        assert file.assumed


@pytest.mark.parametrize("dtype", ["<u4", "<i8"])
@pytest.mark.parametrize("vocabulary", [65, 50_257, 128_256, 262_144])
def test_wider_ids_are_not_read_as_pairs(tmp_path: Path, vocabulary: int, dtype: str) -> None:
    path = tmp_path / "train.bin"
    _ids(vocabulary, 5000, dtype).tofile(path)
    with pytest.raises(DataError, match="looks like 32-bit ids"):
        inspect_token_file(path)


def test_raw_dtype_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    _ids(100_000, 5000, "<u4").tofile(path)
    assert inspect_token_file(path, raw_dtype="uint32").num_tokens == 5000
    assert not inspect_token_file(path, raw_dtype="uint16").assumed
    path.write_bytes(TEXT)
    assert inspect_token_file(path, raw_dtype="uint16").num_tokens == len(TEXT) // 2


def test_the_type_is_taken_from_a_megatron_index_beside_it(tmp_path: Path) -> None:
    _ids(100_000, 5000, "<u4").tofile(tmp_path / "a.bin")
    (tmp_path / "a.idx").write_bytes(b"MMIDIDX\0\0" + struct.pack("<QB", 1, 4) + bytes(16))
    assert inspect_token_file(tmp_path / "a.bin").dtype == np.dtype("<u4")


def test_llama3_files_of_llm_c(tmp_path: Path) -> None:
    """llm.c's dev/data/data_common.py: 256 int32 (magic, version 7, count), then uint32."""
    path, ids = tmp_path / "train.bin", _ids(128_256, 3000, "<u4")
    path.write_bytes(struct.pack("<3i", 20240801, 7, 3000).ljust(1024, b"\0") + ids.tobytes())
    file = inspect_token_file(path)
    assert (file.layout, file.num_tokens) == ("llama3", 3000)
    np.testing.assert_array_equal(TokenReader(file).read(0, 3000), ids)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="3,000 tokens"):
        inspect_token_file(path)


@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<i4", "<i8"])
def test_numpy_files_are_read_where_they_are_meant(tmp_path: Path, dtype: str) -> None:
    path, ids = tmp_path / "ids.npy", _ids(50_257, 3000, dtype)
    np.save(path, ids)
    with pytest.raises(DataError, match=r"a \.npy file") as caught:
        inspect_token_file(path)
    assert "raw_dtype: npy" in caught.value.hint
    np.testing.assert_array_equal(TokenReader(inspect_token_file(path, raw_dtype="npy")).read(0, 3000), ids)


@pytest.mark.parametrize(
    "content",
    [
        b"\x93NUMPY\x01\x00\xff\xff" + b"{" * 100,
        b"\x93NUMPY\x09\x00",
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}",
    ],
)
def test_damaged_numpy_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ids.npy").write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        inspect_token_file(tmp_path / "ids.npy", raw_dtype="npy")


@pytest.mark.parametrize("array", [np.zeros(9), np.zeros((3, 3), int), np.array(["a"])])
def test_numpy_files_of_something_else(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "ids.npy", array)
    with pytest.raises(DataError, match="expected one row of integers"):
        inspect_token_file(tmp_path / "ids.npy", raw_dtype="npy")


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.bin")
    for path in (tmp_path / "pipe.bin", tmp_path):
        with pytest.raises(DataError, match="folder, pipe or device"):
            inspect_token_file(path)
