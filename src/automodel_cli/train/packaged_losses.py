"""Cross-entropy over the language-model head from packages that users may have: Liger's and Apple's kernels for GPUs.

Shapes: B rows, T tokens, D model width, V logical vocabulary, P padded vocabulary.

``ChunkedCrossEntropy`` saves the same memory without a package. These are for comparisons, and for who trusts them:

    loss_fn: {_target_: automodel_cli.train.packaged_losses.LigerCrossEntropy}      # pip install liger-kernel
    loss_fn: {_target_: automodel_cli.train.packaged_losses.CutCrossEntropy}        # pip install cut-cross-entropy
"""

from __future__ import annotations

import functools
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from automodel_cli.errors import ConfigError
from automodel_cli.train.loss_arguments import PackagedArguments
from automodel_cli.train.losses import MaskedCrossEntropy, compute_dtype


class _Packaged(PackagedArguments, ABC):
    """What both have in common: the package is looked for when the loss is built, and padding rows are left out."""

    def __post_init__(self) -> None:
        self._nll = self._load()

    @abstractmethod
    def _load(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """The package's sum of nll, of hidden ``[N, D]``, weight ``[V, D]`` and labels ``[N]``."""

    def __call__(self, hidden: Tensor, weight: Tensor, labels: Tensor, *, vocab_size: int) -> Tensor:
        """Sum of nll for ``hidden [B, T, D]`` against ``labels [B, T]`` under the head ``weight [P, D]``."""
        dtype = compute_dtype(hidden)
        flat = hidden.flatten(0, -2).to(dtype)  # [B T, D]
        return self._nll(flat, weight[:vocab_size].to(dtype), labels.flatten()).float()

    def from_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum of nll for ``logits [B, T, V]``, for models that give no hidden states."""
        return MaskedCrossEntropy(ignore_index=self.ignore_index).from_logits(logits, labels)


class LigerCrossEntropy(_Packaged):
    """Liger's fused linear cross-entropy (Hsu et al. 2024), gradients of the weight accumulated in fp32.

    Raises:
        ConfigError: the package liger-kernel is not here.
    """

    def _load(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        module = _package("liger_kernel.transformers.fused_linear_cross_entropy", "liger-kernel")
        loss = module.LigerFusedLinearCrossEntropyLoss(
            ignore_index=self.ignore_index, reduction="sum", accum_dtype=torch.float32
        )
        return lambda hidden, weight, labels: loss(weight, hidden, labels)


class CutCrossEntropy(_Packaged):
    """Cut cross-entropy (Wijmans et al. 2024): logits never leave the chip. Half precision only.

    Raises:
        ConfigError: the package cut-cross-entropy is not here.
    """

    def _load(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        loss = _package("cut_cross_entropy", "cut-cross-entropy").linear_cross_entropy
        return functools.partial(loss, ignore_index=self.ignore_index, reduction="sum")


def _package(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"loss_fn needs the package {package}, which cannot be imported: {error}",
            f"pip install {package}, or leave loss_fn out: the chunked loss saves the same memory",
        ) from error
