"""Files of other kinds are named and refused; nanoGPT's own headerless files are read without a word more."""

from __future__ import annotations

import gzip
import io
import json
import re
import shlex
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from safetensors.numpy import save

from automodel_cli.corpus.documents.listing import is_local, list_files
from automodel_cli.corpus.formats.megatron_bin import inspect_prefix
from automodel_cli.corpus.formats.nanogpt_bin import MAGIC, inspect_token_file
from automodel_cli.corpus.formats.token_reader import TokenReader
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
        (b"PAR1\x15\0" + TEXT, "parquet"),
        (save({"w": np.zeros((8, 8), np.float32)}), "safetensors"),
        (b"MMIDIDX\0\0" + bytes(99), "index of Megatron"),
        (_llm_c(20240326), "weights of a GPT-2"),
        (_llm_c(20240522), "multiple-choice"),
        (TEXT, "looks like text"),
        ("Ein süßer Text über Äpfel, 数学, и так далее.\n".encode() * 300, "looks like text"),
        (
            b"".join(json.dumps({"text": "a" * n}).encode() + b"\n" for n in range(400)),
            "looks like JSON lines",
        ),
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


# ------------------------------------------------------------------------------- the command that was meant


def said(call, *arguments, **more) -> str:
    """The error of a call, as a user sees it: message and hint."""
    with pytest.raises(DataError) as caught:
        call(*arguments, **more)
    return str(caught.value)


def commands_in(text: str) -> list[list[str]]:
    """The commands that a text shows, as a shell would take them."""
    return [shlex.split(part) for part in re.findall(r"automodel (?:[^;(\n]|\n(?!  ))*", text)]


@pytest.fixture
def kinds(tmp_path: Path) -> Path:
    """A folder, with a space in its name, of every kind of file that newcomers confuse."""
    folder = tmp_path / "my data"
    folder.mkdir()
    ids = _ids(50_257, 5000, "<u2")
    (folder / "text.txt").write_bytes(TEXT)
    (folder / "rows.jsonl").write_bytes(b'{"text": "some words"}\n' * 200)
    pq.write_table(pa.table({"text": ["words"] * 100}), folder / "rows.parquet")
    (folder / "nemo.bin").write_bytes(struct.pack("<4i", MAGIC, 1, 5000, 2).ljust(1024, b"\0") + ids.tobytes())
    (folder / "llm_c.bin").write_bytes(struct.pack("<3i", 20240520, 1, 5000).ljust(1024, b"\0") + ids.tobytes())
    ids.tofile(folder / "train.bin")
    (ids % 65).tofile(folder / "char.bin")
    _ids(100_000, 5000, "<u4").tofile(folder / "wide.bin")
    np.save(folder / "ids.npy", ids)
    ids.tofile(folder / "pair_text_document.bin")
    (folder / "pair_text_document.idx").write_bytes(b"MMIDIDX\0\0" + struct.pack("<QB", 1, 8) + bytes(99))
    return folder


@pytest.mark.parametrize(
    ("name", "what", "key"),
    [
        ("nemo.bin", "a file of token ids", "--dataset.file_pattern="),
        ("llm_c.bin", "a file of token ids", "--dataset.file_pattern="),
        ("train.bin", "token ids without a header", "--dataset.file_pattern="),
        ("char.bin", "token ids without a header", "--dataset.file_pattern="),
        ("wide.bin", "token ids without a header", "--dataset.raw_dtype=uint32"),
        ("ids.npy", "a NumPy array", "--dataset.raw_dtype=npy"),
        ("pair_text_document.bin", "token ids without a header", "--dataset.paths="),
        ("pair_text_document.idx", "the index of Megatron's files", "--dataset.paths="),
        ("pair_text_document", "the prefix of Megatron's token files", "--dataset.paths="),
    ],
)
def test_ids_given_as_text(kinds: Path, name: str, what: str, key: str) -> None:
    ask = is_local if name == "pair_text_document" else list_files
    text = said(ask, str(kinds / name))
    (command,) = commands_in(text)
    assert what in text and "expected text" in text
    assert command[:5] == ["automodel", "pretrain", "llm", "-c", "cfg.yaml"]
    path = kinds / name.removesuffix(".bin").removesuffix(".idx") if "paths" in key else kinds / name
    assert command[5].partition("=")[2] == str(path)
    assert any(word.startswith(key) for word in command)


def test_a_folder_of_ids_given_as_text(kinds: Path) -> None:
    for path in kinds.iterdir():
        if path.suffix != ".bin":
            path.unlink()
    text = said(list_files, str(kinds))
    assert "is a folder of token files" in text and commands_in(text)[0][1] == "pretrain"
    (kinds / "manifest.json").write_text("{}")
    assert "is a folder of token files" in said(list_files, str(kinds))


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("text.txt", "looks like text"),
        ("rows.jsonl", "looks like JSON lines"),
        ("rows.parquet", "a parquet file"),
    ],
)
def test_text_given_as_ids(kinds: Path, name: str, what: str) -> None:
    path = kinds / name
    text = said(inspect_token_file, path)
    assert what in text and "expected token ids" in text
    assert commands_in(text)[0][:5] == ["automodel", "preprocess", "nanogpt", "--dataset", str(path)]
    text = said(inspect_prefix, path)
    assert commands_in(text)[0][:5] == ["automodel", "preprocess", "megatron", "--input", str(path)]


def test_each_kind_of_token_file_where_the_other_is_expected(kinds: Path) -> None:
    assert "MegatronPretraining reads it" in said(inspect_token_file, kinds / "pair_text_document.idx")
    assert "NanogptDataset reads it" in said(inspect_prefix, kinds / "nemo")
    assert "without its index" in said(inspect_prefix, kinds / "train")


def test_short_beginnings_are_no_kind_of_ids(tmp_path: Path) -> None:
    """An id of GPT-2's may be the first two bytes of a pickle, of a picture or of UTF-16 text."""
    for begin in (b"\x80\x02", b"\x1f\x9d", b"\xff\xfe"):
        ids = np.concatenate([np.frombuffer(begin, "<u2"), _ids(50_257, 999, "<u2")])
        ids.tofile(tmp_path / "train.bin")
        assert inspect_token_file(tmp_path / "train.bin").num_tokens == 1000
