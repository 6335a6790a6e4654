"""The attention of transformers' models, replaced by one of ours.

Shapes: B rows, T tokens, H query heads, G key-value heads, K head dim.

transformers looks its attention up by name, so a function of ours needs a name and a model that asks for it. Masks are
then ours too: a name that transformers does not know gets none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from automodel_cli.errors import ConfigError
from automodel_cli.models.interface import Attend

_NAME = "automodel_spread"


class SpreadAttention:
    """Lets all attention of ``hf`` go through ``change(attend)``."""

    def __init__(self, hf: transformers.PreTrainedModel, change: Callable[[Attend], Attend]) -> None:
        self.name = f"{_NAME}_{id(self)}"
        self.change = change
        self.calls = self.forwards = 0
        transformers.AttentionInterface.register(self.name, self._attention)
        hf.config._attn_implementation = self.name

    def check_used(self, hf: transformers.PreTrainedModel) -> None:
        """Raise a ConfigError if an earlier forward pass has not come by here: its numbers would be wrong."""
        if self.forwards and not self.calls:
            raise ConfigError(
                f"{type(hf).__name__} does not look its attention up where transformers' models do",
                "set distributed.tp_size and cp_size to 1",
            )
        self.forwards += 1

    def _attention(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """``query [B, H, T, K]``, ``key`` and ``value [B, G, T, K]`` -> ``[B, T, H, K]``."""
        self.calls += 1
        for name in ("sliding_window", "softcap", "s_aux"):
            if options.get(name) is not None:
                raise ConfigError(
                    f"{type(module).__name__} attends with {name} {options[name]}, which cannot be spread over ranks",
                    "set distributed.tp_size and cp_size to 1",
                )

        def attend(queries: Tensor, keys: Tensor, values: Tensor, *, mask: Any, dropout: float) -> Tensor:
            groups = queries.shape[1] // keys.shape[1]
            return F.scaled_dot_product_attention(
                queries,
                keys.repeat_interleave(groups, dim=1) if groups > 1 else keys,
                values.repeat_interleave(groups, dim=1) if groups > 1 else values,
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=mask is None,
                scale=scaling,
            )

        mixed = self.change(attend)(query, key, value, mask=None, dropout=dropout)
        return mixed.transpose(1, 2).contiguous(), None
