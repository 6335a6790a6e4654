"""Pickles of others, read without running anything: a closed list of names, and instructions that only make new things.

What ``torch.load(weights_only=True)`` admits, and less: of its names those that a file of weights needs, none of its
containers and classes. Nothing that was made is changed by a method of its own: BUILD of a tensor would be
``Tensor.set_`` (to any size), ADDITEMS ``Tensor.add``. Python's unpickler in Python, as there instructions can be
replaced; its memo is a dictionary, too, and not as long as the largest number in it.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch

from automodel_cli.dtypes import torch_name

DTYPES = {torch_name(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
_MAX_DIMENSIONS = 64
# Opcodes that no file of weights has: buffers as long as they are told, sets, other ways to a class.
_NEVER = b"".join((
    pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET,
    pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.PERSID,
))  # fmt: skip


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
        admitted: what stands for each name (module, attribute) that may occur: classes with a ``__setstate__`` of
            their own, functions, values; torch's dtypes are themselves.
        persistent: makes something of references to objects outside; None: there may be none.

    Raises:
        Exception: of any kind, for a pickle that is damaged or hostile.
    """
    return _Unpickler(content, admitted, persistent).load()


class _Unpickler(pickle._Unpickler):
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(
        self,
        content: bytes,
        admitted: Mapping[tuple[str, str], Any],
        persistent: Callable[[Any], Any] | None,
    ) -> None:
        super().__init__(io.BytesIO(content))
        self._admitted, self._persistent = admitted, persistent
        self._classes = tuple(one for one in admitted.values() if isinstance(one, type))

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) not in self._admitted:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return self._admitted[module, name]

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            raise pickle.UnpicklingError("it refers to an object outside itself")
        return self._persistent(pid)

    def _build(self) -> None:
        state = self.stack.pop()
        self._changed(*self._classes).__setstate__(state)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def _dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._set_items(items)

    def _set_items(self, items: list[Any] | None = None) -> None:
        items = self.pop_mark() if items is None else items
        target = self._changed(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, tuple):  # nested, the hash of one takes for ever
                raise pickle.UnpicklingError("a key is neither a name nor a number")
            target[key] = value

    def _append(self) -> None:
        item = self.stack.pop()
        self._changed(list).append(item)

    def _extend(self) -> None:
        items = self.pop_mark()
        self._changed(list).extend(items)

    def _changed(self, *kinds: type) -> Any:
        if not isinstance(self.stack[-1], kinds):
            raise pickle.UnpicklingError(f"it changes a {type(self.stack[-1]).__name__}")
        return self.stack[-1]

    def _refused(self) -> None:
        raise pickle.UnpicklingError("it has an instruction that no file of weights needs")

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        **dict.fromkeys(_NEVER, _refused),
        **dict(zip(pickle.BUILD + pickle.SETITEM + pickle.SETITEMS, (_build, _set_item, _set_items), strict=True)),
        **dict(zip(pickle.DICT + pickle.APPEND + pickle.APPENDS, (_dict, _append, _extend), strict=True)),
    }
