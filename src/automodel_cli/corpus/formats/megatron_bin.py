"""Megatron-Core's indexed token files, ``PREFIX.bin`` and ``PREFIX.idx``: layout, and what they say of themselves.

``.bin`` is the tokens of all sequences one after another in the index's dtype, no header. ``.idx``, with N
sequences and D - 1 documents, packed (so its numbers are not aligned):

| bytes            | what                                                                                  |
|------------------|---------------------------------------------------------------------------------------|
| 0-8              | magic ``MMIDIDX\\0\\0``                                                                  |
| 9-16             | u64 version 1                                                                         |
| 17               | u8 dtype: 1 uint8, 2 int8, 3 int16, 4 int32, 5 int64, 6 float64, 7 float32, 8 uint16   |
| 18-25            | u64 N                                                                                 |
| 26-33            | u64 D, entries of the document index (documents + 1)                                  |
| 34-              | i32 x N: length of each sequence, in tokens                                           |
| 34 + 4N -        | i64 x N: where each sequence begins in ``.bin``, in BYTES: the running sum of lengths  |
| 34 + 12N -       | i64 x D: 0, then after each document the number of sequences so far                    |
| 34 + 12N + 8D -  | i8 x N: modes, in multimodal files only (told by the size); read past here             |

All numbers are little-endian. A document is usually one sequence; it may be several (sentences) or none: an
empty document repeats a value of the document index. The index carries no checksum: what can be checked
against the sizes of both files is checked when a file is opened, the rest by ``MegatronIndex.check``
(``megatron_index``). ``megatron_writer`` writes them.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from automodel_cli.corpus.formats.foreign_files import IDX_MAGIC as MAGIC
from automodel_cli.corpus.formats.nanogpt_bin import TokenFile, has_header
from automodel_cli.errors import DataError
from automodel_cli.plain_text import for_shell
from automodel_cli.storage.cache.remote_file import RemoteObject

VERSION = 1
HEADER_BYTES = 34
_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}
DTYPE_CODES = {np.dtype(name): code for code, name in _DTYPES.items()}
_SMALL_VOCABULARY = 65_500  # Megatron's limit, not 65,536: some room for added tokens
REMAKE = "make it again with `automodel preprocess megatron`, or copy both files again"


def token_dtype(vocab_size: int | None) -> np.dtype:
    """Megatron's choice: uint16 for vocabularies below 65,500 ids, int32 for others and where it is unknown."""
    small = vocab_size is not None and vocab_size < _SMALL_VOCABULARY
    return np.dtype("<u2") if small else np.dtype("<i4")


def bin_path(prefix: Path | str) -> Path:
    """``a/b_text_document`` -> ``a/b_text_document.bin``; dots in the name stay."""
    return Path(f"{prefix}.bin")


def idx_path(prefix: Path | str) -> Path:
    """``a/b_text_document`` -> ``a/b_text_document.idx``."""
    return Path(f"{prefix}.idx")


@dataclass(frozen=True)
class MegatronFile:
    """What the header and the sizes of one pair of files say."""

    prefix: Path
    dtype: np.dtype
    num_sequences: int
    num_documents: int
    num_tokens: int
    remote: RemoteObject | None = None  # where the ``.bin`` is, where that is not on this machine

    @property
    def lengths_offset(self) -> int:
        """Byte of the first length in ``.idx``."""
        return HEADER_BYTES

    @property
    def pointers_offset(self) -> int:
        """Byte of the first pointer in ``.idx``."""
        return HEADER_BYTES + 4 * self.num_sequences

    @property
    def documents_offset(self) -> int:
        """Byte of the document index in ``.idx``."""
        return HEADER_BYTES + 12 * self.num_sequences

    @functools.cached_property
    def idx(self) -> Path:
        """Where the index is."""
        return idx_path(self.prefix)

    @functools.cached_property
    def tokens(self) -> TokenFile:
        """The ``.bin`` as a token file, for ``TokenReader``."""
        return TokenFile(bin_path(self.prefix), "raw", self.dtype, self.num_tokens, 0, remote=self.remote)


def inspect_prefix(prefix: Path | str, remote: RemoteObject | None = None) -> MegatronFile:
    """Read the header of ``PREFIX.idx`` and hold what it says against the sizes of both files.

    Costs a few small reads, however large the files are. ``remote`` is the ``.bin``, where that is not here.

    Raises:
        DataError: a file is missing, is no such index, is cut off, or the two do not belong together.
    """
    index, data = idx_path(prefix), bin_path(prefix)
    try:
        bin_bytes = _regular(data) if remote is None else remote.size
        _regular(index)
        with index.open("rb") as handle:
            head = handle.read(HEADER_BYTES)
            dtype, sequences, entries = _parse_header(index, head)
            _check_index_size(index, os.fstat(handle.fileno()).st_size, sequences, entries)
            file = MegatronFile(Path(prefix), dtype, sequences, entries - 1, bin_bytes // dtype.itemsize, remote)
            _check_edges(handle, file, bin_bytes)
    except OSError as error:
        raise _missing(Path(prefix), index, data, error) from error
    return file


def _regular(path: Path) -> int:
    """The size of a regular file; opening a pipe would wait for its other end."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path} is a folder, pipe or device, expected a file", "check the prefix")
    return found.st_size


def _missing(prefix: Path, index: Path, data: Path, error: OSError) -> DataError:
    """What stands where a pair was expected: a text, a token file with a header, half a pair, nothing."""
    if prefix.is_file():
        output = prefix.name.split(".")[0]
        return DataError(
            f"{prefix} is not the prefix of a .bin and .idx",
            f"of text they are made by automodel preprocess megatron --input {for_shell(prefix)} "
            f"--output-prefix {for_shell(output)} --output-path {for_shell(output + '_megatron')} --append-eod",
        )
    if not data.is_file() or index.exists():
        hint = "check the prefix: it is the path without .bin or .idx"
    elif _has_header(data):
        target = "automodel_cli.data.nanogpt_dataset.NanogptDataset"
        hint = f"{data} is a token file with a header: dataset._target_: {target} reads it, as file_pattern"
    else:
        hint = f"{data.name} is there without its index: its writer was stopped; {REMAKE}"
    return DataError(f"cannot read {error.filename}: {error.strerror}", hint)


def _has_header(path: Path) -> bool:
    with path.open("rb") as handle:
        return has_header(handle.read(4))


def _parse_header(index: Path, head: bytes) -> tuple[np.dtype, int, int]:
    if head[:9] != MAGIC:
        raise DataError(
            f"{index} does not begin with Megatron's magic {MAGIC!r}, found {head[:9]!r}",
            "it is not a Megatron-Core index (the oldest Megatron and fairseq formats are not read)",
        )
    if len(head) < HEADER_BYTES:
        raise DataError(f"{index} ends inside its header ({len(head)} bytes)", REMAKE)
    version = int.from_bytes(head[9:17], "little")
    if version != VERSION:
        raise DataError(f"{index} has version {version}, expected {VERSION}", REMAKE)
    code = head[17]
    if code not in _DTYPES:
        raise DataError(f"{index} has dtype code {code}, expected one of 1-8", "the header is damaged")
    dtype = np.dtype(_DTYPES[code])
    if dtype.kind == "f":
        raise DataError(f"{index} holds {dtype} values, not token ids", "name files of token ids")
    return dtype, int.from_bytes(head[18:26], "little"), int.from_bytes(head[26:34], "little")


def _check_index_size(index: Path, size: int, sequences: int, entries: int) -> None:
    if entries < 1:
        raise DataError(f"{index} has an empty document index; it has one entry at least, 0", REMAKE)
    expected = HEADER_BYTES + 12 * sequences + 8 * entries
    if size not in (expected, expected + sequences):  # with modes
        raise DataError(
            f"{index} says it lists {sequences:,} sequences and {entries - 1:,} documents ({expected:,} bytes) "
            f"but is {size:,} bytes long",
            f"its writer was stopped or the copy is incomplete; {REMAKE}",
        )


def _check_edges(handle: IO[bytes], file: MegatronFile, bin_bytes: int) -> None:
    """The first and last values of the index's sections, against each other and the size of ``.bin``."""

    def number(offset: int, width: int) -> int:
        return int.from_bytes(os.pread(handle.fileno(), width, offset), "little", signed=True)

    index, itemsize, last = file.idx, file.dtype.itemsize, file.num_sequences - 1
    bounds = [number(file.documents_offset + 8 * entry, 8) for entry in (0, file.num_documents)]
    if bounds != [0, file.num_sequences]:
        raise DataError(
            f"{index}: documents run from sequence {bounds[0]:,} to {bounds[1]:,}, "
            f"sequences from 0 to {file.num_sequences:,}",
            f"the index is damaged; {REMAKE}",
        )
    first = end = 0
    if file.num_sequences:
        first = number(file.pointers_offset, 8)
        last_length = number(file.lengths_offset + 4 * last, 4)
        end = number(file.pointers_offset + 8 * last, 8) + last_length * itemsize
    if first != 0 or end % itemsize or end < 0:
        raise DataError(
            f"{index}: sequences lie in bytes {first:,} to {end:,}, not in whole {file.dtype} tokens from 0 on",
            f"the index is damaged; {REMAKE}",
        )
    if end != bin_bytes:
        raise DataError(
            f"{index} lists {end // itemsize:,} tokens ({end:,} bytes), "
            f"{bin_path(file.prefix)} is {bin_bytes:,} bytes long",
            f"the files are of different runs, or a copy is incomplete; {REMAKE}",
        )


def tokens_before(file: MegatronFile, sequences: Sequence[int]) -> list[int]:
    """Tokens that lie before each of ``sequences`` (0..N, ascending): pointers lie in order, so a read each tells.

    Raises:
        DataError: a pointer that is not in order, or no whole number of tokens inside ``.bin``.
    """
    found: list[int] = []
    end_bytes = file.tokens.end_bytes
    with file.idx.open("rb") as handle:
        for sequence in sequences:
            if sequence == file.num_sequences:
                found.append(file.num_tokens)
            else:
                raw = os.pread(handle.fileno(), 8, file.pointers_offset + 8 * sequence)
                pointer = int.from_bytes(raw, "little")
                if pointer > end_bytes or pointer % file.dtype.itemsize:
                    raise DataError(
                        f"{file.idx}: sequence {sequence:,} begins at byte {pointer:,}, expected a whole token of the "
                        f"{end_bytes:,} bytes of {bin_path(file.prefix).name}",
                        f"the index is damaged; {REMAKE}",
                    )
                found.append(pointer // file.dtype.itemsize)
    if found != sorted(found):
        raise DataError(
            f"{file.idx}: the sequences {', '.join(f'{n:,}' for n in sequences)} do not lie in order",
            f"the index is damaged; {REMAKE}",
        )
    return found


def header_bytes(dtype: np.dtype, num_sequences: int, document_entries: int) -> bytes:
    """The first 34 bytes of an ``.idx``."""
    counts = (VERSION.to_bytes(8, "little"), bytes([DTYPE_CODES[np.dtype(dtype)]]))
    return b"".join((MAGIC, *counts, num_sequences.to_bytes(8, "little"), document_entries.to_bytes(8, "little")))
