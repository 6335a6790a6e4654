"""Which tokens of a batch are this rank's, and attention over tokens that lie on several ranks.

Shapes: B rows, T tokens of a row, c = T / (2 cp) tokens of a chunk, H heads, K head dim.

Context parallel divides each row into 2 cp chunks; rank r has chunks r and 2 cp - 1 - r. A causal token looks at all
before it, so an early and a late chunk together are the same work on every rank. Queries stay, keys and values are
gathered. Tensor parallel divides what a cp rank has once more, contiguously, wherever layers work on each token alone;
before shared matrices the tokens are gathered (``tensor_parallel``), so attention sees all tokens of its cp rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right

from automodel_cli.batch import IGNORE_INDEX, Batch
from automodel_cli.distributed.collectives import gather
from automodel_cli.distributed.world import World


@dataclass
class ShardedBatch(Batch):
    """This rank's tokens; ``whole`` is the batch they are from, padded so that it divides evenly."""

    whole: Batch | None = None


class SequenceSharder:
    """How the tokens of a batch lie over the cp and tp ranks of a world."""

    def __init__(self, world: World) -> None:
        self.cp, self.cp_rank = world.axis_size("cp"), world.axis_rank("cp")
        self.tp, self.tp_rank = world.axis_size("tp"), world.axis_rank("tp")
        self.cp_group = world.mesh.get_group("cp") if world.mesh is not None else None
        self.whole: Batch | None = None
        # The masks of a batch with segments, by chunk; of whole rows at 0.
        self._apart: dict[int, Tensor] = {}

    def follow(self, model: nn.Module) -> None:
        """Know, while ``model`` runs, which batch it runs on."""

        def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            batch = inputs[0]
            assert isinstance(batch, ShardedBatch), (
                "the model is spread over tokens: pass ParallelModel.shard_batch(batch)"
            )
            assert batch.whole is not None
            self.see(batch.whole)

        model.register_forward_pre_hook(look, prepend=True)

    def see(self, whole: Batch) -> None:
        """The batch that attention is about to work on. Masks within segments are made here, once for all layers."""
        self.whole, self._apart = whole, {}
        if whole.segment_ids is not None:
            numbers = (0,) if self.cp == 1 else self.chunk_numbers()
            self._apart = {number: self._mask_within(whole.segment_ids, number) for number in numbers}

    # ------------------------------------------------------------------------------------------- tokens

    def shard_batch(self, batch: Batch) -> Batch:
        """This rank's tokens, with the positions they have in their rows.

        Segments stay with the whole batch: masks come from ``attending``, and the model should make none.
        """
        whole = self._padded(batch)
        own = {
            name: self.own(self.of_cp_rank(tensor))
            for name, tensor in vars(whole).items()
            if tensor is not None and name not in ("segment_ids", "sources", "row_weights")
        }
        return ShardedBatch(whole=whole, sources=batch.sources, row_weights=batch.row_weights, **own)

    def _padded(self, batch: Batch) -> Batch:
        rows, tokens = batch.input_ids.shape
        missing = -tokens % ((2 * self.cp if self.cp > 1 else 1) * self.tp)
        positions = batch.position_ids
        if positions is None:
            positions = torch.arange(tokens, device=batch.input_ids.device).expand(rows, tokens)
        return Batch(
            input_ids=F.pad(batch.input_ids, (0, missing)),
            labels=None if batch.labels is None else F.pad(batch.labels, (0, missing), value=IGNORE_INDEX),
            position_ids=F.pad(positions, (0, missing)),
            segment_ids=None if batch.segment_ids is None else F.pad(batch.segment_ids, (0, missing), value=-1),
        )

    def of_cp_rank(self, row: Tensor) -> Tensor:
        """``[B, T, ...] -> [B, T / cp, ...]``: an early and a late chunk."""
        if self.cp == 1:
            return row
        chunks = row.chunk(2 * self.cp, dim=1)
        return torch.cat([chunks[number] for number in self.chunk_numbers()], dim=1)

    def own(self, row: Tensor) -> Tensor:
        """``[B, T / cp, ...] -> [B, T / (cp tp), ...]``: a contiguous stretch."""
        return row.chunk(self.tp, dim=1)[self.tp_rank]

    def chunk_numbers(self) -> tuple[int, int]:
        """The chunks of this cp rank."""
        return self.cp_rank, 2 * self.cp - 1 - self.cp_rank

    def positions(self) -> Tensor:
        """Positions of all tokens of this cp rank ``[B, T / cp]``, as attention sees them."""
        assert self.whole is not None and self.whole.position_ids is not None
        return self.of_cp_rank(self.whole.position_ids)

    # ---------------------------------------------------------------------------------------- attention

    def attending(self, attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """``attend`` over the tokens of all cp ranks; masks come from the batch."""

        def attend_over_ranks(
            queries: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None, dropout: float
        ) -> Tensor:
            if self.cp == 1:
                return attend(queries, keys, values, mask=self._apart.get(0), dropout=dropout)
            keys, values = self._all_chunks(keys), self._all_chunks(values)
            chunk = queries.shape[2] // 2
            mixed = []
            for number, mine in zip(self.chunk_numbers(), queries.split(chunk, dim=2), strict=True):
                seen = (number + 1) * chunk
                bias = self._apart[number] if self._apart else _causal(number, chunk, queries.device)
                mixed.append(attend(mine, keys[:, :, :seen], values[:, :, :seen], mask=bias, dropout=dropout))
            return torch.cat(mixed, dim=2)

        return attend_over_ranks

    def _all_chunks(self, own: Tensor) -> Tensor:
        """``[B, H, T / cp, K]`` of every cp rank as ``[B, H, T, K]``, in the order of the row."""
        assert self.cp_group is not None
        chunks = gather(own, 2, self.cp_group).chunk(2 * self.cp, dim=2)  # 0, 2cp-1, 1, 2cp-2, ...
        return torch.cat([*chunks[0::2], *reversed(chunks[1::2])], dim=2)

    def _mask_within(self, segment_ids: Tensor, number: int) -> Tensor:
        """What the queries of one chunk may see of the keys up to its end: bool ``[B, 1, c, (number + 1) c]``.

        With one cp rank the chunk is the row. A dense mask: T^2 / (2 cp) bytes a row at most, and no flash kernel.
        """
        chunk = segment_ids.shape[1] // (1 if self.cp == 1 else 2 * self.cp)
        first, seen = number * chunk, (number + 1) * chunk
        causal = torch.ones(chunk, seen, dtype=torch.bool, device=segment_ids.device).tril(first)
        return causal & (segment_ids[:, None, first:seen, None] == segment_ids[:, None, None, :seen])


def _causal(number: int, chunk: int, device: torch.device) -> Any:
    """What the queries of chunk ``number`` may see of the keys up to its end: ``[1, 1, c, (number + 1) c]``."""
    first, seen = number * chunk, (number + 1) * chunk
    if device.type == "cuda":
        return causal_lower_right(chunk, seen)  # a mask that the flash kernel knows, and nobody stores
    return torch.ones(chunk, seen, dtype=torch.bool, device=device).tril(first)[None, None]
