"""Layers of the GPT with options: norms without gain, attention with QK-norm and value embeddings, MLPs.

Shapes: B rows, T query tokens, D model width, H query heads, G key-value heads (H = n x G), K head dim.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from automodel_cli.models.gpt_config import GATE_CHANNELS, GPTConfig
from automodel_cli.models.layers.document_attention import attend_for
from automodel_cli.models.layers.kv_cache import KVCache
from automodel_cli.models.layers.llama import RMSNorm, Rotary, in_compute_dtype, rotate
from automodel_cli.models.layers.shared import Attend, gelu


class PlainRMSNorm(nn.Module):
    """x / rms(x) over the last dimension, without weights; in fp32, rounded to the dtype of ``x``."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], None, self.eps)


def norm_of(config: GPTConfig) -> nn.Module:
    """The norm of a residual stream ``[B, T, D]``."""
    if config.norm == "layernorm":
        bias = config.bias
        return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, elementwise_affine=config.norm_gain, bias=bias)
    return _rms_norm(config, config.hidden_size, gain=config.norm_gain)


def _rms_norm(config: GPTConfig, width: int, *, gain: bool) -> nn.Module:
    return RMSNorm(width, config.norm_eps) if gain else PlainRMSNorm(config.norm_eps)


class Attention(nn.Module):
    """Causal self-attention with grouped key-value heads; rotation, QK-norm and value embeddings where asked for.

    ``attend`` takes H query heads and G key-value heads (``grouped``).
    """

    def __init__(self, config: GPTConfig, *, layer: int, attend: Attend) -> None:
        super().__init__()
        self.head_dim, self.layer, self.attend = config.head_width, layer, attend
        width, queries, keys = config.hidden_size, config.num_attention_heads, config.kv_heads
        self.q_proj = nn.Linear(width, queries * self.head_dim, bias=config.bias)
        self.k_proj = nn.Linear(width, keys * self.head_dim, bias=config.bias)
        self.v_proj = nn.Linear(width, keys * self.head_dim, bias=config.bias)
        self.o_proj = nn.Linear(queries * self.head_dim, width, bias=config.bias)
        self.normalized = config.qk_norm
        if self.normalized:
            self.q_norm = _rms_norm(config, self.head_dim, gain=config.qk_norm_gain)
            self.k_norm = _rms_norm(config, self.head_dim, gain=config.qk_norm_gain)
        if layer in config.value_layers:
            self.value_gate = nn.Linear(GATE_CHANNELS, keys, bias=False)

    def forward(
        self,
        x: Tensor,
        *,
        rotary: Rotary | None,
        mask: Any = None,
        cache: KVCache | None = None,
        value_embedding: Tensor | None = None,
    ) -> Tensor:
        """``x [B, T, D]`` and, in layers that have them, the tokens' value embeddings ``[B, T, G x K]``."""
        rows, tokens, _ = x.shape
        x = in_compute_dtype(x)
        # As many heads as the projections give: a tensor-parallel rank has some of them.
        split = (rows, tokens, -1, self.head_dim)
        queries, keys, values = (project(x).view(split) for project in (self.q_proj, self.k_proj, self.v_proj))
        if rotary is not None:
            queries, keys = rotate(queries, rotary), rotate(keys, rotary)
        if self.normalized:  # a gain in fp32 would leave them in fp32 under autocast
            queries, keys = self.q_norm(queries).to(values.dtype), self.k_norm(keys).to(values.dtype)
        if value_embedding is not None:
            gate = 2 * torch.sigmoid(self.value_gate(x[..., :GATE_CHANNELS]))  # [B, T, G], 1 at first
            values = values + gate[..., None] * value_embedding.view(split).to(values.dtype)
        queries, keys, values = (tensor.transpose(1, 2) for tensor in (queries, keys, values))  # [B, H or G, T, K]
        if cache is not None:
            keys, values = cache.extend(self.layer, keys, values)
        mixed = attend_for(mask, self.attend)(queries, keys, values, mask=mask, dropout=0.0)
        return self.o_proj(mixed.transpose(1, 2).reshape(rows, tokens, -1))


class FeedForward(nn.Module):
    """down(activation(up(x))), or with SwiGLU down(silu(gate(x)) * up(x))."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        width, inner, self.activation = config.hidden_size, config.mlp_width, config.activation
        if self.activation == "swiglu":
            self.gate_proj = nn.Linear(width, inner, bias=config.bias)
        self.up_proj = nn.Linear(width, inner, bias=config.bias)
        self.down_proj = nn.Linear(inner, width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = in_compute_dtype(x)
        inner = self.up_proj(x)
        if self.activation == "swiglu":
            return self.down_proj(F.silu(self.gate_proj(x)) * inner)
        if self.activation == "relu2":
            return self.down_proj(F.relu(inner).square())
        return self.down_proj(gelu(inner, approximate="tanh" if self.activation == "gelu_tanh" else "none"))


class ResidualMix(nn.Module):
    """r x + s x0: the residual stream, and again what the first block got. ``weight`` is (r, s)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2))

    def forward(self, x: Tensor, first: Tensor) -> Tensor:
        return self.weight[0] * x + self.weight[1] * first


def softcapped(logits: Tensor, cap: float) -> Tensor:
    """c tanh(logits / c), between -c and c; in fp32, as bf16 has no more than 8 bits for what tanh flattens."""
    return cap * torch.tanh(logits.float() / cap)
