"""The attention of transformers' models, replaced by one of ours.

Shapes: B rows, T tokens, H query heads, G key-value heads, K head dim.

transformers looks its attention up by name, so a function of ours needs a name and a model that asks for it. Masks are
then ours too: a name that transformers does not know gets none. Masks in blocks (``document_attention``) are answered
by ours under transformers' own names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from automodel_cli.errors import ConfigError
from automodel_cli.models.layers.document_attention import attend_blocks
from automodel_cli.models.layers.shared import Attend

_NAME = "automodel_spread"

# Attention to all earlier tokens and nothing else. Before torch 2.14 transformers makes a mask of T x T for that when
# it is compiled, with which no flash kernel runs; a mask of four dimensions it hands on as it is.
PLAIN_CAUSAL = torch.empty(0, 0, 0, 0)
ANSWERED = ("sdpa", "flex_attention")  # names under which a BlockMask is answered by us


def attend_blocks_ourselves() -> None:
    """Answer a ``BlockMask`` and ``PLAIN_CAUSAL`` under the names in ``ANSWERED``; all else is as it was.

    For every model of this process: transformers has one function a name.
    """
    for name in ANSWERED:
        theirs = transformers.AttentionInterface._global_mapping[name]
        if not hasattr(theirs, "answers_blocks"):
            transformers.AttentionInterface.register(name, _answering_blocks(theirs))


def _answering_blocks(theirs: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(theirs)
    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | BlockMask | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **options: Any,
    ) -> Any:
        """``query [B, H, T, K]``, ``key`` and ``value [B, G, T, K]`` -> ``[B, T, H, K]``, and weights or None."""
        if isinstance(attention_mask, Tensor) and attention_mask.numel() == 0:
            attention_mask = None
        if not isinstance(attention_mask, BlockMask):
            return theirs(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options)
        mixed = attend_blocks(query, key, value, mask=attention_mask, dropout=dropout, scale=scaling)
        return mixed.transpose(1, 2).contiguous(), None

    attention.answers_blocks = True  # type: ignore[attr-defined]
    return attention


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
