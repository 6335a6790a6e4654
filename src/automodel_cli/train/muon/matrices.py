"""The matrices that weights consist of, and which rank makes which of them orthogonal.

A weight is one matrix ``[out, in]``, or several along its output (queries, keys and values in one), or lies transposed
(transformers' ``Conv1D`` is ``[in, out]``). Each matrix is made orthogonal by itself: together, maps that have nothing
to do with each other would share their singular values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from automodel_cli.distributed.chunks import Chunk
from automodel_cli.errors import ConfigError
from automodel_cli.models.interface import MatrixLayout


@dataclass(frozen=True)
class Matrix:
    """One matrix in one of a list of weights.

    Attributes:
        weight: the weight's place in the list.
        chunk: where it lies in that weight.
        transposed: whether it lies there as ``[in, out]``.
    """

    weight: int
    chunk: Chunk
    transposed: bool

    @property
    def out_in(self) -> tuple[int, int]:
        """Its shape as a linear map."""
        rows, columns = self.chunk[1]
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def is_tall(self) -> bool:
        """Whether the output is at least as wide as the input."""
        out, inner = self.out_in
        return out >= inner

    @property
    def stacked_shape(self) -> tuple[int, int]:
        """Its shape in a stack: the short side first, so that tall and wide ones of the same sides go together."""
        return tuple(sorted(self.out_in))  # type: ignore[return-value]

    @property
    def lies_across(self) -> bool:
        """Whether it is turned on its way from the weight to a stack."""
        return self.is_tall != self.transposed

    @property
    def cost(self) -> int:
        """Multiplications of one step, to scale."""
        short, long = self.stacked_shape
        return short * short * (2 * long + short)


def matrices_of(shapes: Sequence[tuple[int, ...]], layouts: Sequence[MatrixLayout]) -> list[Matrix]:
    """The matrices of weights of these shapes, weight by weight.

    Raises:
        ConfigError: a weight has not two dimensions, or its parts do not add up.
    """
    found = []
    for index, (shape, layout) in enumerate(zip(shapes, layouts, strict=True)):
        if len(shape) != 2:
            raise ConfigError(
                f"muon: a weight of shape {list(shape)} is no matrix",
                "give it to AdamW: its role is not matrix",
            )
        dim = 1 if layout.transposed else 0
        sizes = layout.sizes or (shape[dim],)
        if sum(sizes) != shape[dim]:
            raise ConfigError(
                f"muon: parts of {list(sizes)} do not add up to a weight of shape {list(shape)}",
                "correct the model's matrix_layouts()",
            )
        for begin, size in zip(_begins(sizes), sizes, strict=True):
            offsets, extent = [0, 0], list(shape)
            offsets[dim], extent[dim] = begin, size
            found.append(Matrix(index, (tuple(offsets), tuple(extent)), layout.transposed))
    return found


def _begins(sizes: Sequence[int]) -> list[int]:
    return [sum(sizes[:n]) for n in range(len(sizes))]


def divide(matrices: Sequence[Matrix], ranks: int) -> list[int]:
    """Which rank makes each matrix orthogonal: the dearest first, always to the rank with the least to do.

    The same on all ranks. Some may have nothing to do.
    """
    load, owners = [0] * ranks, [0] * len(matrices)
    for index in sorted(range(len(matrices)), key=lambda i: (-matrices[i].cost, i)):
        owners[index] = min(range(ranks), key=lambda rank: (load[rank], rank))
        load[owners[index]] += matrices[index].cost
    return owners


def by_shape(matrices: Sequence[Matrix]) -> dict[tuple[int, int], list[int]]:
    """Places in the list by the shape in a stack."""
    places: dict[tuple[int, int], list[int]] = {}
    for index, matrix in enumerate(matrices):
        places.setdefault(matrix.stacked_shape, []).append(index)
    return places


LR_SCALES = {
    "keller": lambda out, inner: math.sqrt(max(1.0, out / inner)),
    "spectral_norm": lambda out, inner: math.sqrt(out / inner),
    "rms_norm": lambda out, inner: 0.2 * math.sqrt(max(out, inner)),
}
"""What an update of an ``[out, in]`` matrix is multiplied by.

keller          Jordan 2024; the default of ``torch.optim.Muon``
spectral_norm   the same change of the output whatever the widths (Yang et al. 2023, arXiv 2310.17813)
rms_norm        elements as large as those of AdamW's updates (Liu et al. 2025, arXiv 2502.16982)
"""
