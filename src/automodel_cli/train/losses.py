"""Next-token cross-entropy: the sum over label tokens, plain or in chunks over the language-model head.

Shapes: B rows, T tokens, N = B x T, C tokens of a chunk, D model width, V logical vocabulary, P padded
vocabulary.

Every loss here returns the *sum* of the negative log-likelihoods of tokens whose label is not
``ignore_index``, in fp32. The training step divides once by the number of label tokens in the global batch,
so the gradient does not depend on how the batch was cut into micro-batches and ranks. Padding rows V..P of
the head weight get no probability and no gradient.

With a ``z_loss_weight`` w the gradient is that of nll + w log(Z)^2 for each label token, Z the sum of the
exponentials of its logits (z-loss: Chowdhery et al. 2022, PaLM, arXiv 2204.02311, section 5), which keeps log(Z) near
zero. The value stays the nll: what is logged, and every validation, means the same with and without.

A model whose logits are capped gives a loss that ``takes_softcap`` its hidden states and the cap, others whole logits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from automodel_cli.errors import ConfigError
from automodel_cli.train.chunked_nll import chunked_nll
from automodel_cli.train.loss_arguments import ChunkedArguments, MaskedArguments

# Logits of a chunk. 2^25 are 128 MiB in fp32 and 512 tokens of GPT-2's vocabulary: with fewer, the passes over
# the weight gradient cost more than the logits; with more, nothing gets faster. GPUs need larger pieces to fill up.
_CHUNK_LOGITS = {"cpu": 1 << 25, "cuda": 1 << 28}


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype in which the head multiplies: autocast's where it is on, else that of ``hidden``."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


class MaskedCrossEntropy(MaskedArguments):
    """Cross-entropy over whole logits: simple, and what every other variant is compared with.

    Costs N x P logits in the compute dtype plus, without ``torch.compile``, two fp32 copies.
    """

    def __call__(self, hidden: Tensor, weight: Tensor, labels: Tensor, *, vocab_size: int) -> Tensor:
        """Sum of nll for ``hidden [B, T, D]`` against ``labels [B, T]`` under the head ``weight [P, D]``."""
        # A bias of -inf removes the padding columns inside the matmul; slicing would copy all logits twice.
        logits = F.linear(hidden, weight, padding_bias(weight, vocab_size))
        return self.from_logits(logits, labels)

    def by_row(
        self, hidden: Tensor, weight: Tensor, labels: Tensor, *, vocab_size: int, row_weights: Tensor | None = None
    ) -> Tensor:
        """As ``row_losses`` has it, ``[1 + B]``."""
        logits = F.linear(hidden, weight, padding_bias(weight, vocab_size))
        return self.by_row_from_logits(logits, labels, row_weights)

    def by_row_from_logits(self, logits: Tensor, labels: Tensor, row_weights: Tensor | None = None) -> Tensor:
        """The same for ``logits [B, T, V]``."""
        flat = logits.flatten(0, -2)
        flat = flat.float() if self.fp32_upcast else flat
        log_probs = F.log_softmax(flat, 1)
        flat_labels = labels.flatten()
        nll = F.nll_loss(log_probs, flat_labels, ignore_index=self.ignore_index, reduction="sum").float()
        each = F.nll_loss(log_probs, flat_labels, ignore_index=self.ignore_index, reduction="none").float()  # [N]
        token_weights = None if row_weights is None else of_tokens(row_weights, labels)
        if token_weights is not None:
            nll = with_gradient_of(nll, (each * token_weights).sum())
        return with_rows(self._with_z_loss(nll, flat, flat_labels, token_weights), each, labels)

    def from_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum of nll for ``logits [B, T, V]``."""
        flat = logits.flatten(0, -2)
        flat = flat.float() if self.fp32_upcast else flat
        labels = labels.flatten()
        nll = F.cross_entropy(flat, labels, ignore_index=self.ignore_index, reduction="sum").float()
        return self._with_z_loss(nll, flat, labels, None)

    def _with_z_loss(self, nll: Tensor, flat: Tensor, labels: Tensor, token_weights: Tensor | None) -> Tensor:
        """``nll`` with the z-loss of logits ``flat [N, V]`` in its gradient."""
        if not (self.z_loss_weight and torch.is_grad_enabled()):
            return nll
        squares = flat.float().logsumexp(-1).square()
        squares = squares if token_weights is None else squares * token_weights
        z_loss = self.z_loss_weight * squares.where(labels != self.ignore_index, 0.0).sum()
        return nll + (z_loss - z_loss.detach())  # its gradient without its value


class LogitsLoss:
    """A ``torch.nn`` loss over whole logits, as our losses are called; its reduction is made a sum.

    Raises:
        ConfigError: the module takes no ``reduction``, so its sum cannot be had.
    """

    def __init__(self, module: Any) -> None:
        if not hasattr(module, "reduction"):
            raise ConfigError(
                f"loss_fn {type(module).__name__} has no reduction", "use a loss over class indices with one"
            )
        self.module = module
        self.module.reduction = "sum"

    def __call__(self, hidden: Tensor, weight: Tensor, labels: Tensor, *, vocab_size: int) -> Tensor:
        """Sum of the losses for ``hidden [B, T, D]`` against ``labels [B, T]`` under ``weight [P, D]``."""
        return self.from_logits(F.linear(hidden, weight[:vocab_size]), labels)

    def from_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum of the losses for ``logits [B, T, V]``."""
        return self.module(logits.flatten(0, -2).float(), labels.flatten()).float()


def of_tokens(row_weights: Tensor, labels: Tensor) -> Tensor:
    """Weights of rows ``[B]`` as weights of the tokens of ``labels [B, T]``, fp32 ``[N]``."""
    return row_weights[:, None].expand_as(labels).flatten()


def with_gradient_of(value: Tensor, other: Tensor) -> Tensor:
    """The number ``value`` with the gradient of ``other``."""
    return value.detach() + (other - other.detach())


def with_rows(nll: Tensor, each: Tensor, labels: Tensor) -> Tensor:
    """``[1 + B]``: ``nll``, then the sum of ``each [N]`` in each row of ``labels [B, T]``, without gradient."""
    return torch.cat([nll[None], each.detach().view(labels.shape).sum(1)])


def padding_bias(weight: Tensor, vocab_size: int) -> Tensor | None:
    """``[P]`` with 0 for real tokens and -inf for padding rows, or None where there is no padding."""
    if weight.shape[0] == vocab_size:
        return None
    bias = weight.new_zeros(weight.shape[0])
    bias[vocab_size:] = float("-inf")
    return bias


class ChunkedCrossEntropy(ChunkedArguments):
    """The same number without ever holding more than ``chunk_tokens x P`` logits.

    Loss and gradient of a chunk are computed together while its logits are at hand, so nothing is computed
    twice; the weight gradient is accumulated in fp32. Costs one fp32 ``[P, D]`` and one ``[N, D]`` tensor
    between forward and backward.

    Attributes:
        fused: compile the elementwise steps also where the model around them is not compiled as a whole.
    """

    fused = False
    takes_softcap = True

    def __call__(
        self, hidden: Tensor, weight: Tensor, labels: Tensor, *, vocab_size: int, softcap: float = 0.0
    ) -> Tensor:
        """Sum of nll for ``hidden [B, T, D]`` against ``labels [B, T]`` under the head ``weight [P, D]``."""
        return self._nll(hidden, weight, labels, vocab_size, softcap=softcap)[0]

    def by_row(
        self,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        *,
        vocab_size: int,
        row_weights: Tensor | None = None,
        softcap: float = 0.0,
    ) -> Tensor:
        """As ``row_losses`` has it, ``[1 + B]``."""
        token_weights = None if row_weights is None else of_tokens(row_weights, labels)
        nll, each = self._nll(hidden, weight, labels, vocab_size, token_weights, each=True, softcap=softcap)
        return with_rows(nll, each, labels)

    def _nll(
        self,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        vocab_size: int,
        token_weights: Tensor | None = None,
        *,
        each: bool = False,
        softcap: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Sum of nll, and the nll of each token ``[N]`` where ``each`` is asked for."""
        chunk = self.chunk_tokens or default_chunk_tokens(weight.shape[0], hidden.device.type)
        dtype = compute_dtype(hidden)
        needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
        nll, _, _, nll_each = chunked_nll(
            hidden.flatten(0, -2).to(dtype),
            weight,
            labels.flatten(),
            vocab_size,
            chunk,
            self.ignore_index,
            needs_grad,
            self.fused or torch.compiler.is_compiling(),
            self.z_loss_weight,
            token_weights,
            each,
            softcap,
        )
        return nll, nll_each

    def from_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum of nll for ``logits [B, T, V]``, for models that give no hidden states."""
        return self._over_whole_logits.from_logits(logits, labels)

    def by_row_from_logits(self, logits: Tensor, labels: Tensor, row_weights: Tensor | None = None) -> Tensor:
        """As ``row_losses`` has it, for such models."""
        return self._over_whole_logits.by_row_from_logits(logits, labels, row_weights)

    @property
    def _over_whole_logits(self) -> MaskedCrossEntropy:
        return MaskedCrossEntropy(ignore_index=self.ignore_index, z_loss_weight=self.z_loss_weight)


def default_chunk_tokens(padded_vocab_size: int, device_type: str) -> int:
    """Tokens in a chunk so that its logits stay within a fixed number, a power of two of at least 64."""
    budget = _CHUNK_LOGITS.get(device_type, _CHUNK_LOGITS["cuda"])
    return 1 << max(6, (budget // padded_vocab_size).bit_length() - 1)
