"""Llama: rotary positions, pre-norm blocks with RMSNorm, grouped key-value heads, SwiGLU, no biases.

Shapes: B rows, T tokens, D model width, L layers, V logical vocabulary, P padded vocabulary.

The same function as transformers' ``LlamaForCausalLM`` (Llama 1 to 3, TinyLlama and their like), with the names of its
configuration for arguments and of its modules for weights. Initial values (standard deviations, checked by a test
against the real tensors):

    embed_tokens, lm_head, all projections    N(0, initializer_range), 0.02 by default, as in transformers
    o_proj, down_proj                         the same / sqrt(2 L) with scale_residual_init, as in our GPT-2
    norms                                     1
    rows V..P of embed_tokens and lm_head     0 (padding)

The Hugging Face format has these names below ``model.`` (``lm_head`` without it) in the same layout, without padding.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from automodel_cli.arguments import takes
from automodel_cli.batch import Batch
from automodel_cli.models.interface import HFTensor, Role
from automodel_cli.models.layers.attention_kernels import AttendWith
from automodel_cli.models.layers.kv_cache import KVCache
from automodel_cli.models.layers.llama import (
    GroupedQueryAttention,
    RMSNorm,
    Rotary,
    RotaryEmbedding,
    SwiGLU,
    grouped,
)
from automodel_cli.models.layers.shared import Attend, attend_by_name
from automodel_cli.models.llama_config import LlamaConfig
from automodel_cli.models.own import OwnCausalLM, built

_TABLES = ("embed_tokens.weight", "lm_head.weight")


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config: LlamaConfig, *, layer: int, attend: Attend) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        heads, kv_heads, head_width = config.num_attention_heads, config.kv_heads, config.head_width
        self.input_layernorm = RMSNorm(width, eps)
        self.self_attn = GroupedQueryAttention(width, heads, kv_heads, head_width, layer=layer, attend=attend)
        self.post_attention_layernorm = RMSNorm(width, eps)
        self.mlp = SwiGLU(width, config.intermediate_size)

    def forward(self, x: Tensor, *, rotary: Rotary, mask: Any = None, cache: KVCache | None = None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary=rotary, mask=mask, cache=cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(OwnCausalLM):
    """The Llama architecture; make one with ``build_llama_model``."""

    config: LlamaConfig
    positions_setting = "max_position_embeddings"

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        width, layers = config.hidden_size, config.num_hidden_layers
        attend = grouped(attend_by_name(config.attn_implementation))
        self.embed_tokens = nn.Embedding(self.padded_vocab_size, width)
        self.rotary_emb = RotaryEmbedding(config.head_width, theta=config.rope_theta, scaling=config.rope_scaling)
        self.layers = nn.ModuleList(Block(config, layer=layer, attend=attend) for layer in range(layers))
        self.norm = RMSNorm(width, config.rms_norm_eps)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(width, self.padded_vocab_size, bias=False)

    def hidden(self, batch: Batch, cache: KVCache | None) -> Tensor:
        positions, mask = self.positions_and_mask(batch, cache)
        x = self.embed_tokens(batch.input_ids)
        rotary = self.rotary_emb(position_ids=positions, dtype=x.dtype)
        x = self.as_residual(x)
        for block in self.layers:
            x = block(x, rotary=rotary, mask=mask, cache=cache)
        return self.norm(x)

    def head_weight(self) -> Tensor:
        return (self.embed_tokens if self.config.tie_word_embeddings else self.lm_head).weight

    def tp_plan(self) -> dict[str, str]:
        column = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
        row = ("self_attn.o_proj", "mlp.down_proj")
        styles = dict.fromkeys(column, "column") | dict.fromkeys(row, "row")
        return {f"layers.*.{name}": style for name, style in styles.items()}

    def head_counts(self) -> dict[str, int]:
        return {
            "attention heads (num_attention_heads)": self.config.num_attention_heads,
            "key-value heads (num_key_value_heads)": self.config.kv_heads,
        }

    def prefer_attention(self, kernel: str) -> None:
        self.change_attention(lambda _: grouped(AttendWith(kernel)))

    def role(self, name: str) -> Role:
        if name == "embed_tokens.weight":
            return "embedding"
        if name == "lm_head.weight":
            return "head"
        return "norm" if "norm" in name else "matrix"

    def init_std(self, name: str) -> float:
        """The standard deviation that the weight called ``name`` is drawn with (see the table above)."""
        std = self.config.initializer_range
        residual = name.endswith(("o_proj.weight", "down_proj.weight"))
        scaled = residual and self.config.scale_residual_init
        return std / math.sqrt(2 * self.config.num_hidden_layers) if scaled else std

    def hf_tensors(self) -> dict[str, HFTensor]:
        return {
            name: HFTensor(
                name if name == "lm_head.weight" else f"model.{name}",
                rows=self.vocab_size if name in _TABLES else None,
            )
            for name, _ in self.named_parameters()
        }


@takes(LlamaConfig)
def build_llama_model(config: LlamaConfig) -> Llama:
    """A Llama without meaningful weights: call ``init_weights(seed)`` or load some. Arguments: ``LlamaConfig``."""
    return built(Llama, config)
