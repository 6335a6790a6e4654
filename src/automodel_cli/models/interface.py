"""What the training loop, the checkpoints and the evaluations know of a causal language model.

Shapes: B rows, T tokens, D model width, V logical vocabulary, P padded vocabulary (P >= V).

A model is layers and their initial values. It declares roles, names and a sharding plan; it performs none of
them. The loss of the language-model head runs inside ``forward`` (``head_loss``), because a sharded head
weight is whole only there, and because logits that are never stored cost no memory.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from automodel_cli.batch import Batch
from automodel_cli.errors import ConfigError
from automodel_cli.models.init import is_on_meta
from automodel_cli.models.layers.kv_cache import KVCache
from automodel_cli.models.layers.shared import Attend
from automodel_cli.sizing.shape import Shape

Role = Literal["embedding", "head", "matrix", "norm", "bias", "position"]


class HeadLoss(Protocol):
    """A loss that has the language-model head in it: the sum of nll over label tokens, an fp32 scalar."""

    def __call__(self, hidden: Tensor, weight: Tensor, labels: Any, /, *, vocab_size: int) -> Tensor:
        """For ``hidden [B, T, D]``, the head's ``weight [P, D]`` and ``labels [B, T]``."""

    def from_logits(self, logits: Tensor, labels: Any, /) -> Tensor:
        """For ``logits [B, T, V]`` of a model that gives no hidden states."""


def takes_softcap(head_loss: HeadLoss) -> bool:
    """Whether ``head_loss`` can be called with ``softcap=c`` too, and caps its logits itself, wherever it has them."""
    return bool(getattr(head_loss, "takes_softcap", False))


@dataclass(frozen=True)
class HFTensor:
    """How one of our weights lies in a Hugging Face folder."""

    name: str  # its name there
    rows: int | None = None  # how many it has there, of a table that goes on with padding here; None: all
    transposed: bool = False  # ``[in, out]`` there, ``[out, in]`` here

    def shape(self, ours: Tensor) -> tuple[int, ...]:
        """Its shape there."""
        shape = tuple(ours.shape) if self.rows is None else (self.rows, *ours.shape[1:])
        return shape[::-1] if self.transposed else shape

    def values(self, ours: Tensor) -> Tensor:
        """Its values there."""
        return (ours.detach()[: self.rows].t() if self.transposed else ours.detach()[: self.rows]).contiguous()


@dataclass(frozen=True)
class MatrixLayout:
    """How a weight consists of matrices, for optimizers that treat each linear map by itself.

    Attributes:
        sizes: outputs of each of several maps that stand one after another; None: one map.
        transposed: whether it lies as ``[in, out]``, not ``[out, in]``.
    """

    sizes: tuple[int, ...] | None = None
    transposed: bool = False


class CausalLM(nn.Module, ABC):
    """A causal language model as the rest of the toolkit sees it."""

    vocab_size: int  # logical vocabulary V; logits, counts and exports have this size
    padded_vocab_size: int  # rows P stored in the embedding and head weights
    max_seq_len: int | None  # longest sequence the model accepts, or None where it has no limit of its own
    notes: list[str]  # what a user should be told once about this model (for example a non-zero dropout)
    pretrained: bool = False  # whether the builder loaded weights, which ``init_weights`` would throw away
    takes_cache: bool = True  # whether ``forward`` can go on from a ``KVCache``
    takes_residual_dtype: bool = False  # whether the dtype of the residual stream can be chosen
    residual_dtype: torch.dtype | None = None  # what was chosen; None: that of the embeddings
    attn_implementation: str | None = None  # the name of its attention; ``auto``: the run chooses a kernel
    direct_head: bool = True  # whether logits are hidden @ W^T and no more; if not, a loss gets whole logits
    softcap: float = 0.0  # c, where they are c tanh(hidden @ W^T / c) instead; a loss may cap them (``takes_softcap``)
    has_hf_format: bool = False  # whether it can be a Hugging Face folder
    why_no_hf_format: str = "a model of your own has no Hugging Face format"  # where it cannot
    hf_prefix: str = ""  # of names in such a folder, which old ones lack
    hf_ignored: re.Pattern[str] | None = None  # what a folder may hold besides its weights; None: anything

    @abstractmethod
    def forward(self, batch: Batch, *, head_loss: HeadLoss | None = None, cache: KVCache | None = None) -> Tensor:
        """Logits ``[B, T, V]``, or the scalar ``head_loss(hidden, head_weight, labels, vocab_size=V)``."""

    @abstractmethod
    def param_roles(self) -> dict[str, Role]:
        """The role of every parameter, by its name in ``named_parameters()``."""

    @abstractmethod
    def init_weights(self, seed: int) -> None:
        """Give every parameter and buffer its initial value, a function of (seed, name) alone."""

    @abstractmethod
    def model_config(self) -> dict[str, Any]:
        """JSON from which ``models.families`` makes the same architecture; its first key is ``family``."""

    def matrix_layouts(self) -> dict[str, MatrixLayout]:
        """Of each weight that is not one matrix ``[out, in]`` what it is, by its name in ``named_parameters()``."""
        return {}

    def shape(self) -> Shape | None:
        """What cost formulas need; None where it is not known."""
        return None

    def hf_config(self) -> dict[str, Any] | None:
        """``config.json`` of a Hugging Face folder; None where transformers writes it, or there is no such format."""
        return None

    def hf_tensors(self) -> dict[str, HFTensor]:
        """Name in ``state_dict()`` -> what it is in a Hugging Face folder; empty where there is no such format."""
        return {}

    def hf_zeros(self) -> dict[str, Tensor]:
        """Tensors of such a folder that this model does without: zeros there."""
        return {}

    def tp_plan(self) -> dict[str, str]:
        """Module name pattern -> tensor-parallel style (``distributed.tensor_parallel``); empty where none is known."""
        return {}

    def head_counts(self) -> dict[str, int]:
        """What tensor-parallel ranks divide among them: attention heads, key-value heads."""
        return {}

    @property
    def spreads_attention(self) -> bool:
        """Whether ``change_attention`` reaches this model's attention, as tensor and context parallel need."""
        return False

    def change_attention(self, change: Callable[[Attend], Attend]) -> None:
        """Let attention go through ``change`` of what it is now; in place.

        Raises:
            ConfigError: this model's attention cannot be reached.
        """
        raise self._not_spread()

    def check_spread(self, *, tp: int, cp: int) -> None:
        """Check that so many tensor- and context-parallel ranks can share this model's attention.

        Raises:
            ConfigError: they cannot.
        """
        if tp * cp > 1 and not self.spreads_attention:
            raise self._not_spread()

    def _not_spread(self) -> ConfigError:
        return ConfigError(
            f"the attention of {type(self).__name__} cannot be spread over ranks",
            "set tp_size and cp_size to 1, or use build_gpt2_model or a Llama-like transformers model",
        )

    def attention_shape(self) -> tuple[int, int] | None:
        """(heads, width of a head) where the run may choose attention's kernel; None where it is decided or unknown."""
        return None

    def prefer_attention(self, kernel: str) -> None:
        """Let attention run this kernel (``attention_kernels``) where it can; in place."""

    def keep_residual_in(self, dtype: torch.dtype) -> None:
        """Keep the residual stream between blocks in ``dtype``, where ``takes_residual_dtype``; in place."""
        self.residual_dtype = dtype

    def blocks(self) -> list[nn.Module]:
        """The layers that are stacked, in order: what is sharded, checkpointed and compiled one by one."""
        found: list[nn.Module] = []

        def walk(module: nn.Module) -> None:
            for child in module.children():
                if isinstance(child, nn.ModuleList):
                    found.extend(child)
                else:
                    walk(child)

        walk(self)
        return found

    def check_keeps_apart(self, tokens: int) -> None:
        """Check that rows of ``tokens`` with ``segment_ids`` can be attended to document by document.

        Raises:
            ConfigError: not by this model.
        """

    def has_dropout(self) -> bool:
        """Whether training draws random numbers, so that each micro-batch needs a seed of its own."""
        return any(isinstance(module, nn.Dropout) and module.p > 0 for module in self.modules())

    def materialize(self, device: torch.device | str, seed: int) -> None:
        """Bring the model to ``device`` with its initial weights; a model on the meta device gets storage there."""
        if is_on_meta(self):
            self.to_empty(device=device)
        else:
            self.to(device)
        self.init_weights(seed)


def count_parameters(model: CausalLM) -> dict[str, int]:
    """Logical number of parameters by role, tied weights once, padding rows left out."""
    counts: dict[str, int] = {}
    roles = model.param_roles()
    for name, parameter in model.named_parameters():
        role = roles[name]
        number = parameter.numel()
        padded = role in ("embedding", "head") and parameter.shape[0] == model.padded_vocab_size
        if padded:
            number = number // model.padded_vocab_size * model.vocab_size
        counts[role] = counts.get(role, 0) + number
    return counts
