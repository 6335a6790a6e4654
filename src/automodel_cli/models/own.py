"""What our own families have in common: all that follows from their configuration, and the way through a model.

Shapes: B rows, T tokens, D model width, V logical vocabulary, P padded vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from automodel_cli.batch import Batch
from automodel_cli.errors import ConfigError
from automodel_cli.models.init import fill_constant, fill_normal
from automodel_cli.models.interface import CausalLM, HeadLoss, Role, takes_softcap
from automodel_cli.models.layers.attention_kernels import AttendWith
from automodel_cli.models.layers.kv_cache import KVCache
from automodel_cli.models.layers.shared import Attend, attention_mask, positions_of
from automodel_cli.models.model_config import ModelConfig
from automodel_cli.sizing.shape import Shape

Model = TypeVar("Model", bound="OwnCausalLM")


class OwnCausalLM(CausalLM):
    """A model of a family of ours; its attention modules have an ``attend``."""

    takes_residual_dtype = True
    has_hf_format = True
    positions_setting: str  # what a configuration calls the longest sequence
    config: Any  # of its family

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.padded_vocab_size = config.vocab_size, config.padded_vocab_size
        self.max_seq_len = getattr(config, self.positions_setting)
        self.attn_implementation = config.attn_implementation
        self.notes = []

    @abstractmethod
    def hidden(self, batch: Batch, cache: KVCache | None) -> Tensor:
        """What the head gets, ``[B, T, D]``."""

    @abstractmethod
    def head_weight(self) -> Tensor:
        """``[P, D]``"""

    @abstractmethod
    def role(self, name: str) -> Role:
        """The role of the weight called ``name``."""

    @abstractmethod
    def init_std(self, name: str) -> float:
        """The standard deviation that the weight called ``name`` is drawn with."""

    def forward(self, batch: Batch, *, head_loss: HeadLoss | None = None, cache: KVCache | None = None) -> Tensor:
        hidden = self.hidden(batch, cache)
        if cache is not None:
            cache.advance(batch.input_ids.shape[1])
        if head_loss is not None and (self.direct_head or (self.softcap and takes_softcap(head_loss))):
            more = {"softcap": self.softcap} if self.softcap else {}
            return head_loss(hidden, self.head_weight(), batch.labels, vocab_size=self.vocab_size, **more)
        logits = self.logits(hidden)
        return logits if head_loss is None else head_loss.from_logits(logits, batch.labels)

    def logits(self, hidden: Tensor) -> Tensor:
        """``[B, T, V]`` of what the head gets."""
        return F.linear(hidden, self.head_weight())[..., : self.vocab_size]

    def positions_and_mask(self, batch: Batch, cache: KVCache | None, *, dropout: float = 0.0) -> tuple[Tensor, Any]:
        """Where the tokens are, and where they may look (``attention_mask``).

        Raises:
            ConfigError: the model has not so many positions.
        """
        tokens, cached = batch.input_ids.shape[1], 0 if cache is None else cache.length
        if self.max_seq_len is not None and cached + tokens > self.max_seq_len:
            raise ConfigError(
                f"a sequence of {cached + tokens} tokens does not fit {self.positions_setting} {self.max_seq_len}",
                "shorten seq_len or build the model with more positions",
            )
        return positions_of(batch, cache), self.mask(batch, cache, dropout=dropout)

    def mask(self, batch: Batch, cache: KVCache | None, *, dropout: float = 0.0, window: int | None = None) -> Any:
        """``attention_mask`` of a batch for layers that see ``window`` tokens; None: all."""
        rows, tokens = batch.input_ids.shape
        return attention_mask(
            tokens=tokens,
            cached=0 if cache is None else cache.length,
            segment_ids=batch.segment_ids,
            left_padding=None if cache is None else cache.left_padding,
            lengths=None if cache is None else cache.lengths,
            device=batch.input_ids.device,
            dropout=dropout if self.training else 0.0,
            window=window,
            rows=rows if cache is None else None,
        )

    def as_residual(self, x: Tensor) -> Tensor:
        """The beginning of the residual stream, in its dtype."""
        return x if self.residual_dtype is None else x.to(self.residual_dtype)

    @property
    def spreads_attention(self) -> bool:
        return True

    def change_attention(self, change: Callable[[Attend], Attend]) -> None:
        layers: Any = self.modules()
        for layer in layers:
            if hasattr(layer, "attend"):
                layer.attend = change(layer.attend)

    def attention_shape(self) -> tuple[int, int] | None:
        shape = self.shape()
        if self.attn_implementation != "auto" or not shape.heads or not shape.width:
            return None
        return shape.heads, shape.width // shape.heads

    def prefer_attention(self, kernel: str) -> None:
        self.change_attention(lambda _: AttendWith(kernel))

    def param_roles(self) -> dict[str, Role]:
        return {name: self.role(name) for name, _ in self.named_parameters()}

    def init_weights(self, seed: int) -> None:
        for name, parameter in self.named_parameters():
            role = self.role(name)
            if role in ("norm", "bias"):
                fill_constant(parameter, 0.0 if role == "bias" or name.endswith("bias") else 1.0)
            else:
                rows = self.vocab_size if role in ("embedding", "head") else None
                fill_normal(parameter, std=self.init_std(name), seed=seed, name=name, rows=rows)

    def model_config(self) -> dict[str, Any]:
        stored: dict[str, Any] = self.config.stored()
        return stored

    def shape(self) -> Shape:
        shape: Shape = self.config.shape()
        return shape

    def hf_config(self) -> dict[str, Any] | None:
        config: dict[str, Any] | None = self.config.hf_config()
        return config


def built(model: type[Model], config: ModelConfig) -> Model:
    """A model without meaningful weights, in memory or (``is_meta_device``) without storage."""
    with torch.device("meta"):
        made = model(config)
    return made if config.is_meta_device else made.to_empty(device="cpu")
