"""Arguments of the losses. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from automodel_cli.batch import IGNORE_INDEX
from automodel_cli.errors import ConfigError


def check_reduction(reduction: str) -> None:
    """Raise a ConfigError where a loss is asked for anything but a sum."""
    if reduction != "sum":
        raise ConfigError(
            f"loss_fn reduction is {reduction!r}, expected 'sum'",
            "the training step divides the sum once by the label tokens of the global batch",
        )


def check_z_loss_weight(weight: float) -> None:
    """Raise a ConfigError where the weight of the z-loss is no weight."""
    if not 0 <= weight < math.inf:
        raise ConfigError(
            f"loss_fn z_loss_weight is {weight}, expected a number from 0 on",
            "1e-4 is PaLM's; leave it out for none",
        )


def check_ignore_index(index: int) -> None:
    """Raise a ConfigError where another label than that of our data is to be left out."""
    if index != IGNORE_INDEX:
        raise ConfigError(
            f"loss_fn ignore_index is {index}, but data mark tokens without a loss with {IGNORE_INDEX}",
            "leave it out",
        )


@dataclass(eq=False, repr=False)
class MaskedArguments:
    """What ``MaskedCrossEntropy`` takes.

    Args:
        fp32_upcast: compute the softmax in fp32 where logits are in half precision.
        ignore_index: the label of tokens without a loss; that of the data.
        reduction: sum; the training step divides once.
        z_loss_weight: w: the gradient is that of nll + w log(Z)^2, the loss that is shown stays nll (Chowdhery et al.
            2022, PaLM, arXiv 2204.02311, section 5: 1e-4); 0: none.

    Raises:
        ConfigError: a value is out of range.
    """

    fp32_upcast: bool = True
    ignore_index: int = IGNORE_INDEX
    reduction: str = "sum"
    z_loss_weight: float = 0.0

    def __post_init__(self) -> None:
        check_reduction(self.reduction)
        check_ignore_index(self.ignore_index)
        check_z_loss_weight(self.z_loss_weight)


@dataclass(eq=False, repr=False)
class ChunkedArguments:
    """What ``ChunkedCrossEntropy`` takes.

    Args:
        chunk_tokens: tokens whose logits are there at a time; None: as many as suit the vocabulary and the device.
        ignore_index, reduction, z_loss_weight: as for ``MaskedCrossEntropy``: the label of tokens without a loss, sum,
            and the weight of the z-loss (1e-4 in PaLM).

    Raises:
        ConfigError: a value is out of range.
    """

    chunk_tokens: int | None = None
    ignore_index: int = IGNORE_INDEX
    reduction: str = "sum"
    z_loss_weight: float = 0.0

    def __post_init__(self) -> None:
        check_reduction(self.reduction)
        check_ignore_index(self.ignore_index)
        check_z_loss_weight(self.z_loss_weight)
        if self.chunk_tokens is not None and self.chunk_tokens < 1:
            raise ConfigError(
                f"chunk_tokens is {self.chunk_tokens}, expected at least 1",
                "leave it out to let it be chosen",
            )


@dataclass(eq=False, repr=False)
class PackagedArguments:
    """What the losses of packages take."""

    ignore_index: int = IGNORE_INDEX

    def __post_init__(self) -> None:
        """For the losses themselves, which load their package here."""
