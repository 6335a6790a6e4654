"""Keys and values of the tokens already seen, so that decoding one more token costs one token.

Shapes: B rows, H key/value heads, S positions seen so far, T new tokens, K head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class KVCache:
    """One growing ``[B, H, S, K]`` pair per layer; ``length`` is S, equal in all layers between forwards.

    ``foreign`` is for models that keep keys and values in a format of their own.
    """

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.length = 0
        self.foreign: Any = None

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append ``[B, H, T, K]`` to a layer and return all of it, ``[B, H, S + T, K]``."""
        if layer in self._layers:
            old_keys, old_values = self._layers[layer]
            keys = torch.cat([old_keys, keys], dim=2)
            values = torch.cat([old_values, values], dim=2)
        self._layers[layer] = (keys, values)
        return keys, values

    def advance(self, tokens: int) -> None:
        """Count ``tokens`` new positions; the model calls this once at the end of a forward."""
        self.length += tokens

    def select_rows(self, index: Tensor) -> None:
        """Row i becomes what row ``index[i]`` was (int64 ``[rows from now on]``): one beginning, several endings."""
        self._layers = {layer: (keys[index], values[index]) for layer, (keys, values) in self._layers.items()}
        if self.foreign is not None:
            self.foreign.batch_select_indices(index)
