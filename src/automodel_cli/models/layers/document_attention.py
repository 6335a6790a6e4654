"""Attention that does not leave a token's own document, for rows that several documents share.

Shapes: B rows, T tokens of a row, H query heads, G key-value heads, K head dim, N = ceil(T / 128) blocks of a row.

A token looks at itself and at earlier tokens with its own segment id. Two forms of that mask:

- dense: bool ``[B, 1, T, T]``, for any kernel that takes a mask. Memory and time grow with T x T.
- blocks: FlexAttention's ``BlockMask``: for each block of 128 queries the blocks of keys that it may see. Blocks where
  nobody may look are not computed, so the time follows the lengths of the documents. Memory is B x N x N.

CUDA gets blocks, a CPU the dense mask: FlexAttention has no backward pass there. (The other way on CUDA would be
``torch.nn.attention.varlen``: flash kernels only, so no fp32; and the number of documents is a shape of its arguments,
which differs from step to step, so that a compiled model would be compiled again and again.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from automodel_cli.device import choose_compile
from automodel_cli.errors import ConfigError

BLOCK_TOKENS = 128  # what FlexAttention's kernels are made for
_NARROWEST_HEAD = 16  # its kernels refuse narrower ones


def document_mask(segment_ids: Tensor, *, dropout: float = 0.0, window: int | None = None) -> Tensor | BlockMask:
    """The mask of rows with ``segment_ids [B, T]``, in the form that suits their device; make it once a forward.

    Dense on CUDA too where FlexAttention cannot help: with ``dropout`` of attention weights, in rows of one block, and
    where torch.compile, which makes its kernels, does not work. With ``window`` a token sees at most so many tokens.
    """
    short = segment_ids.shape[1] <= BLOCK_TOKENS
    if dropout > 0 or short or not _has_flex_attention(segment_ids.device):
        return dense_mask(segment_ids, window)
    return block_mask(segment_ids, window)


def dense_mask(segment_ids: Tensor, window: int | None = None) -> Tensor:
    """Bool ``[B, 1, T, T]``: True where a query (third axis) may look. No row is empty, as each may look at itself."""
    tokens = segment_ids.shape[1]
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=segment_ids.device).tril()
    causal = causal if window is None else causal.triu(1 - window)
    return causal & (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])


def block_mask(segment_ids: Tensor, window: int | None = None) -> BlockMask:
    """The same as blocks, from the smallest and largest id in each: nothing of size T x T, and no waiting for a device.

    Ids need not be in order. Where they are (as in our data), exactly the blocks with something to see are listed;
    else a few more may be, whose tokens ``may_look`` decides on one by one.
    """
    segments = segment_ids.to(torch.int32)
    tokens, device = segments.shape[1], segments.device
    blocks = -(-tokens // BLOCK_TOKENS)
    places = torch.arange(blocks * BLOCK_TOKENS, device=device).clamp(max=tokens - 1)  # the last block filled up
    lowest, highest = segments[:, places].unflatten(1, (blocks, BLOCK_TOKENS)).aminmax(dim=-1)  # [B, N]
    overlap = (lowest[:, :, None] <= highest[:, None, :]) & (lowest[:, None, :] <= highest[:, :, None])
    numbers = torch.arange(blocks, device=device)
    queries, keys = numbers[:, None], numbers
    single = lowest == highest
    everything = overlap & single[:, :, None] & single[:, None, :] & (queries > keys)
    everything &= queries < tokens // BLOCK_TOKENS  # a last block that is not full has its borders checked
    something = overlap & (queries >= keys)  # [B, N query blocks, N key blocks]
    reach = tokens if window is None else window
    everything &= (queries - keys + 1) * BLOCK_TOKENS <= reach  # of the last query, back to the first key
    something &= (queries - keys - 1) * BLOCK_TOKENS + 1 < reach  # of the first query, back to the last key
    something &= ~everything

    def may_look(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        near = (query >= key) & (query - key < reach)
        return near & (segments[row, query] == segments[row, key])

    return BlockMask.from_kv_blocks(
        *_listed(something),
        *_listed(everything),
        BLOCK_SIZE=BLOCK_TOKENS,
        mask_mod=may_look,
        seq_lengths=(tokens, tokens),
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many of ``[B, N, N]`` are True in each row, int32 ``[B, 1, N]``, and their numbers before all others."""
    number = blocks.sum(dim=-1, dtype=torch.int32)
    order = blocks.to(torch.int32).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    return number[:, None], order[:, None]


def attend_for(mask: Tensor | BlockMask | None, attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``attend``, but for a ``BlockMask``, which only FlexAttention understands."""
    return attend_blocks if isinstance(mask, BlockMask) else attend


def attend_blocks(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    mask: BlockMask,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """FlexAttention: queries ``[B, H, T, K]``, keys and values ``[B, G, T, K]`` -> ``[B, H, T, K]``.

    Raises:
        ConfigError: with dropout, which its kernels do not have.
    """
    if dropout > 0:
        raise ConfigError(
            f"documents in one row are kept apart by FlexAttention, which has no dropout ({dropout:g} is set)",
            "set the model's attention dropout to 0",
        )
    width = values.shape[-1]
    missing = max(0, _NARROWEST_HEAD - width)
    # Under autocast, rotary angles leave queries and keys in fp32; SDPA would cast them, FlexAttention refuses.
    queries, keys = queries.to(values.dtype), keys.to(values.dtype)
    if missing:
        queries, keys, values = (F.pad(one, (0, missing)) for one in (queries, keys, values))
    mixed = _flex_attention()(
        queries,
        keys,
        values,
        block_mask=mask,
        scale=width**-0.5 if scale is None else scale,
        enable_gqa=queries.shape[1] != keys.shape[1],
    )
    return mixed[..., :width] if missing else mixed


def _flex_attention() -> Callable[..., Any]:
    """FlexAttention as part of what is being compiled; else compiled on its own, or it would store T x T scores."""
    return flex_attention if torch.compiler.is_compiling() else _compiled_flex_attention()


@functools.cache
def _compiled_flex_attention() -> Any:
    return torch.compile(flex_attention, dynamic=False)


def _has_flex_attention(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    return torch.compiler.is_compiling() or choose_compile(True, device=device, total_tokens=0, total_steps=0)[0]
