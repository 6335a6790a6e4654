"""Arguments of ``muon_adamw`` as a file gives them. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from automodel_cli.errors import ConfigError

Betas = tuple[float, float]
_SMALLEST_EPSILON = 1e-30  # smaller ones are 0 in some dtype, and a gradient of zeros would become NaN


@dataclass(eq=False, repr=False)
class MuonArguments:
    """Muon for the matrices of the blocks, AdamW for embeddings, head, norms and biases.

    Args:
        lr: Muon's learning rate (nanochat: 0.02); the schedule moves it, and the others in proportion.
        weight_decay: of the matrices, decoupled.
        cautious_weight_decay: decay only where the update shrinks the weight too (Chen et al. 2025, arXiv 2510.12402).
        momentum: of the gradients' running mean (Jordan et al. 2024).
        momentum_start: from here momentum rises within ``momentum_warmup_steps`` updates; null: it is constant
            (modded-nanogpt: 0.85 within 300).
        momentum_warmup_steps: how many updates momentum rises for; needs a ``momentum_start``.
        nesterov: look one gradient ahead (Jordan et al. 2024).
        orthogonalization: polar_express (Amsel et al. 2025, arXiv 2505.16932) or newton_schulz (Jordan et al. 2024).
        orthogonalization_steps: rounds of three matrix products (five in both sources).
        orthogonalization_dtype: bfloat16 or float32; auto: bfloat16 where the device computes it fast.
        epsilon: the smallest norm of a matrix that is divided by (torch.optim.Muon: 1e-7).
        normuon_beta2: evens out the size of updates among outputs, with this running mean of their squares
            (NorMuon, Li et al. 2025, arXiv 2510.05491: 0.95); null: plain Muon.
        adjust_lr: how the learning rate follows a matrix's shape: keller (sqrt(max(1, out / in)), as
            torch.optim.Muon), spectral_norm (sqrt(out / in); Yang et al. 2023, arXiv 2310.17813) or rms_norm
            (0.2 sqrt(max(out, in)), as large as AdamW's; Liu et al. 2025, arXiv 2502.16982).
        scalar_opt: what updates everything that is no matrix of a block.
        scalar_lr: AdamW's learning rate; null: as ``lr``.
        embed_lr: of embeddings and learned positions (nanochat: 0.3); null: as ``scalar_lr``.
        lm_head_lr: of a head that is not tied (nanochat: 0.004); null: as ``scalar_lr``.
        scalar_betas: AdamW's (0.9 and 0.95 as GPT-3's, Brown et al. 2020).
        embed_betas: AdamW's, of embeddings and learned positions (nanochat: 0.8, 0.995); null: as ``scalar_betas``.
        lm_head_betas: AdamW's, of a head that is not tied (nanochat: 0.8, 0.96); null: as ``scalar_betas``.
        scalar_eps: AdamW's.
        scalar_weight_decay: AdamW's, of a head that is not tied; norms and biases have none in any case.
        embed_weight_decay: AdamW's, of embeddings and learned positions (nanochat: 0.001).
        lm_head_weight_decay: AdamW's, of a head that is not tied (nanochat: 0.01); null: as ``scalar_weight_decay``.

    A head that is tied is an embedding.

    Raises:
        ConfigError: settings contradict each other.
    """

    lr: float = 0.02
    weight_decay: float = 0.0
    cautious_weight_decay: bool = False
    momentum: float = 0.95
    momentum_start: float | None = None
    momentum_warmup_steps: int = 0
    nesterov: bool = True
    orthogonalization: Literal["polar_express", "newton_schulz"] = "polar_express"
    orthogonalization_steps: int = 5
    orthogonalization_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    epsilon: float = 1e-7
    normuon_beta2: float | None = None
    adjust_lr: Literal["keller", "spectral_norm", "rms_norm"] = "keller"
    scalar_opt: Literal["adamw"] = "adamw"
    scalar_lr: float | None = 6e-4
    embed_lr: float | None = None
    lm_head_lr: float | None = None
    scalar_betas: Betas = (0.9, 0.95)
    embed_betas: Betas | None = None
    lm_head_betas: Betas | None = None
    scalar_eps: float = 1e-8
    scalar_weight_decay: float = 0.0
    embed_weight_decay: float = 0.0
    lm_head_weight_decay: float | None = None

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.momentum < 1:
            problems.append(f"momentum is {self.momentum:g}, expected 0 <= momentum < 1")
        if not self.lr and any((self.scalar_lr, self.embed_lr, self.lm_head_lr)):
            problems.append("lr is 0 and others are not: a schedule moves them in proportion to lr")
        problems += [
            f"{name} is {value:g}, expected {_SMALLEST_EPSILON:g} or more: where a gradient is 0 it is what divides"
            for name, value in (("epsilon", self.epsilon), ("scalar_eps", self.scalar_eps))
            if not value >= _SMALLEST_EPSILON
        ]
        if problems:
            raise ConfigError(f"muon_adamw: {'; '.join(problems)}", "correct the optimizer section")

    def betas_of(self, role: str) -> Betas:
        """AdamW's betas of parameters of a role."""
        own = {"embedding": self.embed_betas, "position": self.embed_betas, "head": self.lm_head_betas}.get(role)
        return self.scalar_betas if own is None else own

    def weight_decay_of(self, role: str) -> float:
        """AdamW's weight decay of parameters of a role."""
        if role == "head":
            return self.scalar_weight_decay if self.lm_head_weight_decay is None else self.lm_head_weight_decay
        return self.embed_weight_decay if role in ("embedding", "position") else 0.0

    def lr_of(self, role: str) -> float:
        """The learning rate of parameters of a role (``param_roles``)."""
        scalar = self.lr if self.scalar_lr is None else self.scalar_lr
        own = {
            "matrix": self.lr,
            "embedding": self.embed_lr,
            "position": self.embed_lr,
            "head": self.lm_head_lr,
        }.get(role)
        return scalar if own is None else own
