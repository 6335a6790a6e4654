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

from automodel_cli.corpus.documents.compressed import Compression, compression_of, first_bytes
from automodel_cli.corpus.formats.foreign_files import FileKind, kind_of, looks_wide
from automodel_cli.corpus.formats.nanogpt_bin import has_header

Shape = Literal["", "jsonl", "json"]
_HEAD_BYTES = 16 << 10
_TOKENS = FileKind("a file of token ids", "ids")
_FIRST_KEY = re.compile(rb'\s*\{\s*(?:"(?:[^"\\]|\\.)*"\s*:|\})')


@dataclass(frozen=True)
class Content:
    """What the first bytes say.

    Attributes:
        compression: how the file is compressed, or "".
        kind: what it is that is no text; None if nothing speaks against text.
        shape: whether it looks like JSON lines or one JSON value.
        has_nulls: whether there are zero bytes, which text hardly has.
        is_wide: whether it looks like 32-bit numbers.
    """

    compression: Compression
    kind: FileKind | None = None
    shape: Shape = ""
    has_nulls: bool = False
    is_wide: bool = False

    @property
    def not_text(self) -> str:
        """What it is that is no text, for people; "" if nothing speaks against text."""
        return self.kind.what if self.kind else ""

    @property
    def is_parquet(self) -> bool:
        """Whether what is inside is a parquet file."""
        return self.kind is not None and self.kind.group == "table"


def look_inside(path: str, name: str) -> Content:
    """What the file at ``path`` holds, compressed or not.

    Raises:
        DataError: it cannot be read. (Damage further on is for who reads it in earnest.)
    """
    head = first_bytes(path, name, "", _HEAD_BYTES)
    if compression := compression_of(head):
        return look_at(first_bytes(path, name, compression, _HEAD_BYTES), compression)
    return look_at(head)


def look_at(data: bytes, compression: Compression | None = None) -> Content:
    """What the beginning of a file says; ``compression``: how it was before it was unpacked."""
    head = data[:_HEAD_BYTES]
    if compression is None:
        compression = compression_of(head)
    kind = _TOKENS if has_header(head) else kind_of(head)
    has_nulls = b"\0" in head
    return Content(compression, kind, _shape(head), has_nulls, has_nulls and looks_wide(head))


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
