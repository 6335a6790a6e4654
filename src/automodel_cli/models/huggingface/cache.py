"""``transformers``' cache of keys and values with room made ahead: its own copies all of it for each new token."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

from automodel_cli.models.layers.kv_cache import PreallocatedTensor


class PreallocatedLayer(DynamicLayer):
    """A ``DynamicLayer`` that writes into spare room instead of concatenating; what it returns is the same."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._rooms = (PreallocatedTensor(capacity), PreallocatedTensor(capacity))

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        seen = self.get_seq_length()
        self.keys, self.values = (
            room.put(piece, seen) for room, piece in zip(self._rooms, (key_states, value_states), strict=True)
        )
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        for room in self._rooms:
            room.select_rows(indices)
        super().batch_select_indices(indices)


class SelectableCache(DynamicCache):
    """A ``DynamicCache`` whose rows can be chosen in layers that keep a state instead of keys and values, too."""

    def batch_select_indices(self, indices: Tensor) -> None:
        layers: list[Any] = self.layers
        for layer in layers:
            keeps_state = isinstance(layer, LinearAttentionCacheLayerMixin)
            (layer.reorder_cache if keeps_state else layer.batch_select_indices)(indices)


def preallocated_cache(hf: PreTrainedModel, capacity: int) -> DynamicCache:
    """An empty cache for ``hf``; layers that keep everything get room, others (sliding windows) stay as they are."""
    cache = SelectableCache(config=hf.config.get_text_config(decoder=True))
    cache.layers = [PreallocatedLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
