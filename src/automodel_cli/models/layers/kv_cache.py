"""Keys and values of the tokens already seen, so that decoding one more token costs one token.

Shapes: B rows, H key/value heads, S positions seen so far, T new tokens, K head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        lengths: int64 ``[B]`` where rows differ in the number of tokens they have (``SlotCache``); S is the largest.
    """

    lengths: Tensor | None = None

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


class SlotCache(KVCache):
    """Rows of any lengths, each from position 0 on, that come and go between forwards of one token a row.

    A forward gets ``[B, H, S, K]`` without a copy, as rows are kept at the front: the last one takes the place of one
    that leaves. What stands behind the end of a row is finite and nothing looks at it (``attention_mask``).
    """

    def __init__(self) -> None:
        super().__init__()
        self.lengths = torch.empty(0, dtype=torch.int64)
        self._spaces: dict[int, tuple[Tensor, Tensor]] = {}

    def adopt(self, read: KVCache, lengths: Sequence[int]) -> None:
        """Add the rows of another cache behind the last one, of each its first ``lengths`` positions."""
        assert self.lengths is not None
        first, end = len(self.lengths), max(lengths)
        for layer, rooms in read._layers.items():
            pieces = [room._space[:, :, :end] for room in rooms if room._space is not None]
            for space, piece in zip(self._room(layer, pieces[0], first + len(lengths), end), pieces, strict=True):
                space[first : first + len(lengths), :, :end] = piece
                self._device = piece.device
        self._become(torch.cat([self.lengths.to(self._device), torch.tensor(lengths, device=self._device)]))

    def drop(self, row: int) -> None:
        """Let a row go; the last one takes its number."""
        assert self.lengths is not None
        last = len(self.lengths) - 1
        kept = int(self.lengths[last])
        if row < last:
            for spaces in self._spaces.values():
                for space in spaces:
                    space[row, :, :kept] = space[last, :, :kept]
            self.lengths[row] = kept
        self._become(self.lengths[:last])

    def _become(self, lengths: Tensor) -> None:
        self.lengths, self.length = lengths, int(lengths.max()) if len(lengths) else 0
        self._rows = torch.arange(len(lengths), device=lengths.device)

    def _room(self, layer: int, like: Tensor, rows: int, end: int) -> tuple[Tensor, Tensor]:
        """Spaces of keys and values with at least so many rows and positions."""
        spaces = self._spaces.get(layer)
        old_rows, old_end = (spaces[0].shape[0], spaces[0].shape[2]) if spaces else (0, 0)
        if spaces is None or rows > old_rows or end > old_end:
            rows = old_rows if rows <= old_rows else max(rows, 2 * old_rows)
            end = old_end if end <= old_end else max(end + 64, old_end * 3 // 2)
            grown = [like.new_zeros((rows, like.shape[1], end, like.shape[3])) for _ in range(2)]
            for new, old in zip(grown, spaces or (), strict=False):
                new[:old_rows, :, :old_end] = old
            spaces = self._spaces[layer] = (grown[0], grown[1])
        return spaces

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append ``[B, H, 1, K]``, each row's at its own end; everything, ``[B, H, S + 1, K]``."""
        rows, end = keys.shape[0], self.length + 1
        spaces = self._room(layer, keys, rows, end)
        for space, piece in zip(spaces, (keys, values), strict=True):
            space[self._rows, :, self.lengths] = piece[:, :, 0].to(space.dtype)
        return spaces[0][:rows, :, :end], spaces[1][:rows, :, :end]

    def advance(self, tokens: int) -> None:
        assert self.lengths is not None
        self._become(self.lengths + tokens)

    def positions(self, tokens: int, device: torch.device) -> Tensor:
        assert self.lengths is not None
        return self.lengths[:, None] + torch.arange(tokens, device=device)
