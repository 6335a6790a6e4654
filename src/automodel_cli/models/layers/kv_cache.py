"""Keys and values of the tokens already seen, so that decoding one more token costs one token.

Shapes: B rows, H key/value heads, S positions seen so far, T new tokens, K head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class PreallocatedTensor:
    """Space for one tensor ``[B, H, capacity, K]`` that fills up along its third axis, without copying what is there.

    When it is full it moves to a space half as large again. Not for use with autograd: it is written in place.
    """

    def __init__(self, capacity: int = 0) -> None:
        self._capacity = capacity
        self._space: Tensor | None = None

    def put(self, piece: Tensor, start: int) -> Tensor:
        """Write ``[B, H, T, K]`` at position ``start``; everything up to its end, ``[B, H, start + T, K]``."""
        end = start + piece.shape[2]
        if self._space is None or self._space.shape[2] < end:
            self._move(piece, start, end)
        assert self._space is not None
        self._space[:, :, start:end] = piece
        return self._space[:, :, :end]

    def _move(self, like: Tensor, start: int, end: int) -> None:
        grown = 0 if self._space is None else self._space.shape[2] * 3 // 2
        rows, heads, _, width = like.shape
        space = like.new_empty((rows, heads, max(end, grown, self._capacity), width))
        if self._space is not None:
            space[:, :, :start] = self._space[:, :, :start]
        self._space = space

    def select_rows(self, index: Tensor) -> None:
        """Row i becomes what row ``index[i]`` was."""
        if self._space is not None:
            self._space = self._space[index]


class KVCache:
    """One ``[B, H, S, K]`` pair per layer; ``length`` is S, equal in all layers between forwards.

    Args:
        capacity: positions to make room for at once; it grows beyond them where need be.
        left_padding: int64 ``[B]``, how many positions at the beginning of each row are no tokens: nothing looks at
            them, and positions are counted after them. Rows of different length then end together.

    Attributes:
        foreign: for models that keep keys and values in a format of their own.
    """

    def __init__(self, *, capacity: int = 0, left_padding: Tensor | None = None) -> None:
        self.capacity = capacity
        self.left_padding = left_padding
        self._layers: dict[int, tuple[PreallocatedTensor, PreallocatedTensor]] = {}
        self.length = 0
        self.foreign: Any = None

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append ``[B, H, T, K]`` to a layer and return all of it, ``[B, H, S + T, K]``."""
        if layer not in self._layers:
            self._layers[layer] = (PreallocatedTensor(self.capacity), PreallocatedTensor(self.capacity))
        key_room, value_room = self._layers[layer]
        return key_room.put(keys, self.length), value_room.put(values, self.length)

    def advance(self, tokens: int) -> None:
        """Count ``tokens`` new positions; the model calls this once at the end of a forward."""
        self.length += tokens

    def positions(self, tokens: int, device: torch.device) -> Tensor:
        """Where the next ``tokens`` tokens of each row stand in it: ``[T]``, or ``[B, T]`` with padding (at 0)."""
        places = torch.arange(self.length, self.length + tokens, device=device)
        if self.left_padding is None:
            return places
        return (places - self.left_padding[:, None]).clamp(min=0)

    def select_rows(self, index: Tensor) -> None:
        """Row i becomes what row ``index[i]`` was (int64 ``[rows from now on]``): one beginning, several endings."""
        for keys, values in self._layers.values():
            keys.select_rows(index)
            values.select_rows(index)
        if self.left_padding is not None:
            self.left_padding = self.left_padding[index]
        if self.foreign is not None:
            self.foreign.batch_select_indices(index)
