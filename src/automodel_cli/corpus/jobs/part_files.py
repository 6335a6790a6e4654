"""Part files: the token ids of one part of a source, and all that is needed to divide them into files.

| file        | what                                                                                           |
|-------------|------------------------------------------------------------------------------------------------|
| .tokens     | ids in the dtype of the output, chunk after chunk; in a chunk one field after the other         |
| .chunks     | for each chunk a frame: u32 bytes of the head, the head (JSON, ``_Head``), and arrays as it says: |
|             | for each field i64 x sequences, their lengths; unless ``plain`` i32 x documents, the sequences  |
|             | of each (if ``plain`` one each); if ``numbered`` i64 x documents, their numbers in the source   |
| .json       | written last (``PartHeader``): amounts, names and hashes of the other two; of ``.tokens`` one    |
|             | for each ``BLOCK_BYTES``, so that who reads a range checks what it reads                         |

All numbers are little-endian.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
import xxhash
from pydantic import ConfigDict, Field

from automodel_cli.corpus.documents.units import BadRow, FieldSequences, Split, TokenChunk, Unit
from automodel_cli.corpus.jobs.token_range import TokenRange
from automodel_cli.corpus.jobs.work_folder import JobError, gone_named, new_tag, publish_json, read_published
from automodel_cli.files import disk_errors_named, file_bytes, fsync_file, hash_bytes, hash_file
from automodel_cli.json_files import Count, FileModel, Items, PlainName, Xxh3, open_to_read, parse_json, validated

FORMAT = "automodel-part/1"
BLOCK_BYTES = 4 << 20
_MAX_HEAD_BYTES = 256 << 20
_WRITE_BYTES = 1 << 20
_HINT = "start over with --overwrite"


class PartHeader(FileModel):
    """What is known of a part without its chunks.

    Attributes:
        header_file: where all this stands under a name of its own.
        first_tokens: tokens of the first field, which ``--max-tokens`` counts.
        longest: of the first field, tokens of the longest document.
        blocks: hashes of ``tokens_file``, a block each.
    """

    model_config = ConfigDict(extra="forbid")

    header_file: PlainName
    tokens_file: PlainName
    tokens: Count
    first_tokens: Count
    longest: Count
    documents: Count
    bad_rows: Count
    text_bytes: Count
    blocks: Items[Xxh3]
    chunks_file: PlainName
    chunks: Count
    chunks_bytes: Count
    chunks_xxh3: Xxh3


_Bad = Annotated[tuple[Count, str, str | None, Count], Field(strict=False)]


class _Field(FileModel):
    tokens: Count
    sequences: Count
    plain: bool


class _Head(FileModel):
    """Of a chunk's frame; ``bad``: row, reason, name, documents before it. The rest is as in ``TokenChunk``."""

    model_config = ConfigDict(extra="forbid")

    name: str
    file: Count
    rows: Count
    text_bytes: Count
    documents: Count
    fields: Items[_Field]
    bad: Items[_Bad] = ()
    continues: bool = False
    unfinished: bool = False
    split: Split | None = None
    numbered: bool = False


class PartWriter:
    """Writes one part; it is there when ``close`` returns. Left otherwise, ``abandon`` removes what was written."""

    def __init__(self, folder: Path, number: int, dtype: np.dtype) -> None:
        self._target, self._dtype = part_path(folder, number), dtype
        self._paths = [self._target.with_suffix(f".{new_tag()}.tokens")]
        self._paths.append(self._paths[0].with_suffix(".chunks"))
        with gone_named(folder), disk_errors_named(self._paths[0]):
            self._tokens, self._chunks = (path.open("xb", buffering=_WRITE_BYTES) for path in self._paths)
        self._blocks: list[str] = []
        self._digest, self._in_block = xxhash.xxh3_64(), 0
        self._whole = xxhash.xxh3_64()
        self._is_named = False  # perhaps: by a header that is there, or about to be
        self._document = 0  # tokens so far of the document that goes on in the next chunk
        self.amounts = dict.fromkeys(
            ("tokens", "first_tokens", "longest", "documents", "bad_rows", "text_bytes", "chunks", "chunks_bytes"), 0
        )

    def write(self, unit: Unit, chunk: TokenChunk) -> None:
        """Append what became of a unit."""
        assert chunk.tokens.dtype == self._dtype
        with disk_errors_named(self._paths[0]):
            self._write_tokens(np.ascontiguousarray(chunk.tokens).view(np.uint8).data)
            self._write_frame(unit, chunk)
        lengths, amounts = chunk.lengths, self.amounts
        amounts["tokens"] += len(chunk.tokens)
        amounts["first_tokens"] += chunk.fields[0].num_tokens
        amounts["documents"] += len(lengths) - (chunk.continues and len(lengths) > 0)
        amounts["bad_rows"] += len(chunk.bad)
        amounts["text_bytes"] += chunk.text_bytes
        amounts["chunks"] += 1
        self._measure(chunk, lengths)

    def _measure(self, chunk: TokenChunk, lengths: np.ndarray) -> None:
        if len(lengths) == 0:
            return
        first = int(lengths[0]) + (self._document if chunk.continues else 0)
        longest = max(first, int(lengths.max()))
        self.amounts["longest"] = max(self.amounts["longest"], longest)
        self._document = first if len(lengths) == 1 else int(lengths[-1])

    def _write_tokens(self, data: memoryview) -> None:
        self._tokens.write(data)
        while data:
            piece = data[: BLOCK_BYTES - self._in_block]
            self._digest.update(piece)
            self._in_block += len(piece)
            data = data[len(piece) :]
            if self._in_block == BLOCK_BYTES:
                self._end_block()

    def _end_block(self) -> None:
        self._blocks.append(f"xxh3:{self._digest.hexdigest()}")
        self._digest, self._in_block = xxhash.xxh3_64(), 0

    def _write_frame(self, unit: Unit, chunk: TokenChunk) -> None:
        numbers = None
        if unit.ordinals is not None:
            assert chunk.numbers is not None
            numbers = unit.ordinals[chunk.numbers]
        plain = [bool((field.sizes == 1).all()) for field in chunk.fields]
        head = _Head(
            name=unit.name,
            file=unit.file,
            rows=chunk.rows,
            text_bytes=chunk.text_bytes,
            documents=len(chunk.fields[0].sizes),
            fields=tuple(
                _Field(tokens=field.num_tokens, sequences=len(field.lengths), plain=is_plain)
                for field, is_plain in zip(chunk.fields, plain, strict=True)
            ),
            bad=tuple((row.row, row.reason, row.name, row.after) for row in chunk.bad),
            continues=chunk.continues,
            unfinished=chunk.unfinished,
            split=chunk.split,
            numbered=numbers is not None,
        ).model_dump_json(exclude_defaults=True)
        spelled = head.encode()
        frame = [len(spelled).to_bytes(4, "little"), spelled]
        for field, is_plain in zip(chunk.fields, plain, strict=True):
            frame.append(field.lengths.astype("<i8").tobytes())
            if not is_plain:
                frame.append(field.sizes.astype("<i4").tobytes())
        if numbers is not None:
            frame.append(numbers.astype("<i8").tobytes())
        data = b"".join(frame)
        self._chunks.write(data)
        self._whole.update(data)
        self.amounts["chunks_bytes"] += len(data)

    def close(self) -> None:
        """Make it durable and say that it is there."""
        if self._in_block:
            self._end_block()
        with disk_errors_named(self._paths[0]):
            for handle in (self._tokens, self._chunks):
                fsync_file(handle)
                handle.close()
        tokens, chunks = (path.name for path in self._paths)
        header = PartHeader(
            header_file=self._paths[0].with_suffix(".json").name,
            tokens_file=tokens,
            chunks_file=chunks,
            blocks=tuple(self._blocks),
            chunks_xxh3=f"xxh3:{self._whole.hexdigest()}",
            **self.amounts,
        )
        self._is_named = True
        for path in (self._target.with_name(header.header_file), self._target):
            publish_json(path, {"format": FORMAT, **header.model_dump(mode="json")})

    def abandon(self) -> None:
        """After an error: remove what was written, unless a header may name it."""
        for handle, path in zip((self._tokens, self._chunks), self._paths, strict=True):
            with contextlib.suppress(OSError):  # buffered bytes without room on the disk are not wanted
                handle.close()
            if not self._is_named:
                path.unlink(missing_ok=True)


def part_path(folder: Path, number: int) -> Path:
    """Where the header of a part is, once it is done."""
    return folder / f"part_{number:06d}.json"


def read_header(path: Path) -> PartHeader:
    """The header of a part that is done.

    Raises:
        JobError: it is missing or damaged.
    """
    return read_published(path, PartHeader, FORMAT)


def read_chunks(folder: Path, number: int, header: PartHeader, dtype: np.dtype) -> Iterator[tuple[Unit, TokenChunk]]:
    """What was written, with ranges in place of ids.

    Raises:
        JobError: the file is damaged.
    """
    path = folder / header.chunks_file
    if file_bytes(path) != header.chunks_bytes or hash_file(path) != header.chunks_xxh3:
        raise JobError(f"{path} is missing or damaged: it is not what its header says", _HINT)
    at = 0
    with open_to_read(path, buffering=_WRITE_BYTES) as handle:
        for _ in range(header.chunks):
            unit, chunk, tokens = _read_frame(handle, path)
            chunk.tokens = TokenRange(number, at, at + tokens, dtype)  # type: ignore[assignment]
            at += tokens
            yield unit, chunk


def _read_frame(handle: BinaryIO, path: Path) -> tuple[Unit, TokenChunk, int]:
    size = int.from_bytes(_exactly(handle, 4, path), "little")
    if size > _MAX_HEAD_BYTES:
        raise JobError(f"{path} is damaged: a head of {size:,} bytes", _HINT)
    head = validated(parse_json(_exactly(handle, size, path), path, JobError), _Head, path, JobError)
    fields = []
    for field in head.fields:
        lengths = _array(handle, "<i8", field.sequences, path)
        sizes = np.ones(head.documents, np.int64) if field.plain else _array(handle, "<i4", head.documents, path)
        fields.append(FieldSequences(field.tokens, lengths, sizes.astype(np.int64)))
    chunk = TokenChunk(
        np.empty(0, np.uint8),
        fields,
        file=head.file,
        continues=head.continues,
        unfinished=head.unfinished,
        split=head.split,
        rows=head.rows,
        bad=[BadRow(*row) for row in head.bad],
        text_bytes=head.text_bytes,
        ordinals=_array(handle, "<i8", head.documents, path) if head.numbered else None,
    )
    return Unit("rows", head.name, head.file, {}), chunk, sum(field.tokens for field in head.fields)


def _array(handle: BinaryIO, dtype: str, count: int, path: Path) -> np.ndarray:
    return np.frombuffer(_exactly(handle, np.dtype(dtype).itemsize * count, path), dtype)


def _exactly(handle: BinaryIO, count: int, path: Path) -> bytes:
    data = handle.read(count)
    if len(data) != count:
        raise JobError(f"{path} is damaged: it ends inside a chunk", _HINT)
    return data


class PartTokens:
    """The ids of a part by range, each block checked when it is read; one block is held."""

    def __init__(self, folder: Path, header: PartHeader, itemsize: int) -> None:
        self._path, self._header, self._itemsize = folder / header.tokens_file, header, itemsize
        self._block, self._held = -1, memoryview(b"")
        try:
            self._handle = open_to_read(self._path, buffering=0)
        except OSError as error:
            raise JobError(f"cannot read {self._path}: {error.strerror}", _HINT) from error
        if os.fstat(self._handle.fileno()).st_size != header.tokens * itemsize:
            self.close()
            raise JobError(f"{self._path} has another size than its header says", _HINT)

    def read(self, start: int, stop: int) -> Iterator[memoryview]:
        """The bytes of ids ``start`` to ``stop``, in pieces that are good until the next one.

        Raises:
            JobError: the file is damaged.
        """
        at, end = start * self._itemsize, stop * self._itemsize
        while at < end:
            number, offset = divmod(at, BLOCK_BYTES)
            self._load(number)
            piece = self._held[offset : offset + end - at]
            yield piece
            at += len(piece)

    def _load(self, number: int) -> None:
        if number == self._block:
            return
        data = os.pread(self._handle.fileno(), BLOCK_BYTES, number * BLOCK_BYTES)
        if number >= len(self._header.blocks) or hash_bytes(data) != self._header.blocks[number]:
            raise JobError(f"{self._path} is damaged: block {number:,} does not match its hash", _HINT)
        self._block, self._held = number, memoryview(data)

    def close(self) -> None:
        """Let go of the file."""
        self._handle.close()

    def __enter__(self) -> PartTokens:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
