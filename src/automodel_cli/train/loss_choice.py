"""Which cross-entropy a run takes, plain or chunked, and why. A run keeps its choice: the last bits differ.

On a GPU memory decides: there the chunked loss costs no time. On a CPU both are timed at the width, vocabulary and
dtype of the run, since what is faster depends on caches, threads and matrix units. Measured crossing points lie at
2^21 to 2^22 logits; from 2^23 on the chunked loss was 1.3 times as fast or more wherever it was tried, so a choice
does not hang by a hair.
"""

from __future__ import annotations

import functools
import time

import torch
from torch import Tensor

from automodel_cli.dtypes import autocast
from automodel_cli.models.interface import HeadLoss
from automodel_cli.train.losses import ChunkedCrossEntropy, MaskedCrossEntropy

OWN_LOSSES = tuple(f"{one.__module__}.{one.__qualname__}" for one in (MaskedCrossEntropy, ChunkedCrossEntropy))
_PLAIN_BYTES_PER_LOGIT = 10  # compute dtype, fp32 log-probabilities, fp32 gradient
_PLAIN_UP_TO_GIB = 0.25

_SMALL = 1 << 23  # logits below which a CPU takes the plain loss untimed
_TIMED = 1 << 24  # logits that are timed at most
_WARM_UP = 8  # tokens
_ROUNDS, _ENOUGH_S = 3, 1.0
_WORTH = 0.9  # the plain loss must be this much faster to be worth its memory


def pick_loss(
    *,
    vocab_size: int,
    tokens: int,
    width: int,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> tuple[str, str]:
    """("plain" | "chunked", why) for a micro-batch of ``tokens`` and a (padded) vocabulary.

    Args:
        width: of the hidden states.
        dtype: autocast's; None: fp32.
    """
    gib = tokens * vocab_size * _PLAIN_BYTES_PER_LOGIT / 2**30
    if torch.device(device).type != "cpu":
        if gib > _PLAIN_UP_TO_GIB:
            return "chunked", f"whole logits and their gradient would take {gib:.1f} GiB"
        return "plain", f"whole logits and their gradient take {gib:.2f} GiB"
    if tokens * vocab_size < _SMALL:
        return "plain", f"whole logits and their gradient take {gib:.2f} GiB"
    return _faster(min(tokens, max(1, _TIMED // vocab_size)), width, vocab_size, dtype)


@functools.cache
def _faster(tokens: int, width: int, vocab_size: int, dtype: torch.dtype | None) -> tuple[str, str]:
    """The faster loss on this CPU, and what both took."""
    times = _best_times(tokens, width, vocab_size, dtype)
    chosen = "plain" if times["plain"] < _WORTH * times["chunked"] else "chunked"
    both = ", ".join(f"{name} {1e3 * seconds:,.0f} ms" for name, seconds in sorted(times.items()))
    return chosen, f"{both} for {tokens} tokens"


def _best_times(tokens: int, width: int, vocab_size: int, dtype: torch.dtype | None) -> dict[str, float]:
    """Seconds of forward and backward of each, the shortest seen; in turn, so that a busy machine hurts both."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, tokens, width, generator=generator).requires_grad_()
    weight = torch.randn(vocab_size, width, generator=generator).mul_(0.02).requires_grad_()
    labels = torch.randint(vocab_size, (1, tokens), generator=generator)
    losses: dict[str, HeadLoss] = {"plain": MaskedCrossEntropy(), "chunked": ChunkedCrossEntropy()}
    best = dict.fromkeys(losses, float("inf"))
    for loss in losses.values():  # what only a first call pays for
        _seconds(loss, hidden[:, :_WARM_UP], weight, labels[:, :_WARM_UP], dtype)
    started = time.perf_counter()
    for _ in range(_ROUNDS):
        for name, loss in losses.items():
            hidden.grad = weight.grad = None
            best[name] = min(best[name], _seconds(loss, hidden, weight, labels, dtype))
        if time.perf_counter() - started > _ENOUGH_S:
            break
    return best


def _seconds(loss: HeadLoss, hidden: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype | None) -> float:
    started = time.perf_counter()
    with torch.enable_grad(), autocast(torch.device("cpu"), dtype):
        nll = loss(hidden, weight, labels, vocab_size=weight.shape[0])
    nll.backward()
    return time.perf_counter() - started
