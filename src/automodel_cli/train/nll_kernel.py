"""Negative log-likelihood of logits, and their gradient in their place, in one kernel for NVIDIA and AMD GPUs (Triton).

Shapes: C rows (tokens), V logical columns, P columns in memory.

A row of 50,304 logits in bf16 is 100 KB. One program reads it once from memory for the sum of exponentials (with
running maxima: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"), and a second time, from the
L2 cache, to write softmax minus one-hot over it. What torch.compile makes of the same formulas reads it from memory
several times: on an H200 5.0 ms per update of 32,768 tokens, 8% of the whole update (measured, torch 2.11).

Imported on a GPU only: the CPU build of PyTorch comes without Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# A thread loads 8 neighbours at once (16 bytes in bf16) and keeps a maximum and a sum of its own, so that threads wait
# for each other once a row. Two programs of 32 warps on a multiprocessor: 264 rows of 100 KB under way fit into L2.
_LANES, _NEIGHBOURS, _WARPS = 1024, 8, 32
_LOWEST = tl.constexpr(-1e30)  # in place of -inf, whose difference with itself is not a number


@triton.jit
def _tanh(x):
    return 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0  # right to 1e-7, also where the exponential is 0 or infinite


@triton.jit
def _nll_and_gradient(
    logits_pointer,
    labels_pointer,
    nll_pointer,
    row_stride,
    columns,  # V
    stored_columns,  # P
    ignore_index,
    z_loss_weight,
    token_weights_pointer,
    softcap,
    LANES: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    CAPPED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits = logits_pointer + row * row_stride
    label = tl.load(labels_pointer + row)
    counted = label != ignore_index
    # Read before the loops: the reductions between them keep any thread from writing over it earlier.
    picked = tl.load(logits + tl.where(counted, label, 0)).to(tl.float32)
    if CAPPED:
        picked = softcap * _tanh(picked / softcap)
    block = tl.arange(0, LANES)[:, None] * NEIGHBOURS + tl.arange(0, NEIGHBOURS)[None, :]

    highest = tl.full((LANES,), _LOWEST, tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    for first in range(0, columns, LANES * NEIGHBOURS):
        at = first + block
        scores = tl.load(logits + at, mask=at < columns, other=_LOWEST).to(tl.float32)
        if CAPPED:
            scores = tl.where(at < columns, softcap * _tanh(scores / softcap), _LOWEST)
        own = tl.max(scores, 1)
        own_total = tl.sum(tl.exp(scores - own[:, None]), 1)
        higher = tl.maximum(highest, own)
        total = total * tl.exp(highest - higher) + own_total * tl.exp(own - higher)
        highest = higher
    top = tl.max(highest, 0)
    logsumexp = top + tl.log(tl.sum(total * tl.exp(highest - top), 0))
    tl.store(nll_pointer + row, tl.where(counted, logsumexp - picked, 0.0))
    scale = 1.0 + 2.0 * z_loss_weight * logsumexp  # exactly 1 without a z-loss

    for first in range(0, stored_columns, LANES * NEIGHBOURS):
        at = first + block
        scores = tl.load(logits + at, mask=at < columns, other=_LOWEST).to(tl.float32)
        if CAPPED:
            tanh = _tanh(scores / softcap)
            scores = tl.where(at < columns, softcap * tanh, _LOWEST)
        gradient = tl.exp(scores - logsumexp) * scale - tl.where(at == label, 1.0, 0.0)
        if WEIGHTED:
            gradient = gradient * tl.load(token_weights_pointer + row)
        if CAPPED:
            gradient = gradient * (1.0 - tanh * tanh)
        gradient = tl.where(counted, gradient, 0.0)
        tl.store(logits + at, gradient.to(logits_pointer.dtype.element_ty), mask=at < stored_columns)


def nll_and_gradient(
    logits: Tensor,
    labels: Tensor,
    vocab_size: int,
    ignore_index: int,
    z_loss_weight: float = 0.0,
    token_weights: Tensor | None = None,
    nll_each: Tensor | None = None,
    softcap: float = 0.0,
) -> Tensor:
    """Sum of nll (fp32) of ``logits [C, P]``, which become the gradient, z-loss included; 0 in ignored rows.

    The gradient's rows are multiplied by ``token_weights`` (fp32 ``[C]``); ``nll_each`` (fp32 ``[C]``) receives the nll
    of each token. With ``softcap`` it is the nll of the capped logits.
    """
    assert logits.stride(1) == 1 and (token_weights is None or token_weights.stride(0) == 1)
    nll = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device) if nll_each is None else nll_each
    with torch.cuda.device(logits.device):
        _nll_and_gradient[(logits.shape[0],)](
            logits,
            labels,
            nll,
            logits.stride(0),
            vocab_size,
            logits.shape[1],
            ignore_index,
            z_loss_weight,
            nll if token_weights is None else token_weights,  # a pointer that nothing reads where not WEIGHTED
            softcap,
            LANES=_LANES,
            NEIGHBOURS=_NEIGHBOURS,
            WEIGHTED=token_weights is not None,
            CAPPED=softcap > 0,
            num_warps=_WARPS,
        )
    return nll.sum()
