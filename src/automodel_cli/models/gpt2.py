"""GPT-2: learned positions, pre-norm blocks, GELU, and a head tied to the token embedding.

Shapes: B rows, T tokens, D model width, L layers, V logical vocabulary, P padded vocabulary.

Initial values (Radford et al. 2019; standard deviations, checked by a test against the real tensors):

    wte, wpe, c_attn, c_fc          N(0, 0.02)
    attention and MLP c_proj        N(0, 0.02 / sqrt(2 L)): 2 L branches add into the residual stream
    norms                           weight 1, bias 0
    biases                          0
    rows V..P of wte (padding)      0

The Hugging Face format keeps the same names under ``transformer.`` and stores the four block matrices
transposed (its ``Conv1D`` is ``[in, out]``, ``nn.Linear`` is ``[out, in]``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from automodel_cli.arguments import takes
from automodel_cli.batch import Batch
from automodel_cli.errors import ConfigError
from automodel_cli.models.gpt2_config import INIT_STD, NORM_EPS, GPT2Config
from automodel_cli.models.init import fill_constant, fill_normal
from automodel_cli.models.interface import CausalLM, HeadLoss, HFTensor, Role
from automodel_cli.models.layers.attention_kernels import AttendWith
from automodel_cli.models.layers.kv_cache import KVCache
from automodel_cli.models.layers.shared import (
    MLP,
    Attend,
    CausalSelfAttention,
    attend_by_name,
    attention_mask,
    positions_of,
)
from automodel_cli.sizing.shape import Shape

_GELU_APPROXIMATION = {"gelu_tanh": "tanh", "gelu": "none"}
_TRANSPOSED_IN_HF = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config: GPT2Config, *, layer: int, attend: Attend) -> None:
        super().__init__()
        width, bias, dropout = config.n_embd, config.bias, config.dropout
        self.ln_1 = nn.LayerNorm(width, eps=NORM_EPS, bias=bias)
        self.attn = CausalSelfAttention(
            width, config.n_head, layer=layer, bias=bias, dropout=dropout, attend=attend
        )
        self.ln_2 = nn.LayerNorm(width, eps=NORM_EPS, bias=bias)
        approximate = _GELU_APPROXIMATION[config.activation]
        self.mlp = MLP(width, bias=bias, dropout=dropout, approximate=approximate)

    def forward(self, x: Tensor, *, mask: Any = None, cache: KVCache | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask=mask, cache=cache)
        return x + self.mlp(self.ln_2(x))


class GPT2(CausalLM):
    """The GPT-2 architecture; make one with ``build_gpt2_model``."""

    takes_residual_dtype = True
    has_hf_format = True
    hf_prefix = "transformer."
    hf_ignored = re.compile(r".*\.attn\.(masked_)?bias|lm_head\.weight")

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.padded_vocab_size = config.vocab_size, config.padded_vocab_size
        self.max_seq_len = config.n_positions
        self.attn_implementation = config.attn_implementation
        self.notes: list[str] = []
        attend = attend_by_name(config.attn_implementation)
        self.wte = nn.Embedding(self.padded_vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, layer=layer, attend=attend) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=NORM_EPS, bias=config.bias)

    def forward(
        self, batch: Batch, *, head_loss: HeadLoss | None = None, cache: KVCache | None = None
    ) -> Tensor:
        hidden = self._hidden(batch, cache)  # [B, T, D]
        if head_loss is not None:
            return head_loss(hidden, self.wte.weight, batch.labels, vocab_size=self.vocab_size)
        return F.linear(hidden, self.wte.weight)[..., : self.vocab_size]

    def _hidden(self, batch: Batch, cache: KVCache | None) -> Tensor:
        tokens = batch.input_ids.shape[1]
        cached = 0 if cache is None else cache.length
        if cached + tokens > self.wpe.num_embeddings:
            raise ConfigError(
                f"a sequence of {cached + tokens} tokens does not fit n_positions {self.wpe.num_embeddings}",
                "shorten seq_len or build the model with more positions",
            )
        positions = positions_of(batch, cache)
        x = self.drop(self.wte(batch.input_ids) + self.wpe(positions))
        x = x if self.residual_dtype is None else x.to(self.residual_dtype)
        mask = attention_mask(
            tokens=tokens,
            cached=cached,
            segment_ids=batch.segment_ids,
            left_padding=None if cache is None else cache.left_padding,
            device=x.device,
            dropout=self.config.dropout if self.training else 0.0,
        )
        for block in self.h:
            x = block(x, mask=mask, cache=cache)
        if cache is not None:
            cache.advance(tokens)
        return self.ln_f(x)

    def tp_plan(self) -> dict[str, str]:
        return {
            "h.*.attn.c_attn": "column:3",
            "h.*.attn.c_proj": "row",
            "h.*.mlp.c_fc": "column",
            "h.*.mlp.c_proj": "row",
        }

    def head_counts(self) -> dict[str, int]:
        return {"attention heads (n_head)": self.config.n_head}

    @property
    def spreads_attention(self) -> bool:
        return True

    def change_attention(self, change: Callable[[Attend], Attend]) -> None:
        for module in self.modules():
            if isinstance(module, CausalSelfAttention):
                module.attend = change(module.attend)

    def attention_shape(self) -> tuple[int, int] | None:
        heads, width = self.config.n_head, self.config.n_embd
        return (heads, width // heads) if self.attn_implementation == "auto" else None

    def prefer_attention(self, kernel: str) -> None:
        self.change_attention(lambda _: AttendWith(kernel))

    def param_roles(self) -> dict[str, Role]:
        return {name: _role(name) for name, _ in self.named_parameters()}

    def init_weights(self, seed: int) -> None:
        for name, parameter in self.named_parameters():
            role = _role(name)
            if role == "norm":
                fill_constant(parameter, 0.0 if name.endswith("bias") else 1.0)
            elif role == "bias":
                fill_constant(parameter, 0.0)
            else:
                rows = self.vocab_size if role == "embedding" else None
                fill_normal(parameter, std=self.init_std(name), seed=seed, name=name, rows=rows)

    def init_std(self, name: str) -> float:
        """The standard deviation that the weight called ``name`` is drawn with (see the table above)."""
        residual = name.endswith("c_proj.weight")
        return INIT_STD / math.sqrt(2 * self.config.n_layer) if residual else INIT_STD

    def model_config(self) -> dict[str, Any]:
        return self.config.stored()

    def shape(self) -> Shape:
        return self.config.shape()

    def hf_config(self) -> dict[str, Any]:
        return self.config.hf_config()

    def hf_tensors(self) -> dict[str, HFTensor]:
        return {
            name: HFTensor(
                f"{self.hf_prefix}{name}",
                rows=self.vocab_size if name == "wte.weight" else None,
                transposed=name.endswith(_TRANSPOSED_IN_HF),
            )
            for name, _ in self.named_parameters()
        }

    def hf_zeros(self) -> dict[str, Tensor]:
        """Hugging Face's GPT-2 always has biases."""
        if self.config.bias:
            return {}
        return {
            f"{self.hf_prefix}{name.removesuffix('weight')}bias": torch.zeros(len(weight), dtype=weight.dtype)
            for name, weight in self.named_parameters()
            if name not in ("wte.weight", "wpe.weight")
        }


def _role(name: str) -> Role:
    if name == "wte.weight":
        return "embedding"
    if name == "wpe.weight":
        return "position"
    if ".ln_" in f".{name}":
        return "norm"
    return "bias" if name.endswith("bias") else "matrix"


@takes(GPT2Config)
def build_gpt2_model(config: GPT2Config) -> GPT2:
    """A GPT-2 without meaningful weights: call ``init_weights(seed)`` or load some. Arguments: ``GPT2Config``."""
    with torch.device("meta"):
        model = GPT2(config)
    return model if config.is_meta_device else model.to_empty(device="cpu")
