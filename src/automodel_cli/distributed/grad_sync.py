"""What the ranks agree on within one update: sums, when gradients are exchanged, and the norm of all of them.

Every rank works on tokens of its own: other rows (data parallel), another part of each row (context parallel), or
another stretch of what it has between the shared matrices (tensor parallel). So a sum over *all* ranks counts every
token once, and a gradient is whole once it is summed over the ranks that hold a copy of its piece.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate
from torch.nn.parallel import DistributedDataParallel

from automodel_cli.distributed.world import World


class GradSync:
    """One process: nothing to agree on. Other classes say what several do."""

    grad_divisor = 1
    """Ranks over which the exchange of gradients takes a mean instead of a sum."""

    def sum(self, tensor: Tensor) -> Tensor:
        """``tensor`` summed over all ranks."""
        return tensor

    def sync_context(self, last: bool) -> AbstractContextManager[object]:
        """Around forward and backward of a micro-batch; gradients are exchanged in the ``last`` one only."""
        return contextlib.nullcontext()

    def reduce_partial(self, gradients: Sequence[Tensor]) -> None:
        """Complete what the backward pass left partial."""

    def agree_on_overflow(self, scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> None:
        """After ``scaler.unscale_``: what overflowed on one rank has overflowed."""

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """L2 norm of the whole gradient."""
        return nn.utils.get_total_norm(list(gradients))


class DistributedGradSync(GradSync):
    """Several processes; ``model`` is what is called: a module with FSDP applied, or one in DDP."""

    def __init__(self, world: World, model: nn.Module) -> None:
        self.world = world
        self.model = model
        self._shares: tuple[tuple[float, ...], Tensor] = ((), torch.empty(0))
        if isinstance(model, DistributedDataParallel):
            self.grad_divisor = dist.get_world_size(model.process_group)

    def sum(self, tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor)
        return tensor

    @contextlib.contextmanager
    def sync_context(self, last: bool):  # type: ignore[no-untyped-def, override]
        if isinstance(self.model, FSDPModule):
            self.model.set_is_last_backward(last)
            self.model.set_requires_gradient_sync(last)
        elif isinstance(self.model, DistributedDataParallel) and not last:
            with self.model.no_sync():
                yield
            return
        yield

    def reduce_partial(self, gradients: Sequence[Tensor]) -> None:
        """Sum over tp what each of its ranks has from its own tokens only: norms, biases, small tables.

        They are marked as copies there. One exchange for all of them, of the pieces that data-parallel ranks hold.
        """
        if self.world.axis_size("tp") == 1:
            return
        partial = [local(gradient) for gradient in gradients if is_copied_over_tp(gradient)]
        if partial:
            flat = torch.cat([tensor.reshape(-1) for tensor in partial])
            assert self.world.mesh is not None
            dist.all_reduce(flat, group=self.world.mesh.get_group("tp"))
            sums = flat.split([tensor.numel() for tensor in partial])
            for tensor, summed in zip(partial, sums, strict=True):
                tensor.copy_(summed.view_as(tensor))

    def agree_on_overflow(self, scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> None:
        for found in scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"].values():
            dist.all_reduce(local(found), op=dist.ReduceOp.MAX)

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Each rank adds up its pieces, a piece that several ranks hold divided by their number; then one sum."""
        pieces = [local(gradient) for gradient in gradients]
        shares = tuple(distinct_pieces(gradient) / self.world.size for gradient in gradients)
        norms = torch.stack(torch._foreach_norm(pieces)).float()
        if self._shares[0] != shares:  # the same in every update: copying them to the device would wait for it
            self._shares = (shares, torch.tensor(shares, device=norms.device))
        square = (norms.square() * self._shares[1]).sum()
        dist.all_reduce(square)
        return square.sqrt()


def local(tensor: Tensor) -> Tensor:
    """This rank's piece of a distributed tensor, the tensor itself if it is none; no copy."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def distinct_pieces(tensor: Tensor) -> int:
    """In how many pieces ``tensor`` lies over the ranks; 1 where each of them has all of it."""
    if not isinstance(tensor, DTensor):
        return 1
    sizes = zip(tensor.placements, tensor.device_mesh.shape, strict=True)
    return math.prod(size for placement, size in sizes if not isinstance(placement, Replicate))


def is_copied_over_tp(tensor: Tensor) -> bool:
    """Whether every tensor-parallel rank has the same piece of ``tensor``."""
    if not isinstance(tensor, DTensor):
        return False
    names = tensor.device_mesh.mesh_dim_names or ()
    return "tp" in names and isinstance(tensor.placements[names.index("tp")], Replicate)
