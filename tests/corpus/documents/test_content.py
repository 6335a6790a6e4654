"""What a file is by its first bytes, compared with what the libraries that define the formats write."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from automodel_cli.corpus.documents.content import look_inside
from automodel_cli.corpus.formats.nanogpt_bin import LEGACY_MAGIC, MAGIC

PACK = {"": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.compress}


def look(tmp_path: Path, data: bytes):
    (tmp_path / "f").write_bytes(data)
    return look_inside(str(tmp_path / "f"), "f")


def archive(format: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        info = tarfile.TarInfo("a.txt")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"hello"))
    return out.getvalue()


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("a.txt", "hello")
    return out.getvalue()


def npy() -> bytes:
    out = io.BytesIO()
    np.save(out, np.arange(5, dtype=np.uint16))
    return out.getvalue()


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4)


NOT_TEXT = {
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n",
        "the pointer of a Git LFS file, not its content",
    ),
    "tar": (archive(tarfile.PAX_FORMAT), "a tar archive"),
    "gnu tar": (archive(tarfile.GNU_FORMAT), "a tar archive"),
    "old tar": (archive(tarfile.USTAR_FORMAT).replace(b"ustar", b"ustar"), "a tar archive"),
    "zip": (zipped(), "a zip archive (.zip, .npz, or a checkpoint of torch.save)"),
    "npy": (npy(), "a NumPy array"),
    "pickle": (pickle.dumps([1]), "a Python pickle"),
    "safetensors": (safetensors(), "a safetensors file"),
    "nemo": (np.array([MAGIC, 1, 0, 2], "<i4").tobytes(), "a file of token ids"),
    "llm.c": (np.array([LEGACY_MAGIC, 1], "<i4").tobytes(), "a file of token ids"),
    "llm.c llama": (np.array([20240801, 7], "<i4").tobytes(), "a file of token ids"),
    "idx": (b"MMIDIDX\0\0" + bytes(30), "the index of Megatron's files"),
    "utf-16": ("text".encode("utf-16"), "UTF-16 text"),
}


@pytest.mark.parametrize("compression", PACK)
@pytest.mark.parametrize("name", NOT_TEXT)
def test_what_is_no_text_also_inside(tmp_path: Path, name: str, compression: str) -> None:
    data, what = NOT_TEXT[name]
    found = look(tmp_path, PACK[compression](data))
    assert (found.compression, found.not_text) == (compression, what)


@pytest.mark.parametrize("compression", PACK)
def test_compression_and_shape(tmp_path: Path, compression: str) -> None:
    shapes = {
        '{"text": "a"}\n{"text": "b"}\n': "jsonl",
        '\ufeff\n  {"a": 1}': "jsonl",
        '{\n  "text": "a"\n}\n': "json",
        '[{"text": "a"}]': "json",
        '{"text": "' + "x" * 100_000 + '"}\n': "jsonl",
        "[1] a note": "",
        "{not json}": "",
        '{"quoted"} is not json': "",
        "plain text": "",
        "": "",
    }
    for text, shape in shapes.items():
        found = look(tmp_path, PACK[compression](text.encode()))
        assert (found.compression, found.shape, found.not_text, found.is_parquet) == (
            compression,
            shape,
            "",
            False,
        )


def test_parquet_and_text_that_only_begins_like_something(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    assert look_inside(str(tmp_path / "a.parquet"), "a").is_parquet
    for text in (b"PAR1 is a magic number", b"GGUF is a format", b"BZh9 too", b"ORC and troll", b"Obj"):
        found = look(tmp_path, text)
        assert (found.compression, found.not_text, found.is_parquet) == ("", "", False)
