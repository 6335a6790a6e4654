"""Layers of a Llama-like block: RMSNorm, rotary positions, attention with grouped key-value heads, SwiGLU.

Shapes: B rows, T query tokens, S key tokens, D model width, F MLP width, H query heads, G key-value heads (H = n x G),
K head dim.

Norms and rotation follow transformers' Llama to the place where each value is rounded, so that logits agree to the last
digits in fp32 and in bf16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from automodel_cli.models.layers.document_attention import attend_for
from automodel_cli.models.layers.kv_cache import KVCache
from automodel_cli.models.layers.shared import Attend

# Cosines and sines of each position, [T or B x T, 1, K / 2] each.
Rotary = tuple[Tensor, Tensor]


class RMSNorm(nn.Module):
    """x / rms(x) * weight (Zhang & Sennrich 2019): computed in fp32, rounded to the dtype of ``x``, then weighted."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:  # nothing to round in between: one fused kernel
            return F.rms_norm(x, self.weight.shape, self.weight.float(), self.eps)
        return self.weight * F.rms_norm(x, self.weight.shape, None, self.eps)


class RotaryEmbedding(nn.Module):
    """Cosines and sines for rotary positions (Su et al. 2021), once a forward pass for all layers.

    ``inv_freq [K / 2]`` is a buffer that no file holds; wherever the module is moved, from the meta device too, it is
    computed anew, in fp32.
    """

    def __init__(self, head_dim: int, *, theta: float, scaling: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.head_dim, self.theta, self.scaling = head_dim, theta, scaling
        self.inv_freq: Tensor
        self.register_buffer("inv_freq", self._values(torch.get_default_device()), persistent=False)

    def forward(self, *, position_ids: Tensor, dtype: torch.dtype) -> Rotary:
        """``position_ids [T]`` or ``[B, T]``; angles are fp32, their cosines and sines are rounded to ``dtype``."""
        angles = (position_ids[..., None].float() * self.inv_freq)[..., None, :]
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RotaryEmbedding:
        super()._apply(fn, recurse)
        self.inv_freq = self._values(self.inv_freq.device)
        return self

    def _values(self, device: torch.device) -> Tensor:
        # On the CPU whatever the device: powers differ in their last bits, and 2,000 positions multiply that.
        return rotary_frequencies(self.head_dim, self.theta, self.scaling).to(device)


def rotary_frequencies(head_dim: int, theta: float, scaling: Mapping[str, Any] | None) -> Tensor:
    """Radians a position, fp32 ``[K / 2]`` on the CPU: theta^(-2i / K), slowed down as Llama 3.1 does where asked.

    ``scaling``: wavelengths of more than original_max_position_embeddings / low_freq_factor positions become ``factor``
    times as long, those of fewer than original_max_position_embeddings / high_freq_factor stay, those between are
    blended (the "llama3" of transformers' ``modeling_rope_utils``).
    """
    plain = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim)
    if scaling is None:
        return plain
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    waves_in_context = scaling["original_max_position_embeddings"] * plain / (2 * math.pi)
    kept = ((waves_in_context - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - kept) * plain / scaling["factor"] + kept * plain


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate ``x [B, T, heads, K]`` by its positions: element i is paired with i + K / 2, as in transformers."""
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def in_compute_dtype(x: Tensor) -> Tensor:
    """``x`` as autocast hands it to a matrix product: cast and kept once, not once for each product that takes it."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


class GroupedQueryAttention(nn.Module):
    """Causal self-attention in which n query heads share a key-value head (Ainslie et al. 2023).

    Three projections rather than a fused one: they are the tensors of every Llama checkpoint, and tensor parallelism
    divides each by heads without moving rows. The two small ones are 3 to 4% of a block's multiplications at 1B.
    ``attend`` takes H query heads and G key-value heads (``grouped``).
    """

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, *, layer: int, attend: Attend) -> None:
        super().__init__()
        self.head_dim, self.layer, self.attend = head_dim, layer, attend
        self.q_proj = nn.Linear(width, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, width, bias=False)

    def forward(self, x: Tensor, *, rotary: Rotary, mask: Any = None, cache: KVCache | None = None) -> Tensor:
        rows, tokens, _ = x.shape
        x = in_compute_dtype(x)
        # As many heads as the projections give: a tensor-parallel rank has some of them.
        split = (rows, tokens, -1, self.head_dim)
        queries = rotate(self.q_proj(x).view(split), rotary).transpose(1, 2)  # [B, H, T, K]
        keys = rotate(self.k_proj(x).view(split), rotary).transpose(1, 2)  # [B, G, T, K]
        values = self.v_proj(x).view(split).transpose(1, 2)
        if cache is not None:
            keys, values = cache.extend(self.layer, keys, values)
        mixed = attend_for(mask, self.attend)(queries, keys, values, mask=mask, dropout=0.0)
        return self.o_proj(mixed.transpose(1, 2).reshape(rows, tokens, -1))


def grouped(attend: Attend) -> Attend:
    """``attend``, which wants a key-value head for each query head, for G of them: each is repeated for its group.

    Fused kernels could take G heads themselves, but not each of them, and the fallback needs T x T memory.
    """

    def attend_in_groups(
        queries: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None, dropout: float
    ) -> Tensor:
        (rows, heads, tokens, width), kv_heads = queries.shape, keys.shape[1]
        if tokens == 1 and mask is not None:
            # One new token: to a kernel, the queries of a group are as well n tokens that may see the same keys.
            as_tokens = queries.reshape(rows, kv_heads, -1, width)
            return attend(as_tokens, keys, values, mask=mask, dropout=dropout).reshape(queries.shape)
        keys, values = (_repeat_heads(tensor, heads // kv_heads) for tensor in (keys, values))
        return attend(queries, keys, values, mask=mask, dropout=dropout)

    return attend_in_groups


def _repeat_heads(tensor: Tensor, times: int) -> Tensor:
    """``[B, G, S, K] -> [B, G x times, S, K]``, copies of a head next to each other."""
    if times == 1:
        return tensor
    rows, heads, seen, width = tensor.shape
    return tensor[:, :, None].expand(rows, heads, times, seen, width).reshape(rows, -1, seen, width)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020): width -> F -> width."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = in_compute_dtype(x)
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
