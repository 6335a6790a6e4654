"""Orthogonalization, the step that gives Muon its name, for a whole stack of matrices of one shape at once.

With G = U S V^T, U V^T is wanted: all singular values 1. A few steps of an odd quintic polynomial come close, with
matrix products alone (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/):

    X <- G / |G|        A = X X^T        X <- a X + (b A + c A A) X

Two tables of (a, b, c): one triple for all steps, tuned by hand (Jordan), or one a step, each the best polynomial of
its degree for what the step before leaves ("Polar Express", Amsel et al. 2025, arXiv 2505.16932).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Triple = tuple[float, float, float]

NEWTON_SCHULZ: tuple[Triple, ...] = ((3.4445, -4.7750, 2.0315),)

POLAR_EXPRESS: tuple[Triple, ...] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""For five steps with a margin of 2% below a spectral norm of 1, as the paper's code prints them."""

METHODS = {"polar_express": (POLAR_EXPRESS, 1.02), "newton_schulz": (NEWTON_SCHULZ, 1.0)}
"""Name -> triples (the last one goes on for further steps), and what the norm is multiplied by before the first."""


def orthogonalize(stack: Tensor, *, method: str = "polar_express", steps: int = 5, epsilon: float = 1e-7) -> Tensor:
    """Matrices ``[K, R, C]`` with singular values near 1, in the dtype that they come in; zeros stay zeros.

    Five steps leave the singular values of a Gaussian matrix that is not square within 0.68 to 1.14
    (``newton_schulz``) or 0.86 to 1.14 (``polar_express``); a square one keeps some near zero.

    Args:
        epsilon: the smallest norm that is divided by.
    """
    triples, margin = METHODS[method]
    x = stack.mT if stack.shape[-2] > stack.shape[-1] else stack
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * margin).clamp(min=epsilon)
    for a, b, c in _for_steps(triples, steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if stack.shape[-2] > stack.shape[-1] else x


def _for_steps(triples: Sequence[Triple], steps: int) -> list[Triple]:
    return [triples[min(step, len(triples) - 1)] for step in range(steps)]
