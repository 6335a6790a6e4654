"""What rooms exchange: one batch of token ids and their labels.

Shapes: B rows, T tokens. Labels are already shifted: ``labels[b, t]`` is the token that follows
``input_ids[b, t]``, or ``IGNORE_INDEX`` where no loss is wanted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

IGNORE_INDEX = -100


@dataclass
class Batch:
    """Token ids with their labels, both int64 ``[B, T]``; optional positions and segments have the same shape.

    Attributes:
        sources: int64 ``[B]``, the source that each row is of, where the data set tells several apart.
        row_weights: fp32 ``[B]``, what the gradient of a row's tokens is multiplied by.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor | None = None
    position_ids: torch.Tensor | None = None
    segment_ids: torch.Tensor | None = None
    sources: torch.Tensor | None = None
    row_weights: torch.Tensor | None = None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch on ``device``."""

        def move(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=non_blocking)

        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=non_blocking),
            labels=move(self.labels),
            position_ids=move(self.position_ids),
            segment_ids=move(self.segment_ids),
            sources=move(self.sources),
            row_weights=move(self.row_weights),
        )

    def cut(self, seq_len: int) -> Batch:
        """The same tokens in rows of ``seq_len``, which divides T; a copy where they are not contiguous.

        Positions of a document that a new row begins inside of count from that row's first token.
        """
        pieces = self.input_ids.shape[1] // seq_len

        def shorter(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.repeat_interleave(pieces) if tensor.ndim == 1 else tensor.reshape(-1, seq_len)

        fields = {name: shorter(value) for name, value in vars(self).items() if value is not None}
        if (found := fields.get("position_ids")) is not None:
            begun = (found[:, 1:] != found[:, :-1] + 1).cumsum(1) > 0  # whether a document has, in this row
            fields["position_ids"] = counted = found.clone()
            counted[:, :1] = 0
            counted[:, 1:] -= found[:, :1] * ~begun
        return replace(self, **fields)
