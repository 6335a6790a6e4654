"""How width, batch, learning rates and weight decay follow from a model's depth. Pure arithmetic, no torch.

A depth is compared with the reference depth, for which the constants were tuned. N is the scaling count of parameters
(matrices of the blocks and head), D the width, B tokens of an update; with the index ref: of the reference.

    power_lines   B   = 2^round(log2(B_ref (N / N_ref)^0.383)): the best batch grows with the training tokens, and so
                        with N (Bergsma et al. 2025, "Power Lines", arXiv 2505.13738)
                  lr  x sqrt(B / B_ref), of all groups
                  wd  x sqrt(B / B_ref) N_ref / N: the span that weights are averaged over stays a fixed share of the
                        run (Wang & Aitchison 2024, arXiv 2405.13698)
    width         B   = B_ref
                  lr  x (D / D_ref)^-1/2, of AdamW's groups; Muon's learning rate follows the shapes of its matrices
                  wd  x (depth_ref / depth)^2

The first are nanochat's rules of 2026, the second its older ones. They point in opposite directions: deeper models get
larger learning rates under ``power_lines``, because their batch is larger, and smaller ones under ``width``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

ScalingRules = Literal["power_lines", "width"]
_BATCH_EXPONENT = 0.383


@dataclass(frozen=True)
class Size:
    """What the rules look at."""

    depth: int
    width: int
    params: int  # the scaling count


@dataclass(frozen=True)
class Multipliers:
    """Factors on what was tuned for the reference."""

    adamw_lr: float
    muon_lr: float
    weight_decay: float


def width_of(depth: int, aspect_ratio: float, head_dim: int) -> int:
    """``aspect_ratio x depth``, rounded up to whole heads."""
    return math.ceil(aspect_ratio * depth / head_dim) * head_dim


def batch_tokens(rules: ScalingRules, size: Size, reference: Size, reference_batch: int) -> int:
    """Tokens of an update."""
    if rules == "width":
        return reference_batch
    return 2 ** round(math.log2(reference_batch * (size.params / reference.params) ** _BATCH_EXPONENT))


def multipliers(rules: ScalingRules, size: Size, reference: Size, batch_ratio: float) -> Multipliers:
    """Factors for an update of ``batch_ratio`` times as many tokens as the reference has, by rule or by choice."""
    if rules == "width":
        decay = (reference.depth / size.depth) ** 2
        return Multipliers(math.sqrt(reference.width / size.width), 1.0, decay)
    lr = math.sqrt(batch_ratio)
    return Multipliers(lr, lr, lr * reference.params / size.params)
