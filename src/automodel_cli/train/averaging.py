"""An average of the weights beside the weights, while they are trained: exponential, or the mean of the last updates.

After the n-th update that counts, ``average += w_n * (weights - average)``, with

    decay d       w_n = (1 - d) / (1 - d**n)    the exponential average without its bias towards the start, as Adam
                                                corrects its moments (Kingma and Ba, arXiv:1412.6980, section 3)
    last updates  w_n = 1 / n                   their mean (stochastic weight averaging, arXiv:1803.05407)

In both w_1 is 1, so initial weights have no part in it. Averages are fp32, lie where their parameters lie (sharded ones
as the same shards), and are updated without any exchange between ranks. A skipped update does not count; that is
decided on the device, and nobody waits for it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from automodel_cli.distributed.grad_sync import local
from automodel_cli.distributed.parallelize import reshard
from automodel_cli.errors import CheckpointError
from automodel_cli.json_files import Count, FileModel, validated

_AT_ONCE = 64  # tensors of one fused call; of weights that are not fp32 so many are held as fp32


@dataclass(frozen=True)
class AverageRule:
    """Which updates an average is of, and how much each counts."""

    decay: float | None  # of the exponential average; None: the mean
    first: int = 1  # update that it begins with
    every: int = 1  # of so many updates the last one counts

    @property
    def kind(self) -> Literal["decay", "tail"]:
        """The key of the `ema` section that asks for it, in short."""
        return "tail" if self.decay is None else "decay"

    def takes(self, step: int) -> bool:
        """Whether update ``step`` (from 1) counts."""
        return step >= self.first and (step - self.first + 1) % self.every == 0

    def weight(self, count: Tensor) -> Tensor:
        """Share of the newest of ``count`` updates (from 1; a scalar), fp32."""
        if self.decay is None:
            return 1.0 / count.float()
        bias = -torch.expm1(math.log(self.decay) * count.float())  # 1 - d**n without cancellation
        return ((1.0 - self.decay) / bias).clamp(max=1.0)

    def describe(self) -> str:
        """For the start-up table."""
        each = "" if self.every == 1 else f", each {self.every}th"
        if self.decay is None:
            return f"mean of the weights from update {self.first:,} on{each}"
        return f"exponential, decay {self.decay:g}{each}"


class StoredAverage(FileModel):
    """``ema`` in state.json."""

    rule: Literal["decay", "tail"]
    first: Count
    count: int = Field(gt=0, le=2**63 - 1)


class WeightAverage:
    """The average of a model's trained parameters. ``tensors`` has it by parameter name, laid out as the parameters.

    ``parameters``: those of ``model`` that are trained, by the names that checkpoints give them.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor], rule: AverageRule) -> None:
        self.rule = rule
        self._model, self._parameters = model, parameters
        self.tensors = {name: torch.zeros_like(one.detach(), dtype=torch.float32) for name, one in parameters.items()}
        device = next(iter(parameters.values())).device
        self._count = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def count(self) -> int:
        """How many updates the average is of; 0: there is none yet. Waits for the device."""
        return int(self._count)

    @torch.no_grad()
    def update(self, step: int, skipped: Tensor) -> None:
        """Take in the weights after update ``step`` (from 1), unless it was ``skipped`` (a bool scalar, anywhere)."""
        if not self.rule.takes(step):
            return
        skipped = skipped.to(self._count.device)
        self._count += ~skipped
        weight = torch.where(skipped, 0.0, self.rule.weight(self._count.clamp(min=1)))
        pairs = list(self._pairs())
        for begin in range(0, len(pairs), _AT_ONCE):
            averages, weights = zip(*pairs[begin : begin + _AT_ONCE], strict=True)
            shares = [weight] * len(averages)
            torch._foreach_lerp_(list(averages), [one.float() for one in weights], shares)

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Average and weights of this rank's piece of each parameter."""
        for name, parameter in self._parameters.items():
            yield local(self.tensors[name]), local(parameter.detach())

    # ------------------------------------------------------------------------------------------ in the model

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """While the block runs, the model has the averaged weights; after it its own again, bit for bit.

        fp32 weights change places with the averages, one tensor at a time; of others a copy is held meanwhile.
        """
        with torch.no_grad():
            held = self._exchange()
        try:
            yield
        finally:
            with torch.no_grad():
                self._exchange(held)

    def _exchange(self, held: list[Tensor] | None = None) -> list[Tensor]:
        """Swap; what cannot be (the weights are of a smaller type) is copied, and put back from ``held``."""
        reshard(self._model)  # FSDP may have kept weights of its last forward pass
        kept: list[Tensor] = []
        given = iter(held or ())
        for average, parameter in self._pairs():
            if parameter.dtype == average.dtype:
                before = parameter.clone()
                parameter.copy_(average)
                average.copy_(before)
            elif held is None:
                kept.append(parameter.clone())
                parameter.copy_(average)
            else:
                parameter.copy_(next(given))
        return kept

    # ------------------------------------------------------------------------------------------ in checkpoints

    def saved(self) -> tuple[Mapping[str, Tensor], dict[str, Any] | None]:
        """What a checkpoint holds: tensors, and JSON; nothing as long as no update has counted."""
        count = self.count
        if not count:
            return {}, None
        return self.tensors, {"rule": self.rule.kind, "first": self.rule.first, "count": count}

    def restore(self, stored: Any, step: int, where: Path) -> str | None:
        """Go on after a checkpoint of ``step`` whose tensors are in ``tensors``; a line where that is not seamless.

        Raises:
            CheckpointError: ``stored`` is not what :meth:`saved` gave.
        """
        self._count.zero_()
        if stored is None:
            begun = step >= self.rule.first
            return f"the average of the weights begins after step {step:,}: {where.name} holds none" if begun else None
        found = validated(stored, StoredAverage, f"{where / 'state.json'}: ema", CheckpointError)
        if (found.rule, found.first) != (self.rule.kind, self.rule.first):
            was = "exponential" if found.rule == "decay" else f"of the updates from {found.first:,} on"
            begin = max(step + 1, self.rule.first)
            return f"the average of the weights begins anew with step {begin:,}: that of {where.name} is {was}"
        self._count.fill_(found.count)
        return None
