"""A file of ``torch.save`` from elsewhere (``ckpt.pt``, ``*.pth``): its tensors and plain values; nothing in it is run.

    a zip archive whose entries are stored, not compressed:
      NAME/data.pkl       a pickle (protocol 2; litgpt's converters write 5) of dicts, lists, numbers, texts, and of
                          calls of torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, ...)
      NAME/data/KEY       the bytes of a storage, which the pickle refers to as ("storage", type, KEY, device, elements)
      NAME/byteorder      "little"

(torch/serialization.py, ``_save``; the format since torch 1.6.) ``torch.load(weights_only=True)`` would do, but for
protocol 5, and it builds what the pickle asks for before anybody can compare sizes. Here names come from a shorter list
(``closed_pickle``), and a tensor is a view of the mapped file that may not reach beyond its own entry.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from automodel_cli.checkpoint.imports import closed_pickle
from automodel_cli.errors import CheckpointError
from automodel_cli.plain_text import without_controls
from automodel_cli.text import first_line

_MAX_PICKLE_BYTES = 64 << 20
_STORAGES = {
    f"{name}Storage": dtype
    for name, dtype in {
        "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
        "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}  # fmt: skip
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip entry: lengths of its name and of its extra field


def read(path: Path) -> Any:
    """What was saved, tensors as views of the file (read when they are used).

    Raises:
        CheckpointError: no such file, damaged, or it names anything but tensors and plain values.
    """
    try:
        content = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
        with path.open("rb") as handle:
            return _parse(handle, content, path)
    except (OSError, RuntimeError) as error:  # torch's, where a file cannot be mapped
        reason = getattr(error, "strerror", None) or first_line(error)
        raise CheckpointError(f"{path} cannot be read: {reason}", "name a file") from error


def parse(content: bytearray, where: Path) -> Any:
    """The tensor that one of our own checkpoints holds as such a file, a view of ``content``; of any type there is.

    Raises:
        CheckpointError: damaged, or it names anything but tensors and plain values.
    """
    more = {
        ("torch._utils", "_rebuild_tensor_v3"): _untyped_tensor,
        ("torch.storage", "UntypedStorage"): torch.uint8,
        ("torch", "ComplexFloatStorage"): torch.complex64,
    }
    return _parse(io.BytesIO(content), torch.frombuffer(content, dtype=torch.uint8), where, more)


def _parse(handle: BinaryIO, content: torch.Tensor, path: Path, more: Mapping[Any, Any] | None = None) -> Any:
    try:
        with zipfile.ZipFile(handle) as archive:
            return _Archive(content, archive).load(more or {})
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{path} is not an archive of torch.save: {error}",
            "load and save it again with torch 1.6 or later",
        ) from error
    except Exception as error:  # a hostile file may fail in any way
        raise CheckpointError(
            f"{path} is refused: {without_controls(first_line(error))}",
            "only tensors and plain values are read from it, and no code is run",
        ) from error


class _Archive:
    """The entries of one file, and what its pickle may call."""

    def __init__(self, content: torch.Tensor, archive: zipfile.ZipFile) -> None:
        self._entries = {info.filename: info for info in archive.infolist()}
        (pickled,) = (name for name in self._entries if name.count("/") == 1 and name.endswith("/data.pkl"))
        self._root, self._bytes = pickled.removesuffix("data.pkl"), content
        if sum(info.file_size for info in archive.infolist()) > len(self._bytes):
            raise pickle.UnpicklingError("its entries overlap or are compressed")
        self._held: dict[str, torch.Tensor] = {}  # by key, as tied weights are one storage

    def load(self, more: Mapping[Any, Any]) -> Any:
        """The object that the file spells, of names that weights need and ``more``; its tensors are views of the file.

        Raises:
            pickle.UnpicklingError: it names or claims what a file of weights has no use for.
        """
        if self._entry("byteorder", required=False).tolist() not in ([], list(b"little")):
            raise pickle.UnpicklingError("its numbers are not little-endian")
        content = self._entry("data.pkl")
        if len(content) > _MAX_PICKLE_BYTES:
            raise pickle.UnpicklingError(f"its pickle has {len(content):,} bytes")
        admitted = {
            ("collections", "OrderedDict"): closed_pickle.Dict,
            ("torch", "Size"): closed_pickle.few_numbers,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            **{("torch", name): dtype for name, dtype in _STORAGES.items()},
            **more,
        }
        return closed_pickle.load(bytes(content.numpy()), admitted, persistent=self._storage)

    def _storage(self, reference: Any) -> torch.Tensor:
        _, dtype, key, *_ = reference
        if not (isinstance(dtype, torch.dtype) and isinstance(key, str) and key.isalnum()):
            raise pickle.UnpicklingError("it refers to something that is not a storage")
        if key not in self._held:
            found = self._entry(f"data/{key}")
            self._held[key] = found.clone() if found.storage_offset() % 8 else found
        return self._held[key].view(dtype)

    def _entry(self, name: str, *, required: bool = True) -> torch.Tensor:
        """The bytes of an entry, uint8, a view."""
        info = self._entries.get(self._root + name)
        if info is None and not required:
            return self._bytes[:0]
        if info is None or info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise pickle.UnpicklingError(f"its entry {name} is missing, compressed or encrypted")
        data = info.header_offset + 30
        lengths = _LOCAL_HEADER.unpack(bytes(self._bytes[info.header_offset : data].numpy()))
        begin = data + sum(lengths)
        if not 0 <= begin <= begin + info.file_size <= len(self._bytes):
            raise pickle.UnpicklingError(f"its entry {name} reaches beyond the end")
        return self._bytes[begin : begin + info.file_size]


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> torch.Tensor:
    """``_rebuild_tensor_v2``: gradients and hooks, which follow, are left out."""
    shape, strides = closed_pickle.few_numbers(shape), closed_pickle.few_numbers(strides)
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, torch.Tensor) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise pickle.UnpicklingError("a tensor is described by something else than numbers")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if math.prod(shape) > storage.numel() or (0 not in shape and last >= storage.numel()):
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    return storage.as_strided(shape, strides, storage.storage_offset() + offset)


def _untyped_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, _: Any, hooks: Any, dtype: Any, *__: Any
) -> torch.Tensor:
    """``_rebuild_tensor_v3``, of the types that have no storage class of their own."""
    return _tensor(storage.view(dtype), offset, shape, strides)


def _parameter(data: Any, *_: Any) -> Any:
    """``_rebuild_parameter``."""
    return data
