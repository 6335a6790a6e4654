"""Negative log-likelihood of logits, and their gradient in their place, in one kernel for NVIDIA and AMD GPUs (Triton).

Shapes: C rows (tokens), V logical columns, P columns in memory.

A row of 50,304 logits in bf16 is 100 KB. One program reads it once from memory for the sum of exponentials (with a
running maximum: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"), and a second time, from the
L2 cache, to write softmax minus one-hot over it. What torch.compile makes of the same formulas reads three times and
writes once from and to memory: on an H200 5.0 ms an update of 32,768 tokens, 8% of the whole update.

Imported on a GPU only: the CPU build of PyTorch comes without Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# 2 programs of 32 warps on a multiprocessor: 264 rows of 100 KB under way fit into 50 MB of L2.
_BLOCK, _WARPS = 16384, 32


@triton.jit
def _nll_and_gradient(
    logits_pointer,
    labels_pointer,
    nll_pointer,
    row_stride,
    columns,  # V
    stored_columns,  # P
    ignore_index,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits = logits_pointer + row * row_stride
    label = tl.load(labels_pointer + row)
    counted = label != ignore_index
    # Read before the loops: the reductions in the first one keep any warp from writing over it earlier.
    picked = tl.load(logits + tl.where(counted, label, 0)).to(tl.float32)

    highest = float("-inf")
    total = 0.0
    for first in range(0, columns, BLOCK):
        at = first + tl.arange(0, BLOCK)
        scores = tl.load(logits + at, mask=at < columns, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(highest, tl.max(scores, 0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(scores - higher), 0)
        highest = higher
    logsumexp = highest + tl.log(total)
    tl.store(nll_pointer + row, tl.where(counted, logsumexp - picked, 0.0))

    for first in range(0, stored_columns, BLOCK):
        at = first + tl.arange(0, BLOCK)
        scores = tl.load(logits + at, mask=at < columns, other=float("-inf")).to(tl.float32)
        gradient = tl.exp(scores - logsumexp) - tl.where(at == label, 1.0, 0.0)
        gradient = tl.where(counted, gradient, 0.0)
        tl.store(logits + at, gradient.to(logits_pointer.dtype.element_ty), mask=at < stored_columns)


def nll_and_gradient(logits: Tensor, labels: Tensor, vocab_size: int, ignore_index: int) -> Tensor:
    """Sum of nll (fp32) of ``logits [C, P]``, which become its gradient: softmax minus one-hot, 0 in ignored rows."""
    assert logits.stride(1) == 1
    nll = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    with torch.cuda.device(logits.device):
        _nll_and_gradient[(logits.shape[0],)](
            logits,
            labels,
            nll,
            logits.stride(0),
            vocab_size,
            logits.shape[1],
            ignore_index,
            BLOCK=_BLOCK,
            num_warps=_WARPS,
        )
    return nll.sum()
