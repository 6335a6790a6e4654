"""Updates brought to a CUDA device while the one before is computed.

Tokens leave the host as they are stored (two bytes each where the vocabulary allows) and are widened on the device.
The copies run on a stream of their own and are asked for one update ahead, so that neither reading files nor the bus
is in the way of an update.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from automodel_cli.batch import Batch


def prefetch_to_device(updates: Iterator[list[Batch]], device: torch.device) -> Iterator[list[Batch]]:
    """``updates`` on ``device``, int64, the next one under way while one is in use; without CUDA as they are."""
    if device.type != "cuda":
        yield from updates
        return
    copies = torch.cuda.Stream(device)
    following = _start(updates, copies, device)
    while following is not None:
        update, arrived = following
        following = _start(updates, copies, device)
        here = torch.cuda.current_stream(device)
        here.wait_event(arrived)
        for batch in update:
            for tensor in _tensors(batch):
                tensor.record_stream(here)  # its memory is used again only when that stream is done with it
        yield update


def _start(
    updates: Iterator[list[Batch]], copies: torch.cuda.Stream, device: torch.device
) -> tuple[list[Batch], torch.cuda.Event] | None:
    """The next update on its way, and the event of its arrival; None at the end."""
    update = next(updates, None)
    if update is None:
        return None
    with torch.cuda.stream(copies):
        moved = [_widened(batch.to(device, non_blocking=True)) for batch in update]
        arrived = torch.cuda.Event()
        arrived.record(copies)
    return moved, arrived


def _widened(batch: Batch) -> Batch:
    return Batch(**{name: tensor.long() for name, tensor in vars(batch).items() if tensor is not None})


def _tensors(batch: Batch) -> Iterator[torch.Tensor]:
    return (tensor for tensor in vars(batch).values() if tensor is not None)
