"""Pickles of others, read without running anything: a closed list of names, and no instruction that asks for much.

What ``torch.load(weights_only=True)`` admits, and less: of its names those that a file of weights needs, none of its
containers and classes. Python's unpickler calls nothing but what :func:`load` is given.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

import torch

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype)
}
_MAX_DIMENSIONS = 64
_PERSISTENT = frozenset({"PERSID", "BINPERSID"})
_NEVER = frozenset({
    "BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER", "EXT1", "EXT2", "EXT4", "INST", "OBJ", "PERSID",
})  # fmt: skip


class Dict(dict[Any, Any]):
    """``OrderedDict``; its items follow as instructions of the pickle, never as a copy of another one."""

    def __init__(self) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Attributes (torch's ``_metadata``) are left out."""


def few_numbers(numbers: Any = ()) -> tuple[int, ...]:
    """``torch.Size``, of as many dimensions as a tensor may have: a pickle may call it as often as it likes."""
    if len(numbers) > _MAX_DIMENSIONS:
        raise pickle.UnpicklingError(f"a tensor of {len(numbers):,} dimensions")
    return tuple(numbers)


def load(
    content: bytes,
    admitted: Mapping[tuple[str, str], Any],
    *,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """The object that ``content`` spells.

    Args:
        admitted: what stands for each name (module, attribute) that may occur; torch's dtypes are themselves.
        persistent: makes something of references to objects outside; None: there may be none.

    Raises:
        Exception: of any kind, for a pickle that is damaged or hostile.
    """
    _refuse_bombs(content, _NEVER if persistent is not None else _NEVER | _PERSISTENT)

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if module == "torch" and name in DTYPES:
                return DTYPES[name]
            if (module, name) not in admitted:
                raise pickle.UnpicklingError(f"it names {module}.{name}")
            return admitted[module, name]

        def persistent_load(self, pid: Any) -> Any:
            if persistent is None:
                raise pickle.UnpicklingError("it refers to an object outside itself")
            return persistent(pid)

    return Unpickler(io.BytesIO(content)).load()


def _refuse_bombs(content: bytes, never: frozenset[str]) -> None:
    """Read the instructions of a pickle without following them: none may ask for more than the file has.

    Python's unpickler makes a memo as long as the largest number in it, and a byte array as long as it is told.

    Raises:
        pickle.UnpicklingError: one does.
    """
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(content):
            raise pickle.UnpicklingError(f"{opcode.name} of {argument:,} in a file of {len(content):,} bytes")
        if opcode.name in never:
            raise pickle.UnpicklingError(f"{opcode.name} has no place in it")
