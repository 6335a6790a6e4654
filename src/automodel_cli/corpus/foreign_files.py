"""What a file that was named as token ids is instead: told by its first bytes, and by what all of it looks like.

A headerless token file says nothing of itself, and any bytes can be read as pairs. So a file of a known kind is named
and refused, whatever its suffix; text, and numbers wider than 16 bits, show in blocks from all over the file.

| kind                       | told by                                                                            |
|----------------------------|------------------------------------------------------------------------------------|
| archives, arrays, weights  | the first bytes (``_MAGICS``); safetensors by the length of its JSON                 |
| llm.c's other files        | the first int32 (``_LLM_C``), then a version below 100                               |
| text                       | UTF-8 without control characters, or four bytes of five printable ASCII, in all blocks |
| uint32 (or wider) ids      | every second 16-bit number is below 32 while the others vary, in all blocks          |
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from automodel_cli.errors import DataError

NPY_MAGIC = b"\x93NUMPY"
LFS_POINTER = b"version https://git-lfs"
LFS_PULL = "fetch the file itself: git lfs pull"
_TOKENISE = "name token files; `automodel preprocess nanogpt` makes them of text"
_UNPACK = "unpack it, then name the token files in it"
_COLUMNS = "`automodel preprocess nanogpt` makes token files of its text column"
_WEIGHTS = "name token files, not a checkpoint"
_MAGICS: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\x03\x04", "a zip archive (.zip, .npz, or a checkpoint of torch.save)", _UNPACK),
    (b"\x1f\x8b\x08", "gzip-compressed", "unpack it: gunzip"),
    (b"\x28\xb5\x2f\xfd", "zstandard-compressed", "unpack it: zstd -d"),
    (b"\x04\x22\x4d\x18", "lz4-compressed", "unpack it: lz4 -d"),
    (b"BZh", "bzip2-compressed", "unpack it: bunzip2"),
    (b"\xfd7zXZ\x00", "xz-compressed", "unpack it: xz -d"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!\x1a\x07", "a rar archive", _UNPACK),
    (b"PAR1", "a parquet file", _COLUMNS),
    (b"ARROW1", "an Arrow file", _COLUMNS),
    (b"\xff\xff\xff\xff\x10\x00\x00\x00", "an Arrow stream", _COLUMNS),
    (b"Obj\x01", "an Avro file", _TOKENISE),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", _TOKENISE),
    (b"SQLite format 3\x00", "an SQLite database", _TOKENISE),
    (
        b"MMIDIDX\x00\x00",
        "the index of Megatron's files",
        "name its PREFIX under MegatronPretraining's paths",
    ),
    (b"GGUF", "a GGUF checkpoint", _WEIGHTS),
    (b"%PDF-", "a PDF", _TOKENISE),
    (b"\x89PNG\r\n\x1a\n", "an image", _TOKENISE),
    (b"\x7fELF", "a program", _TOKENISE),
    (b"\x80\x04\x95", "a Python pickle", _TOKENISE),
    (b"\x80\x05\x95", "a Python pickle", _TOKENISE),
    (LFS_POINTER, "the pointer of a Git LFS file", LFS_PULL),
)
# The first int32 of the files that llm.c's train_gpt2.py, train_llama3.py, train_gpt2.cu and data_common.py write;
# its token files, 20240520 and 20240801, are read by ``nanogpt_bin``.
_LLM_C = {
    20240326: "llm.c's weights of a GPT-2",
    20240327: "llm.c's debug state",
    20240328: "llm.c's tokenizer",
    20240522: "llm.c's multiple-choice questions",
    20240527: "llm.c's optimizer state",
    20240803: "llm.c's weights of a Llama 3",
}
_TAR_MAGIC_BYTES = slice(257, 262)
_BLOCK_BYTES = 4096  # a multiple of 8, so that blocks begin where wide numbers do
_BLOCKS = 16
_LEAST_BYTES = 16  # of text: eight ids could be text by chance once in ten million files, fewer more often
_PRINTABLE = np.zeros(256, dtype=bool)
_PRINTABLE[[*range(32, 127), 9, 10, 13]] = True
_PRINTABLE_SHARE = 0.8  # of GPT-2's ids as bytes about 0.4 are printable ...
_PRINTABLE_LEAST_BYTES = 256  # ... so that so many are not printable by chance
_CONTROLS = frozenset((*range(9), 11, *range(14, 27), *range(28, 32), 127))
_LEAST_WIDE = 64  # 32-bit numbers without which nothing is said of them
_HIGH_HALF = 32  # ids below 2**21: the largest vocabularies in use have 2**18
_LEAST_DISTINCT = 8


def refuse_foreign(path: Path, head: bytes, size: int) -> None:
    """Refuse a file whose first bytes say that it is something else.

    Raises:
        DataError: naming what it is and what to do.
    """
    for magic, what, hint in _MAGICS:
        if head.startswith(magic):
            raise DataError(f"{path} is {what}, expected token ids", hint)
    number, version = (int.from_bytes(head[at : at + 4], "little") for at in (0, 4))
    if number in _LLM_C and version < 100:
        raise DataError(f"{path} is {_LLM_C[number]}, expected token ids", _TOKENISE)
    header_bytes = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and 2 <= header_bytes <= size - 8:
        raise DataError(f"{path} is a safetensors file, expected token ids", _WEIGHTS)
    if head[_TAR_MAGIC_BYTES] == b"ustar":
        raise DataError(f"{path} is a tar archive, expected token ids", _UNPACK)


def refuse_implausible(path: Path, descriptor: int, size: int) -> None:
    """Refuse a headerless file that does not look like 16-bit ids: text, or wider numbers.

    Reads at most sixteen blocks of 4 KiB: the first, the last and some between.

    Raises:
        DataError: saying what it looks like.
    """
    blocks = _blocks(descriptor, size)
    if size >= _LEAST_BYTES and all(map(_is_text, blocks)):
        raise DataError(
            f"{path} looks like text, expected token ids",
            f"{_TOKENISE} (raw_dtype: uint16, if they really are ids)",
        )
    if _are_wide(blocks):
        raise DataError(
            f"{path} has no header and looks like 32-bit ids: every second 16-bit number is below {_HIGH_HALF}",
            "say what it holds, raw_dtype: uint32 (or uint16)",
        )


def _blocks(descriptor: int, size: int) -> list[bytes]:
    last = max(size - _BLOCK_BYTES, 0) // 8 * 8
    starts = sorted({round(last * number / (_BLOCKS - 1)) // 8 * 8 for number in range(_BLOCKS)})
    return [os.pread(descriptor, min(_BLOCK_BYTES, size - start), start) for start in starts]


def _is_text(block: bytes) -> bool:
    """Whether a piece of a file is text; a character may be cut at either end."""
    printable = _PRINTABLE[np.frombuffer(block, np.uint8)].mean()
    if len(block) >= _PRINTABLE_LEAST_BYTES and printable >= _PRINTABLE_SHARE:
        return True
    begin = next((at for at, byte in enumerate(block[:4]) if byte & 0xC0 != 0x80), 4)
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(block[begin:])
    except UnicodeDecodeError:
        return False
    return not any(ord(character) in _CONTROLS for character in text)


def _are_wide(blocks: Sequence[bytes]) -> bool:
    """Whether the upper halves of 32-bit numbers are all small, and the lower ones vary as ids do."""
    halves = [np.frombuffer(block[: len(block) // 4 * 4], "<u2").reshape(-1, 2) for block in blocks]
    if sum(map(len, halves)) < _LEAST_WIDE or any(
        int(pair[:, 1].max(initial=0)) >= _HIGH_HALF for pair in halves
    ):
        return False
    low = np.concatenate([pair[:, 0] for pair in halves])
    high = max(int(pair[:, 1].max(initial=0)) for pair in halves)
    return len(np.unique(low)) >= _LEAST_DISTINCT and int(low.max()) >= 8 * (high + 1)


def dtype_beside(path: Path) -> np.dtype | None:
    """The type of the ids in ``PREFIX.bin`` that Megatron's ``PREFIX.idx`` beside it names, where there is one."""
    try:
        with path.with_suffix(".idx").open("rb") as handle:
            head = handle.read(18)
    except OSError:
        return None
    if len(head) < 18 or not head.startswith(b"MMIDIDX\x00\x00"):
        return None
    known: dict[int, np.dtype] = {4: np.dtype("<u4"), 8: np.dtype("<u2")}
    return known.get(head[17])
