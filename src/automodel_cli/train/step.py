"""One update of the weights: accumulate gradients over micro-batches, clip, and step unless something is not
finite.

Order of events: count label tokens -> forward and backward of each micro-batch, loss divided by the *global*
count -> gradient norm -> clip -> optimizer step, or none if loss or norm is NaN or infinite.

Nothing here waits for the device, except the step of an optimizer without ``found_inf`` (one ``.item()``):
the results are device tensors, and whoever logs them decides when to wait.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from automodel_cli.batch import IGNORE_INDEX, Batch
from automodel_cli.distributed.grad_sync import GradSync, local
from automodel_cli.dtypes import autocast
from automodel_cli.models.init import derive_seed
from automodel_cli.models.interface import HeadLoss
from automodel_cli.train.row_losses import SourceSums, nll_of

Scalar = TypeVar("Scalar", Tensor, float)


@dataclass(frozen=True)
class StepMetrics(Generic[Scalar]):
    """Numbers of one update over all ranks: scalar tensors on the device, or Python numbers once they were read."""

    loss: Scalar  # mean nll per label token in nats, fp32
    num_label_tokens: Scalar  # label tokens of the global batch, int64
    grad_norm: Scalar  # L2 norm of the whole gradient before clipping, fp32
    skipped: Scalar  # true where loss or gradient was not finite, or above a limit, and the weights were left alone
    by_source: Any = None  # nll and label tokens of each source, fp64 [2, S], or lists of them; None: not told apart


def null_timer(name: str) -> AbstractContextManager[object]:
    """Around a phase of an update that nobody measures."""
    return _NOTHING


_NOTHING = contextlib.nullcontext()


def train_step(
    model: nn.Module,
    head_loss: HeadLoss,
    optimizer: torch.optim.Optimizer,
    microbatches: Sequence[Batch],
    *,
    max_norm: float | None = 1.0,
    autocast_dtype: torch.dtype | None = None,
    scaler: torch.amp.GradScaler | None = None,
    ranks: GradSync | None = None,
    dropout_seed: int | None = None,
    limits: Tensor | None = None,
    phase: Callable[[str], AbstractContextManager[object]] = null_timer,
    sources: int = 0,
) -> StepMetrics[Tensor]:
    """Do one update from this rank's micro-batches.

    Args:
        max_norm: clip the gradient's L2 norm to this; None measures it and clips nothing.
        autocast_dtype: compute dtype of matrix products (bf16, fp16), or None for the weights' own.
        scaler: loss scaler for fp16.
        ranks: what several processes agree on in an update; None for one process.
        dropout_seed: names the random numbers of this update's dropout (see ``dropout_seed``); None where the
            model draws none.
        limits: fp32 ``[2]`` on the device: an update whose loss or gradient norm is above its own is left out too, on
            all ranks if on one (``spikes``).
        phase: entered by name around each part: "forward" and "backward" (with the exchange of gradients that
            overlaps with it) once a micro-batch, "gradient norm, clip" and "optimizer" once.
        sources: how many the rows are of, to tell their losses apart (``head_loss`` is a ``RowLoss`` then); 0: do not.
    """
    ranks = ranks or GradSync()
    device = microbatches[0].input_ids.device
    num_label_tokens = ranks.sum(count_label_tokens(microbatches))
    scale = ranks.grad_divisor / num_label_tokens.clamp(min=1).float()
    optimizer.zero_grad(set_to_none=True)
    nll_sum = torch.zeros((), dtype=torch.float32, device=device)
    by_source = SourceSums(sources, device) if sources else None
    for index, batch in enumerate(microbatches):
        if dropout_seed is not None:
            torch.manual_seed(derive_seed(dropout_seed, index))
        with ranks.sync_context(last=index == len(microbatches) - 1):
            with phase("forward"), autocast(device, autocast_dtype):
                nll, rows = nll_of(model, batch, head_loss, by_row=by_source is not None)
            loss = nll * scale
            with phase("backward"):
                (loss if scaler is None else scaler.scale(loss)).backward()
        nll_sum += nll.detach()
        if by_source is not None:
            by_source.add(batch, rows)
    with phase("gradient norm, clip"):
        nll_sum = ranks.sum(nll_sum)
        told_apart = None if by_source is None else ranks.sum(by_source.totals)
        if scaler is not None:
            scaler.unscale_(optimizer)
            ranks.agree_on_overflow(scaler, optimizer)
        gradients = gradients_of(optimizer)
        ranks.reduce_partial(gradients)
        grad_norm = clip_gradients(gradients, max_norm, ranks)
    with phase("optimizer"):
        skipped = ~(torch.isfinite(nll_sum) & torch.isfinite(grad_norm))
        if limits is not None:
            above = (nll_sum / num_label_tokens.clamp(min=1) > limits[0]) | (grad_norm > limits[1])
            skipped = ranks.sum((skipped | above).float()) > 0
        step_if_finite(optimizer, skipped)
        if scaler is not None:
            scaler.update()
    return StepMetrics(nll_sum / num_label_tokens.clamp(min=1), num_label_tokens, grad_norm, skipped, told_apart)


def count_label_tokens(microbatches: Iterable[Batch]) -> Tensor:
    """Number of labels that are not ``IGNORE_INDEX``, int64 scalar."""
    labels = [batch.labels for batch in microbatches if batch.labels is not None]
    return torch.stack([(one != IGNORE_INDEX).sum() for one in labels]).sum()


def gradients_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The gradients that the optimizer is about to use."""
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def clip_gradients(gradients: list[Tensor], max_norm: float | None, ranks: GradSync | None = None) -> Tensor:
    """Scale ``gradients`` in place to an L2 norm of at most ``max_norm``; returns the norm before, fp32."""
    norm = (ranks or GradSync()).norm(gradients)
    if max_norm is not None:
        coefficient = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([local(gradient) for gradient in gradients], coefficient)
    return norm.float()


def step_if_finite(optimizer: torch.optim.Optimizer, skipped: Tensor) -> None:
    """Step the optimizer unless ``skipped``; then weights and moments stay as they are."""
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        if not skipped.item():
            optimizer.step()
        return
    # The fused kernels read the flag on the device: no wait, and a skipped step costs a launch.
    optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf, optimizer.grad_scale  # type: ignore[attr-defined]
