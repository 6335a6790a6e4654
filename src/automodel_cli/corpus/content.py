"""What a file holds by its first bytes: its name may say nothing, or something wrong.

| begins with                    | is                                          | what becomes of it                   |
|--------------------------------|---------------------------------------------|--------------------------------------|
| magic of gz, bz2, xz, zst      | compressed                                  | unpacked while it is read            |
| magic of an archive, of token  | no text: training on it would be noise      | refused; in a folder of texts a bad  |
| files, of tables and arrays    |                                             | row with that reason                 |
| ``{"key":``, ``[{"key":``      | JSON lines, or one JSON value               | refused where the name says nothing, |
|                                |                                             | said where it says text              |

Sources: the file formats' own specifications; RFC 1952 (gz), RFC 8878 (zst), POSIX pax (tar).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal

from automodel_cli.corpus.compressed import compression_of, first_bytes
from automodel_cli.corpus.foreign_files import LFS_POINTER, LFS_PULL, NPY_MAGIC
from automodel_cli.corpus.nanogpt_bin import LEGACY_MAGIC, LLAMA3_MAGIC, MAGIC

Shape = Literal["", "jsonl", "json"]
_HEAD_BYTES = 16 << 10
_TOKENS = "a file of token ids, not text"
_LFS = "the pointer of a Git LFS file, not its content"
_MAGICS = {
    MAGIC.to_bytes(4, "little"): _TOKENS,
    LEGACY_MAGIC.to_bytes(4, "little"): _TOKENS,
    LLAMA3_MAGIC.to_bytes(4, "little"): _TOKENS,
    b"MMIDIDX\0\0": "the .idx of Megatron's token files, not text",
    NPY_MAGIC: "a NumPy array, not text",
    b"PK\x03\x04": "a zip archive",
    b"PK\x05\x06": "a zip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a rar archive",
    b"\x04\x22\x4d\x18": "compressed with lz4, which is not read here",
    b"\x1f\x9d": "compressed with compress (.Z), which is not read here",
    b"LZIP\x01": "compressed with lzip, which is not read here",
    b"\x5d\x00\x00\x80\x00": "compressed as .lzma, which is not read here",
    b"ARROW1\0\0": "an Arrow file; only .parquet is read",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"SQLite format 3\0": "an SQLite database",
    b"Obj\x01": "an Avro file",
    b"\x7fELF": "a program",
    b"\x89PNG\r\n": "an image",
    b"\xff\xd8\xff": "an image",
    b"%PDF-": "a PDF document",
    LFS_POINTER: _LFS,
    b"\xff\xfe": "UTF-16 text, not UTF-8",
    b"\xfe\xff": "UTF-16 text, not UTF-8",
    **{bytes([0x80, version]): "a Python pickle" for version in range(2, 6)},
    **{b"GGUF" + bytes([version, 0, 0, 0]): "a GGUF model" for version in range(1, 4)},
}
_WHAT_TO_DO = {
    _LFS: LFS_PULL,
    _TOKENS: "train on it with dataset.file_pattern; preprocess reads text",
    "a NumPy array, not text": "train on ids with dataset.file_pattern; preprocess reads text",
    "UTF-16 text, not UTF-8": "convert it: iconv -f UTF-16 -t UTF-8",
}
_FIRST_KEY = re.compile(rb'\s*\{\s*(?:"(?:[^"\\]|\\.)*"\s*:|\})')


@dataclass(frozen=True)
class Content:
    """What the first bytes say.

    Attributes:
        compression: how the file is compressed, or "".
        is_parquet: whether what is inside is a parquet file.
        not_text: what it is that cannot be read, for people; "" if nothing speaks against text.
        shape: whether it looks like JSON lines or one JSON value.
        has_nulls: whether there are zero bytes, which text hardly has.
    """

    compression: str
    is_parquet: bool = False
    not_text: str = ""
    shape: Shape = ""
    has_nulls: bool = False

    @property
    def advice(self) -> str:
        """What to do with a file that is ``not_text``."""
        if "archive" in self.not_text or "compressed" in self.not_text:
            return "unpack it first, and name the files in it"
        return _WHAT_TO_DO.get(self.not_text, "leave it out, or extract its text first")


def look_inside(path: str, name: str) -> Content:
    """What the file at ``path`` holds, compressed or not.

    Raises:
        DataError: it cannot be read. (Damage further on is for who reads it in earnest.)
    """
    head = first_bytes(path, name, "", _HEAD_BYTES)
    compression = compression_of(head)
    if compression:
        head = first_bytes(path, name, compression, _HEAD_BYTES)
    return Content(
        compression,
        head.startswith(b"PAR1") and b"\0" in head,
        _not_text(head),
        _shape(head),
        b"\0" in head,
    )


def _not_text(head: bytes) -> str:
    for magic, what in _MAGICS.items():
        if head.startswith(magic):
            return what
    if _is_tar(head):
        return "a tar archive"
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") < 1 << 27:
        return "a safetensors file, not text"
    return ""


def _is_tar(head: bytes) -> bool:
    """Whether a block of a tar archive is at the beginning: the sum of its bytes is written in it, in octal digits."""
    block = head[:512]
    digits = block[148:156].strip(b" \0")
    if len(block) < 512 or not digits or digits.strip(b"01234567"):
        return False
    return int(digits, 8) == sum(block) - sum(block[148:156]) + 8 * 0x20


def _shape(head: bytes) -> Shape:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"["):
        return "json" if _FIRST_KEY.match(text, 1) else ""
    if not _FIRST_KEY.match(text):
        return ""
    first, end, _ = text.partition(b"\n")
    return "jsonl" if not end or _is_object(first) else "json"


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
