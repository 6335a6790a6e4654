"""A GPT with options: what models of 2019 to today put into a pre-norm block, each on a switch (``GPTConfig``).

Shapes: B rows, T tokens, D model width, L layers, V logical vocabulary, P padded vocabulary.

    x0 = norm?(embed(tokens) + positions?)
    each block:  x = r x + s x0 ?                          residual scalars
                 x = x + attention(norm(x))                rotation? QK-norm? value embeddings? window?
                 x = x + mlp(norm(x))
    logits = softcap?(head(norm(x)))

Initial values (standard deviations, checked by a test against the real tensors):

                                         init: gpt2                  init: nanochat
    embed_tokens                         initializer_range           1, tied: initializer_range
    lm_head                              initializer_range           0.001
    o_proj, down_proj                    the same / sqrt(2 L)        0
    other projections, value_embeds      initializer_range           1 / sqrt(D)
    embed_positions                      initializer_range           initializer_range
    value_gate, biases                   0                           0
    norms                                1                           1
    mix (residual scalars)               1 and 0.1                   1 and 0.1
    rows V..P of the tables              0 (padding)                 0

All are normal; nanochat draws its projections evenly, with the same deviation.

Where transformers has a class for the same function (``GPTConfig.hf_kind``), Hugging Face folders hold its names:
Llama's below ``model.``, and with ``fc1`` and ``fc2`` for up_proj and down_proj nanochat's.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from automodel_cli.arguments import takes
from automodel_cli.batch import Batch
from automodel_cli.errors import ConfigError
from automodel_cli.models.gpt_config import GPTConfig
from automodel_cli.models.init import copy_whole
from automodel_cli.models.interface import HFTensor, Role
from automodel_cli.models.layers.attention_kernels import AttendWith
from automodel_cli.models.layers.gpt import Attention, FeedForward, ResidualMix, norm_of, softcapped
from automodel_cli.models.layers.kv_cache import KVCache
from automodel_cli.models.layers.llama import Rotary, RotaryEmbedding, grouped
from automodel_cli.models.layers.shared import Attend, attend_by_name
from automodel_cli.models.own import OwnCausalLM, built

_TABLES = ("embed_tokens.weight", "lm_head.weight")
_NANOCHAT_NAMES = {"mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2"}
_FIRST_SHARE = 0.1  # of x0 in each block, as nanochat's


class Block(nn.Module):
    """(r x + s x0,) then x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config: GPTConfig, *, layer: int, attend: Attend) -> None:
        super().__init__()
        self.mixes = config.residual_scalars
        if self.mixes:
            self.mix = ResidualMix()
        self.input_layernorm = norm_of(config)
        self.self_attn = Attention(config, layer=layer, attend=attend)
        self.post_attention_layernorm = norm_of(config)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, *, first: Tensor, **attention: Any) -> Tensor:
        """``attention``: what ``Attention`` takes besides its input."""
        x = self.mix(x, first) if self.mixes else x
        x = x + self.self_attn(self.input_layernorm(x), **attention)
        return x + self.mlp(self.post_attention_layernorm(x))


class GPT(OwnCausalLM):
    """The architecture; make one with ``build_gpt_model``."""

    config: GPTConfig
    positions_setting = "max_position_embeddings"

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.softcap = config.softcap
        self.has_hf_format, self.direct_head = config.hf_kind is not None, not config.softcap
        if not self.has_hf_format:
            self.why_no_hf_format = config.why_no_hf_format
        attend = grouped(attend_by_name(config.attn_implementation))
        self.embed_tokens = nn.Embedding(self.padded_vocab_size, width)
        if config.positions == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, width)
        else:
            self.rotary_emb = RotaryEmbedding(config.head_width, theta=config.rope_theta)
        if config.embedding_norm:
            self.embed_norm = norm_of(config)
        keys = config.kv_heads * config.head_width
        self.value_embeds = nn.ModuleDict(
            {str(layer): nn.Embedding(self.padded_vocab_size, keys) for layer in config.value_layers}
        )
        self.layers = nn.ModuleList(
            Block(config, layer=layer, attend=attend) for layer in range(config.num_hidden_layers)
        )
        self.windows = config.windows
        self.norm = norm_of(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(width, self.padded_vocab_size, bias=False)

    def hidden(self, batch: Batch, cache: KVCache | None) -> Tensor:
        positions, mask = self.positions_and_mask(batch, cache)
        masks: dict[int | None, Any] = {None: mask}
        if any(self.windows):
            masks[self.config.window] = self.mask(batch, cache, window=self.config.window)
        x, rotary = self._embedded(batch, positions)
        first = x = self.as_residual(x)
        for layer, (block, window) in enumerate(zip(self.layers, self.windows, strict=True)):
            key = str(layer)
            value = self.value_embeds[key](batch.input_ids) if key in self.value_embeds else None
            x = block(x, first=first, rotary=rotary, mask=masks[window], cache=cache, value_embedding=value)
        return self.norm(x)

    def _embedded(self, batch: Batch, positions: Tensor) -> tuple[Tensor, Rotary | None]:
        """What the first block gets, and how queries and keys are rotated."""
        x, rotary = self.embed_tokens(batch.input_ids), None
        if self.config.positions == "learned":
            x = x + self.embed_positions(positions)
        else:
            cos, sin = self.rotary_emb(position_ids=positions, dtype=x.dtype)
            rotary = cos, -sin if self.config.rope_reversed else sin
        return (self.embed_norm(x) if self.config.embedding_norm else x), rotary

    def head_weight(self) -> Tensor:
        return (self.embed_tokens if self.config.tie_word_embeddings else self.lm_head).weight

    def logits(self, hidden: Tensor) -> Tensor:
        logits = super().logits(hidden)
        return softcapped(logits, self.softcap) if self.softcap else logits

    @property
    def spreads_attention(self) -> bool:
        """Not where a layer has a window: ranks that hold pieces of a row know only the causal mask."""
        return not any(self.windows)

    def check_spread(self, *, tp: int, cp: int) -> None:
        options = [f"window_pattern {self.config.window_pattern}"] if tp * cp > 1 and any(self.windows) else []
        options += ["value_embeddings"] if tp > 1 and self.config.value_embeddings else []
        if options:
            raise ConfigError(
                f"build_gpt_model: {' and '.join(options)} cannot be spread over {tp * cp} ranks of one row",
                "set tp_size and cp_size to 1 (ddp and fsdp2 divide rows among ranks), or leave them out",
            )
        super().check_spread(tp=tp, cp=cp)

    def tp_plan(self) -> dict[str, str]:
        """None with value embeddings, whose tables would have to be divided by heads."""
        if self.config.value_embeddings:
            return {}
        column = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj"]
        column += ["mlp.gate_proj"] if self.config.activation == "swiglu" else []
        styles = dict.fromkeys(column, "column") | dict.fromkeys(("self_attn.o_proj", "mlp.down_proj"), "row")
        return {f"layers.*.{name}": style for name, style in styles.items()}

    def head_counts(self) -> dict[str, int]:
        return {
            "attention heads (num_attention_heads)": self.config.num_attention_heads,
            "key-value heads (num_key_value_heads)": self.config.kv_heads,
        }

    def prefer_attention(self, kernel: str) -> None:
        self.change_attention(lambda _: grouped(AttendWith(kernel)))

    def role(self, name: str) -> Role:
        if name == "embed_tokens.weight" or name.startswith("value_embeds."):
            return "embedding"
        if name in ("lm_head.weight", "embed_positions.weight"):
            return "head" if name.startswith("lm_head") else "position"
        if "norm" in name or name.endswith("mix.weight"):
            return "norm"
        return "bias" if name.endswith("bias") else "matrix"

    def init_std(self, name: str) -> float:
        """The standard deviation that the weight called ``name`` is drawn with (see the table above)."""
        residual, std = name.endswith(("o_proj.weight", "down_proj.weight")), self.config.initializer_range
        if name.endswith("value_gate.weight"):
            return 0.0
        if self.config.init == "gpt2":
            return std / math.sqrt(2 * self.config.num_hidden_layers) if residual else std
        if name == "embed_tokens.weight":
            return std if self.config.tie_word_embeddings else 1.0
        if name in ("lm_head.weight", "embed_positions.weight"):
            return 0.001 if name.startswith("lm_head") else std
        return 0.0 if residual else self.config.hidden_size**-0.5

    def init_weights(self, seed: int) -> None:
        super().init_weights(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("mix.weight"):
                copy_whole(parameter, torch.tensor([1.0, _FIRST_SHARE]))

    def hf_tensors(self) -> dict[str, HFTensor]:
        if not self.has_hf_format:
            return {}
        tables = dict.fromkeys(_TABLES, self.vocab_size)
        names = [name for name, _ in self.named_parameters()]
        return {name: HFTensor(self._hf_name(name), rows=tables.get(name)) for name in names}

    def _hf_name(self, name: str) -> str:
        if self.config.hf_kind == "nanochat":
            for ours, theirs in _NANOCHAT_NAMES.items():
                name = name.replace(ours, theirs)
        return name if name == "lm_head.weight" else f"model.{name}"


@takes(GPTConfig)
def build_gpt_model(config: GPTConfig) -> GPT:
    """A GPT without meaningful weights: call ``init_weights(seed)`` or load some. Arguments: ``GPTConfig``."""
    return built(GPT, config)
