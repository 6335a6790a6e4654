"""What a file is by its first bytes: one table for files that were named as token ids, and as text.

A headerless token file says nothing of itself, and any bytes can be read as pairs. So a file of a known kind is named
and refused, whatever its suffix; text, and numbers wider than 16 bits, show in blocks from all over the file.

| kind                       | told by                                                                            |
|----------------------------|------------------------------------------------------------------------------------|
| archives, arrays, weights  | the first bytes (``_KINDS``); safetensors by the length of its JSON                 |
| llm.c's other files        | the first int32 (``_LLM_C``), then a version below 100                               |
| tar                        | the sum of its first block, which is written in it in octal digits                   |
| text                       | UTF-8 without control characters, or four bytes of five printable ASCII, in all blocks |
| uint32 (or wider) ids      | every second 16-bit number is below 32 while the others vary, in all blocks          |

Sources: the formats' own specifications; POSIX pax (tar).
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from automodel_cli.errors import DataError
from automodel_cli.plain_text import command_line, for_shell

NPY_MAGIC = b"\x93NUMPY"
IDX_MAGIC = b"MMIDIDX\0\0"
ReadAt = Callable[[int, int], bytes]
"""So many bytes of a file from a position on, fewer where it ends before."""
Group = Literal["ids", "archive", "packed", "unread", "array", "index", "table", "weights", "pointer", "utf16", "other"]


@dataclass(frozen=True)
class FileKind:
    """A kind of file: what it is in a message, and what can be done with it.

    Attributes:
        begins: its first bytes.
        has_zeros: text may begin so; this kind also has a zero byte near its beginning.
        is_short: ids may begin so by chance: said of text only.
    """

    what: str
    group: Group
    begins: tuple[bytes, ...] = ()
    has_zeros: bool = False
    is_short: bool = False


_KINDS = (
    FileKind("a zip archive (.zip, .npz, or a checkpoint of torch.save)", "archive", (b"PK\3\4", b"PK\5\6")),
    FileKind("a 7z archive", "archive", (b"7z\xbc\xaf\x27\x1c",)),
    FileKind("a rar archive", "archive", (b"Rar!\x1a\x07",)),
    FileKind("gzip-compressed", "packed", (b"\x1f\x8b\x08",)),
    FileKind("zstandard-compressed", "packed", (b"\x28\xb5\x2f\xfd",)),
    FileKind("bzip2-compressed", "packed", tuple(b"BZh%d1AY&SY" % level for level in range(1, 10))),
    FileKind("xz-compressed", "packed", (b"\xfd7zXZ\0",)),
    FileKind("lz4-compressed", "unread", (b"\x04\x22\x4d\x18",)),
    FileKind("lzip-compressed", "unread", (b"LZIP\x01",)),
    FileKind("lzma-compressed", "unread", (b"\x5d\0\0\x80\0",), is_short=True),
    FileKind("compressed with compress (.Z)", "unread", (b"\x1f\x9d",), is_short=True),
    FileKind("a NumPy array", "array", (NPY_MAGIC,)),
    FileKind("the index of Megatron's files", "index", (IDX_MAGIC,)),
    FileKind("a parquet file", "table", (b"PAR1",), has_zeros=True),
    FileKind("an Arrow file", "other", (b"ARROW1", b"\xff\xff\xff\xff\x10\0\0\0"), has_zeros=True),
    FileKind("an Avro file", "other", (b"Obj\x01",)),
    FileKind("an HDF5 file", "other", (b"\x89HDF\r\n\x1a\n",)),
    FileKind("an SQLite database", "other", (b"SQLite format 3\0",)),
    FileKind("a GGUF checkpoint", "weights", (b"GGUF",), has_zeros=True),
    FileKind("a Python pickle", "other", (b"\x80\x04\x95", b"\x80\x05\x95")),
    FileKind("a Python pickle", "other", tuple(bytes([0x80, version]) for version in range(2, 6)), is_short=True),
    FileKind("a PDF", "other", (b"%PDF-",)),
    FileKind("an image", "other", (b"\x89PNG\r\n",)),
    FileKind("an image", "other", (b"\xff\xd8\xff",), is_short=True),
    FileKind("a program", "other", (b"\x7fELF",)),
    FileKind("the pointer of a Git LFS file, not its content", "pointer", (b"version https://git-lfs",)),
    FileKind("UTF-16 text", "utf16", (b"\xff\xfe", b"\xfe\xff"), is_short=True),
)
_TAR = FileKind("a tar archive", "archive")
_SAFETENSORS = FileKind("a safetensors file", "weights")
# The first int32 of the files that llm.c's train_gpt2.py, train_llama3.py, train_gpt2.cu and data_common.py write;
# its token files, 20240520 and 20240801, are read by ``nanogpt_bin``.
_LLM_C = {
    20240326: FileKind("llm.c's weights of a GPT-2", "weights"),
    20240327: FileKind("llm.c's debug state", "other"),
    20240328: FileKind("llm.c's tokenizer", "other"),
    20240522: FileKind("llm.c's multiple-choice questions", "other"),
    20240527: FileKind("llm.c's optimizer state", "weights"),
    20240803: FileKind("llm.c's weights of a Llama 3", "weights"),
}
_LFS_PULL = "fetch the file itself: git lfs pull"
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


def kind_of(head: bytes, size: int = 1 << 27) -> FileKind | None:
    """What a file of ``size`` bytes that begins with ``head`` (a kilobyte, or all) is; None where nothing tells."""
    for kind in _KINDS:
        if head.startswith(kind.begins) and (not kind.has_zeros or b"\0" in head):
            return kind
    number, version = (int.from_bytes(head[at : at + 4], "little") for at in (0, 4))
    if number in _LLM_C and version < 100:
        return _LLM_C[number]
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= size - 8:
        return _SAFETENSORS
    return _TAR if _is_tar(head[:512]) else None


def _is_tar(block: bytes) -> bool:
    digits = block[148:156].strip(b" \0")
    if len(block) < 512 or not digits or digits.strip(b"01234567"):
        return False
    return int(digits, 8) == sum(block) - sum(block[148:156]) + 8 * 0x20


# ------------------------------------------------------------------------------------------- named as token ids


def refuse_foreign(path: Path, head: bytes, size: int) -> None:
    """Refuse a file whose first bytes say that it is something else than token ids.

    Raises:
        DataError: naming what it is and what to do.
    """
    kind = kind_of(head, size)
    if kind is not None and not kind.is_short:
        raise DataError(f"{path} is {kind.what}, expected token ids", _for_ids(path, kind.group))


def command_for_text(path: Path) -> str:
    """The command that makes token files of a text."""
    output = f"{path.name.split('.')[0]}_tokens"
    return command_line(("automodel", "preprocess", "nanogpt", "--dataset", str(path), "--output-dir", output))


def _for_ids(path: Path, group: Group) -> str:
    """What to do instead of naming it as a token file."""
    match group:
        case "table":
            return f"token files of its text column: {command_for_text(path)}"
        case "packed":
            return f"unpack it; of a compressed text, token files are made by {command_for_text(path)}"
        case "archive" | "unread":
            return "unpack it, then name the token files in it"
        case "index":
            prefix = for_shell(str(path).removesuffix(".idx"))
            return f"MegatronPretraining reads it: --dataset.paths={prefix}; eval scores it: --data {prefix}"
        case "weights":
            return "name token files, not a checkpoint; init_from takes weights"
        case "pointer":
            return _LFS_PULL
        case _:
            return "name token files; `automodel preprocess nanogpt` makes them of text"


def refuse_implausible(path: Path, read: ReadAt, size: int) -> None:
    """Refuse a headerless file that does not look like 16-bit ids: text, or wider numbers.

    Reads at most sixteen blocks of 4 KiB: the first, the last and some between.

    Raises:
        DataError: saying what it looks like.
    """
    blocks = _blocks(read, size)
    if size >= _LEAST_BYTES and all(map(_is_text, blocks)):
        what = "JSON lines" if blocks[0].lstrip().startswith(b'{"') else "text"
        raise DataError(
            f"{path} looks like {what}, expected token ids",
            f"make token files of it: {command_for_text(path)} (raw_dtype: uint16, if they really are ids)",
        )
    if _are_wide(blocks):
        raise DataError(
            f"{path} has no header and looks like 32-bit ids: every second 16-bit number is below {_HIGH_HALF}",
            "say what it holds, raw_dtype: uint32 (or uint16)",
        )


def _blocks(read: ReadAt, size: int) -> list[bytes]:
    last = max(size - _BLOCK_BYTES, 0) // 8 * 8
    starts = sorted({round(last * number / (_BLOCKS - 1)) // 8 * 8 for number in range(_BLOCKS)})
    return [read(min(_BLOCK_BYTES, size - start), start) for start in starts]


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
    numbers = [np.frombuffer(block[: len(block) // 4 * 4], "<u2").reshape(-1, 2) for block in blocks]
    low, high = np.concatenate(numbers).T
    if len(low) < _LEAST_WIDE or high.max() >= _HIGH_HALF:
        return False
    return len(np.unique(low)) >= _LEAST_DISTINCT and int(low.max()) >= 8 * (int(high.max()) + 1)


def dtype_beside(path: Path) -> np.dtype | None:
    """The type of the ids in ``PREFIX.bin`` that Megatron's ``PREFIX.idx`` beside it names, where there is one."""
    try:
        with path.with_suffix(".idx").open("rb") as handle:
            head = handle.read(18)
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return None
    if len(head) < 18 or not head.startswith(IDX_MAGIC):
        return None
    known: dict[int, np.dtype] = {4: np.dtype("<u4"), 8: np.dtype("<u2")}
    return known.get(head[17])


# ------------------------------------------------------------------------------------------- named as text


def advice_for_text(path: Path, kind: FileKind) -> str:
    """What to do with a file that was named as text and is of this kind."""
    name = for_shell(path)
    match kind.group:
        case "archive" | "unread" | "packed":
            return "unpack it first, and name the files in it"
        case "array":
            return f"if it holds token ids, {command_to_train(path, 'npy')}"
        case "ids" | "index":
            return command_to_train(path)
        case "pointer":
            return _LFS_PULL
        case "utf16":
            return f"convert it: iconv -f UTF-16 -t UTF-8 -o {for_shell(path.name + '.utf8.txt')} {name}"
        case "weights":
            return f"weights are not text; automodel inspect-ckpt {name} shows them"
        case _:
            return "leave it out, or extract its text first"


def command_to_train(path: Path, raw_dtype: str = "") -> str:
    """How token ids that were named as text are trained on: one of Megatron's pair, or a token file."""
    prefix = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
    if dtype_beside(path.with_name(f"{prefix.name}.bin")) is not None or path.suffix == ".idx":
        keys = f"--dataset.paths={for_shell(str(prefix))}"
    else:
        keys = f"--dataset.file_pattern={for_shell(path)}"
        keys += f" --dataset.raw_dtype={raw_dtype}" if raw_dtype else ""
    return f"train on it: automodel pretrain llm -c cfg.yaml {keys}"


def looks_wide(head: bytes) -> bool:
    """Whether the beginning of a headerless file looks like 32-bit ids."""
    return _are_wide([head])
