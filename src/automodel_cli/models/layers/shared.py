"""Layers that models share: causal self-attention, MLP, and the ways to attend.

Shapes: B rows, T query tokens, S key tokens, D model width, H heads, K head dim (D = H x K).

Attention takes an ``attend`` callable. Which kernel runs, how a mask looks and whether keys come from other
ranks is decided outside; a layer only projects, attends and projects back.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from automodel_cli.batch import Batch
from automodel_cli.errors import ConfigError
from automodel_cli.models.layers.attention_kernels import KERNELS, AttendWith, activate
from automodel_cli.models.layers.document_attention import attend_for, document_mask
from automodel_cli.models.layers.kv_cache import KVCache

# (queries [B, H, T, K], keys [B, H, S, K], values [B, H, S, K], mask=[B or 1, 1, T, S] bool or None,
# dropout=p) -> [B, H, T, K]. mask None means causal with T == S; in a mask True means "may look". A BlockMask goes to
# FlexAttention instead (``document_attention``), whichever ``attend`` was chosen.
Attend = Callable[..., Tensor]

_MATMUL_TOKENS = 1024
_TWICE_ROOT = 2 * (2 / math.pi) ** 0.5


def attend_sdpa(queries: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None, dropout: float) -> Tensor:
    """PyTorch's fused attention; it picks the flash kernel where the device and dtypes allow."""
    return F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, dropout_p=dropout, is_causal=mask is None
    )


def attend_matmul(queries: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None, dropout: float) -> Tensor:
    """Two batched matrix products with a softmax between: O(T x S) memory, in the dtype of ``queries``.

    The softmax runs in fp32 inside; scores and weights are rounded to that dtype. The mask is added within the
    first product and costs no pass of its own.
    """
    rows, heads, tokens, width = queries.shape
    seen = keys.shape[2]
    bias = additive_mask(mask, like=queries, tokens=tokens).expand(rows, heads, tokens, seen)
    with torch.autocast(queries.device.type, enabled=False):
        scores = torch.baddbmm(
            bias.reshape(-1, tokens, seen),
            queries.reshape(-1, tokens, width),
            keys.reshape(-1, seen, width).transpose(1, 2),
            alpha=width**-0.5,
        )
        weights = F.dropout(scores.softmax(dim=-1), p=dropout, training=dropout > 0)
        return torch.bmm(weights, values.reshape(-1, seen, width)).view(rows, heads, tokens, width)


def additive_mask(mask: Tensor | None, *, like: Tensor, tokens: int) -> Tensor:
    """0 where a token may look and -inf elsewhere, ``[1 or B, 1, T, S]`` in the dtype of ``like``."""
    if mask is None:
        mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device=like.device).tril()
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(~mask, float("-inf"))


def attend_auto(queries: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None, dropout: float) -> Tensor:
    """SDPA, except for short sequences in bf16 on a CPU: there plain matrix products are faster.

    Forward and backward of one layer, one AVX-512 core, B 8, H 4, K 64, T 256: 34 ms with SDPA, 13 ms with
    matrix products; B 4, H 12, T 1024: 357 and 237 ms. In fp32 SDPA is the faster one. Longer sequences would
    need too much memory for T x T weights.
    """
    short = queries.shape[2] > 1 and keys.shape[2] <= _MATMUL_TOKENS
    if queries.is_cpu and queries.dtype == torch.bfloat16 and short:
        return attend_matmul(queries, keys, values, mask=mask, dropout=dropout)
    return attend_sdpa(queries, keys, values, mask=mask, dropout=dropout)


def attend_eager(queries: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None, dropout: float) -> Tensor:
    """Attention written out: O(T x S) memory, for reference and for looking at the numbers."""
    if mask is None:
        shape = (queries.shape[-2], keys.shape[-2])
        mask = torch.ones(shape, dtype=torch.bool, device=queries.device).tril()
    scores = queries @ keys.transpose(-2, -1) * queries.shape[-1] ** -0.5
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return F.dropout(weights, p=dropout, training=dropout > 0) @ values


ATTENDS: dict[str, Attend] = {
    "auto": attend_auto,
    "sdpa": attend_sdpa,
    "matmul": attend_matmul,
    # The names that Hugging Face configurations carry; SDPA runs the flash kernel wherever that is possible.
    "flash_attention_2": attend_sdpa,
    "flash_attention_3": attend_sdpa,
    "eager": attend_eager,
}


def attend_by_name(name: str) -> Attend:
    """The ``attend`` callable that ``attn_implementation: NAME`` means."""
    if name in KERNELS:
        activate(name)
        return AttendWith(name)
    if name not in ATTENDS:
        known = sorted([*ATTENDS, *KERNELS])
        raise ConfigError(f"attn_implementation: {name!r} is not known", f"choose one of {', '.join(known)}")
    return ATTENDS[name]


def attention_mask(
    *,
    tokens: int,
    cached: int,
    segment_ids: Tensor | None,
    device: torch.device,
    left_padding: Tensor | None = None,
    lengths: Tensor | None = None,
    dropout: float = 0.0,
    window: int | None = None,
    rows: int | None = None,
) -> Tensor | BlockMask | None:
    """The mask of ``tokens`` queries after ``cached`` earlier positions, or None for plain causal.

    With ``segment_ids [B, T]`` a token looks only at earlier tokens of its own segment (block-diagonal): see
    ``document_attention``, which needs to know whether attention weights are dropped (``dropout``). With
    ``left_padding [B]`` nobody looks at the first so many positions of a row, but for those positions themselves:
    a softmax over nothing would be NaN. With ``lengths [B]`` each row goes on from an end of its own, the furthest at
    ``cached``. With ``window`` a token sees so many tokens, its own included; without a cache such a mask, of ``rows``,
    has the forms of ``document_attention`` (decoding would compile each length anew).
    """
    window = None if window is None or window >= cached + tokens else window
    if lengths is not None:
        places = lengths[:, None] + torch.arange(tokens, device=device)  # [B, T]
        distance = places[:, None, :, None] - torch.arange(cached + tokens, device=device)  # [B, 1, T, S]
        return distance >= 0 if window is None else (distance >= 0) & (distance < window)
    if segment_ids is None and left_padding is None and cached == 0:
        if window is None:
            return None
        if rows is not None:
            one_document = torch.zeros(rows, tokens, dtype=torch.int32, device=device)
            mask = document_mask(one_document, dropout=dropout, window=window)
            return mask[:1] if isinstance(mask, Tensor) else mask
    if segment_ids is not None:
        assert cached == 0, "segments and a cache do not go together"
        assert left_padding is None, "segments and padding on the left do not go together"
        return document_mask(segment_ids, dropout=dropout, window=window)
    causal = torch.ones(tokens, cached + tokens, dtype=torch.bool, device=device).tril(cached)[None, None]
    if window is not None:
        causal = causal.triu(cached - window + 1)
    if left_padding is not None:
        keys = torch.arange(cached + tokens, device=device)
        is_token = keys >= left_padding[:, None]  # [B, S]
        itself = keys == (keys[cached:, None])  # [T, S]
        return causal & (is_token[:, None, None, :] | itself)
    return causal


def positions_of(batch: Batch, cache: KVCache | None) -> Tensor:
    """Positions of a batch's tokens, ``[T]`` or ``[B, T]``: its own, else counted on from what the cache has seen."""
    if batch.position_ids is not None:
        return batch.position_ids
    tokens, device = batch.input_ids.shape[1], batch.input_ids.device
    return torch.arange(tokens, device=device) if cache is None else cache.positions(tokens, device)


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention: one fused projection to queries, keys, values; one back."""

    def __init__(self, width: int, heads: int, *, layer: int, bias: bool, dropout: float, attend: Attend) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(
                f"n_embd {width} is not divisible by n_head {heads}",
                "choose a width that is a multiple of the heads",
            )
        self.head_width, self.layer, self.dropout, self.attend = width // heads, layer, dropout, attend
        self.c_attn = nn.Linear(width, 3 * width, bias=bias)
        self.c_proj = nn.Linear(width, width, bias=bias)
        self.resid_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, *, mask: Tensor | BlockMask | None = None, cache: KVCache | None = None) -> Tensor:
        rows, tokens, _ = x.shape
        # As many heads as c_attn gives: a tensor-parallel rank has some of them.
        split = self.c_attn(x).view(rows, tokens, 3, -1, self.head_width)
        queries, keys, values = split.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, H, T, K]
        if cache is not None:
            keys, values = cache.extend(self.layer, keys, values)
        # SDPA does not look at the module's mode: dropout must be zeroed here, or evaluation would be noisy.
        dropout = self.dropout if self.training else 0.0
        mixed = attend_for(mask, self.attend)(queries, keys, values, mask=mask, dropout=dropout)
        return self.resid_dropout(self.c_proj(mixed.transpose(1, 2).reshape(rows, tokens, -1)))


class MLP(nn.Module):
    """Width -> 4 x width -> width with a GELU between."""

    def __init__(self, width: int, *, bias: bool, dropout: float, approximate: str) -> None:
        super().__init__()
        self.approximate = approximate
        self.c_fc = nn.Linear(width, 4 * width, bias=bias)
        self.c_proj = nn.Linear(4 * width, width, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(gelu(self.c_fc(x), approximate=self.approximate)))


def gelu(x: Tensor, *, approximate: str) -> Tensor:
    """``F.gelu``; what a compiler makes of the tanh form on a GPU is bound by tanh, so there it is sigmoid's.

    0.5 (1 + tanh u) = sigmoid(2 u), with u = sqrt(2 / pi) (x + 0.044715 x^3). In fp32 within the fused kernel, as in
    PyTorch's own.
    """
    if approximate != "tanh" or not x.is_cuda or not torch.compiler.is_compiling():
        return F.gelu(x, approximate=approximate)
    wide = x.float()
    return (wide * torch.sigmoid(_TWICE_ROOT * (wide + 0.044715 * wide * wide * wide))).to(x.dtype)
