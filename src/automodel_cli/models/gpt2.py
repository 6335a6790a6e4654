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
from typing import Any

import torch
from torch import Tensor, nn

from automodel_cli.arguments import takes
from automodel_cli.batch import Batch
from automodel_cli.models.gpt2_config import INIT_STD, NORM_EPS, GPT2Config
from automodel_cli.models.interface import HFTensor, MatrixLayout, Role
from automodel_cli.models.layers.kv_cache import KVCache
from automodel_cli.models.layers.shared import (
    MLP,
    Attend,
    CausalSelfAttention,
    attend_by_name,
)
from automodel_cli.models.own import OwnCausalLM, built

_GELU_APPROXIMATION = {"gelu_tanh": "tanh", "gelu": "none"}
_TRANSPOSED_IN_HF = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config: GPT2Config, *, layer: int, attend: Attend) -> None:
        super().__init__()
        width, bias, dropout = config.n_embd, config.bias, config.dropout
        self.ln_1 = nn.LayerNorm(width, eps=NORM_EPS, bias=bias)
        self.attn = CausalSelfAttention(width, config.n_head, layer=layer, bias=bias, dropout=dropout, attend=attend)
        self.ln_2 = nn.LayerNorm(width, eps=NORM_EPS, bias=bias)
        approximate = _GELU_APPROXIMATION[config.activation]
        self.mlp = MLP(width, bias=bias, dropout=dropout, approximate=approximate)

    def forward(self, x: Tensor, *, mask: Any = None, cache: KVCache | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask=mask, cache=cache)
        return x + self.mlp(self.ln_2(x))


class GPT2(OwnCausalLM):
    """The GPT-2 architecture; make one with ``build_gpt2_model``."""

    config: GPT2Config
    positions_setting = "n_positions"
    hf_prefix = "transformer."
    hf_ignored = re.compile(r".*\.attn\.(masked_)?bias|lm_head\.weight")

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        attend = attend_by_name(config.attn_implementation)
        self.wte = nn.Embedding(self.padded_vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, layer=layer, attend=attend) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=NORM_EPS, bias=config.bias)

    def hidden(self, batch: Batch, cache: KVCache | None) -> Tensor:
        positions, mask = self.positions_and_mask(batch, cache, dropout=self.config.dropout)
        x = self.as_residual(self.drop(self.wte(batch.input_ids) + self.wpe(positions)))
        for block in self.h:
            x = block(x, mask=mask, cache=cache)
        return self.ln_f(x)

    def head_weight(self) -> Tensor:
        return self.wte.weight

    def matrix_layouts(self) -> dict[str, MatrixLayout]:
        queries_keys_values = MatrixLayout(sizes=(self.config.n_embd,) * 3)
        return {name: queries_keys_values for name in self.param_roles() if name.endswith("attn.c_attn.weight")}

    def tp_plan(self) -> dict[str, str]:
        return {
            "h.*.attn.c_attn": "column:3",
            "h.*.attn.c_proj": "row",
            "h.*.mlp.c_fc": "column",
            "h.*.mlp.c_proj": "row",
        }

    def head_counts(self) -> dict[str, int]:
        return {"attention heads (n_head)": self.config.n_head}

    def role(self, name: str) -> Role:
        if name == "wte.weight":
            return "embedding"
        if name == "wpe.weight":
            return "position"
        if ".ln_" in f".{name}":
            return "norm"
        return "bias" if name.endswith("bias") else "matrix"

    def init_std(self, name: str) -> float:
        """The standard deviation that the weight called ``name`` is drawn with (see the table above)."""
        residual = name.endswith("c_proj.weight")
        return INIT_STD / math.sqrt(2 * self.config.n_layer) if residual else INIT_STD

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


@takes(GPT2Config)
def build_gpt2_model(config: GPT2Config) -> GPT2:
    """A GPT-2 without meaningful weights: call ``init_weights(seed)`` or load some. Arguments: ``GPT2Config``."""
    return built(GPT2, config)
