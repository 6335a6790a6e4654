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
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from automodel_cli.batch import Batch
from automodel_cli.errors import CheckpointError, ConfigError
from automodel_cli.models.init import fill_constant, fill_normal
from automodel_cli.models.interface import Attend, CausalLM, HeadLoss, Role
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
from automodel_cli.models.layers.shared import attend_by_name, attention_mask, positions_of
from automodel_cli.sizing.shape import padded_vocab

_TABLES = ("embed_tokens.weight", "lm_head.weight")
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
_LLAMA3_SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config: Mapping[str, Any], *, layer: int, attend: Attend) -> None:
        super().__init__()
        width, eps = config["hidden_size"], config["rms_norm_eps"]
        self.input_layernorm = RMSNorm(width, eps)
        self.self_attn = GroupedQueryAttention(
            width,
            config["num_attention_heads"],
            config["num_key_value_heads"],
            config["head_dim"],
            layer=layer,
            attend=attend,
        )
        self.post_attention_layernorm = RMSNorm(width, eps)
        self.mlp = SwiGLU(width, config["intermediate_size"])

    def forward(self, x: Tensor, *, rotary: Rotary, mask: Any = None, cache: KVCache | None = None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary=rotary, mask=mask, cache=cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(CausalLM):
    """The Llama architecture; make one with ``build_llama_model``."""

    takes_residual_dtype = True

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = config["vocab_size"]
        self.padded_vocab_size = padded_vocab(self.vocab_size)
        self.max_seq_len = config["max_position_embeddings"]
        self.notes: list[str] = []
        width = config["hidden_size"]
        attend = grouped(attend_by_name(config["attn_implementation"]))
        self.embed_tokens = nn.Embedding(self.padded_vocab_size, width)
        self.rotary_emb = RotaryEmbedding(
            config["head_dim"], theta=config["rope_theta"], scaling=config["rope_scaling"]
        )
        self.layers = nn.ModuleList(
            Block(config, layer=layer, attend=attend) for layer in range(config["num_hidden_layers"])
        )
        self.norm = RMSNorm(width, config["rms_norm_eps"])
        if not config["tie_word_embeddings"]:
            self.lm_head = nn.Linear(width, self.padded_vocab_size, bias=False)

    def forward(
        self, batch: Batch, *, head_loss: HeadLoss | None = None, cache: KVCache | None = None
    ) -> Tensor:
        hidden = self._hidden(batch, cache)  # [B, T, D]
        head = (self.embed_tokens if self.config["tie_word_embeddings"] else self.lm_head).weight
        if head_loss is not None:
            return head_loss(hidden, head, batch.labels, vocab_size=self.vocab_size)
        return F.linear(hidden, head)[..., : self.vocab_size]

    def _hidden(self, batch: Batch, cache: KVCache | None) -> Tensor:
        tokens = batch.input_ids.shape[1]
        cached = 0 if cache is None else cache.length
        if cached + tokens > self.config["max_position_embeddings"]:
            raise ConfigError(
                f"a sequence of {cached + tokens} tokens does not fit max_position_embeddings {self.max_seq_len}",
                "shorten seq_len or build the model with more positions",
            )
        positions = positions_of(batch, cache)
        x = self.embed_tokens(batch.input_ids)
        rotary = self.rotary_emb(position_ids=positions, dtype=x.dtype)
        x = x if self.residual_dtype is None else x.to(self.residual_dtype)
        mask = attention_mask(
            tokens=tokens,
            cached=cached,
            segment_ids=batch.segment_ids,
            left_padding=None if cache is None else cache.left_padding,
            device=x.device,
        )
        for block in self.layers:
            x = block(x, rotary=rotary, mask=mask, cache=cache)
        if cache is not None:
            cache.advance(tokens)
        return self.norm(x)

    def tp_plan(self) -> dict[str, str]:
        column = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
        row = ("self_attn.o_proj", "mlp.down_proj")
        styles = dict.fromkeys(column, "column") | dict.fromkeys(row, "row")
        return {f"layers.*.{name}": style for name, style in styles.items()}

    def head_counts(self) -> dict[str, int]:
        return {
            "attention heads (num_attention_heads)": self.config["num_attention_heads"],
            "key-value heads (num_key_value_heads)": self.config["num_key_value_heads"],
        }

    @property
    def spreads_attention(self) -> bool:
        return True

    def change_attention(self, change: Callable[[Attend], Attend]) -> None:
        for module in self.modules():
            if isinstance(module, GroupedQueryAttention):
                module.attend = change(module.attend)

    def attention_shape(self) -> tuple[int, int] | None:
        config = self.config
        decided = config["attn_implementation"] != "auto"
        return None if decided else (config["num_attention_heads"], config["head_dim"])

    def prefer_attention(self, kernel: str) -> None:
        self.change_attention(lambda _: grouped(AttendWith(kernel)))

    def param_roles(self) -> dict[str, Role]:
        return {name: _role(name) for name, _ in self.named_parameters()}

    def init_weights(self, seed: int) -> None:
        for name, parameter in self.named_parameters():
            if _role(name) == "norm":
                fill_constant(parameter, 1.0)
            else:
                rows = self.vocab_size if name in _TABLES else None
                fill_normal(parameter, std=self.init_std(name), seed=seed, name=name, rows=rows)

    def init_std(self, name: str) -> float:
        """The standard deviation that the weight called ``name`` is drawn with (see the table above)."""
        std = self.config["initializer_range"]
        residual = name.endswith(("o_proj.weight", "down_proj.weight"))
        scaled = residual and self.config["scale_residual_init"]
        return std / math.sqrt(2 * self.config["num_hidden_layers"]) if scaled else std

    def model_config(self) -> dict[str, Any]:
        return {"family": "llama", **self.config}

    def hf_names(self) -> dict[str, str]:
        return {
            name: name if name == "lm_head.weight" else f"model.{name}" for name, _ in self.named_parameters()
        }

    def hf_config(self) -> dict[str, Any]:
        """The ``config.json`` that makes ``transformers`` build the same function."""
        config = self.config
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **{key: config[key] for key in _SIZES},
            "hidden_act": "silu",
            "rms_norm_eps": config["rms_norm_eps"],
            "rope_parameters": {
                "rope_theta": config["rope_theta"],
                **(config["rope_scaling"] or {"rope_type": "default"}),
            },
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "tie_word_embeddings": config["tie_word_embeddings"],
            "initializer_range": config["initializer_range"],
            "bos_token_id": config["bos_token_id"],
            "eos_token_id": config["eos_token_id"],
            "dtype": "float32",
        }


def _role(name: str) -> Role:
    if name == "embed_tokens.weight":
        return "embedding"
    if name == "lm_head.weight":
        return "head"
    return "norm" if "norm" in name else "matrix"


def build_llama_model(
    *,
    vocab_size: int = 32000,
    hidden_size: int = 4096,
    intermediate_size: int = 11008,
    num_hidden_layers: int = 32,
    num_attention_heads: int = 32,
    num_key_value_heads: int | None = None,
    head_dim: int | None = None,
    max_position_embeddings: int = 2048,
    rms_norm_eps: float = 1e-6,
    rope_theta: float = 10000.0,
    rope_scaling: dict[str, Any] | None = None,
    tie_word_embeddings: bool = False,
    bos_token_id: int | None = None,
    eos_token_id: int | list[int] | None = None,
    initializer_range: float = 0.02,
    scale_residual_init: bool = False,
    attn_implementation: str = "auto",
    is_meta_device: bool = False,
) -> Llama:
    """A Llama without meaningful weights: call ``init_weights(seed)`` or load some.

    Names and defaults are those of transformers' ``LlamaConfig``, but for the special tokens (none).

    Args:
        vocab_size: logical vocabulary; weights are stored padded to a multiple of 128.
        hidden_size, intermediate_size: width of the residual stream and of the MLP.
        num_hidden_layers, num_attention_heads: depth, query heads.
        num_key_value_heads: key-value heads, which divide the query heads among them; None: one for each.
        head_dim: width of a head; None: hidden_size / num_attention_heads.
        max_position_embeddings: longest sequence.
        rope_scaling: Llama 3.1's long context: ``rope_type: llama3, factor, low_freq_factor, high_freq_factor,
            original_max_position_embeddings``.
        tie_word_embeddings: the head is the token embedding.
        bos_token_id, eos_token_id: written into exports where the data has no tokenizer that tells them.
        initializer_range: standard deviation of the initial weights.
        scale_residual_init: draw o_proj and down_proj with initializer_range / sqrt(2 x num_hidden_layers).
        attn_implementation: auto (the run times its kernels and takes the fastest), or one of ``layers.ATTENDS`` and
            ``attention_kernels.KERNELS``, as for ``build_gpt2_model``.
        is_meta_device: allocate nothing; ``materialise(device, seed)`` does it later.

    Raises:
        ConfigError: an argument is out of range or does not fit the others.
    """
    config = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": num_attention_heads,
        "num_key_value_heads": num_attention_heads if num_key_value_heads is None else num_key_value_heads,
        "head_dim": head_dim,
        "max_position_embeddings": max_position_embeddings,
        "rms_norm_eps": rms_norm_eps,
        "rope_theta": float(rope_theta),
        "rope_scaling": _scaling(rope_scaling),
        "tie_word_embeddings": tie_word_embeddings,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "initializer_range": initializer_range,
        "scale_residual_init": scale_residual_init,
        "attn_implementation": attn_implementation,
    }
    _check(config)
    config["head_dim"] = head_dim or hidden_size // num_attention_heads
    with torch.device("meta"):
        model = Llama(config)
    return model if is_meta_device else model.to_empty(device="cpu")


def _scaling(given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Scaled rotary frequencies as ``rotary_frequencies`` takes them; None for plain ones.

    Raises:
        ConfigError: scaling of another kind than Llama 3.1's, or not all of its numbers.
    """
    kind = "default" if given is None else given.get("rope_type", given.get("type"))
    if given is None or kind == "default":
        return None
    missing = [key for key in _LLAMA3_SCALING if not _is_number(given.get(key))]
    unknown = sorted(given.keys() - {"rope_type", "type", *_LLAMA3_SCALING})
    if kind != "llama3" or missing or unknown:
        found = f"without {', '.join(missing)}" if missing else f"with {', '.join(unknown)}"
        found = found if kind == "llama3" else f"of the kind {kind!r}"
        raise ConfigError(
            f"build_llama_model: rope_scaling {found}",
            f"it is null, or rope_type: llama3 with {', '.join(_LLAMA3_SCALING)}",
        )
    return {"rope_type": "llama3", **{key: given[key] for key in _LLAMA3_SCALING}}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _check(config: Mapping[str, Any]) -> None:
    """Raise one ConfigError that names every argument out of range."""
    problems = [
        f"{key} is {config[key]!r}, expected a whole number of at least 1"
        for key in _SIZES
        if not (key == "head_dim" and config[key] is None)
        and (not isinstance(config[key], int) or not _is_number(config[key]))
    ]
    problems += [
        f"{key} is {config[key]!r}, expected a number above 0"
        for key in ("rms_norm_eps", "rope_theta", "initializer_range")
        if not _is_number(config[key])
    ]
    problems = problems or [*_head_problems(config), *_token_problems(config)]
    if problems:
        raise ConfigError("build_llama_model: " + "; ".join(problems), "correct the model section")


def _head_problems(config: Mapping[str, Any]) -> list[str]:
    width, heads, kv_heads = (
        config[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    problems = []
    if heads % kv_heads:
        problems.append(f"num_attention_heads {heads} is not divisible by num_key_value_heads {kv_heads}")
    if config["head_dim"] is None and width % heads:
        problems.append(f"hidden_size {width} is not divisible by num_attention_heads {heads}")
    elif (config["head_dim"] or width // heads) % 2:
        problems.append(f"a head of {config['head_dim'] or width // heads} has no pairs to rotate")
    return problems


def _token_problems(config: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} {token} is not below vocab_size {config['vocab_size']}"
        for key in ("bos_token_id", "eos_token_id")
        for token in _tokens(config[key])
        if not 0 <= token < config["vocab_size"]
    ]


def _tokens(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def config_from_hf(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of ``build_llama_model`` for a Hugging Face Llama ``config.json``.

    Raises:
        CheckpointError: the configuration uses something that this Llama does not have.
    """
    # transformers 5 has one mapping, 4 two keys.
    rope = {**(hf_config.get("rope_parameters") or hf_config.get("rope_scaling") or {})}
    theta = rope.pop("rope_theta", hf_config.get("rope_theta", 10000.0))
    heads = hf_config.get("num_attention_heads", 32)
    width = hf_config.get("hidden_size", 4096)
    unsupported = [
        text
        for text, bad in (
            (f"hidden_act {hf_config.get('hidden_act')!r}", hf_config.get("hidden_act", "silu") != "silu"),
            ("attention_bias", hf_config.get("attention_bias", False)),
            ("mlp_bias", hf_config.get("mlp_bias", False)),
            ("attention_dropout", hf_config.get("attention_dropout", 0.0)),
            ("partial_rotary_factor", rope.pop("partial_rotary_factor", 1.0) != 1.0),
        )
        if bad
    ]
    try:
        scaling = _scaling(rope or None)
    except ConfigError as error:
        unsupported.append(error.message.removeprefix("build_llama_model: "))
    if unsupported:
        raise CheckpointError(
            f"this Llama configuration has {', '.join(unsupported)}, which build_llama_model does not",
            "load it with transformers.AutoModelForCausalLM.from_pretrained as the model's _target_",
        )
    vocab_size = hf_config.get("vocab_size", 32000)
    # transformers fills in 1 and 2 for any vocabulary; a token that does not exist is no token.
    special = {key: hf_config.get(key) for key in ("bos_token_id", "eos_token_id")}
    return {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": hf_config.get("intermediate_size", 11008),
        "num_hidden_layers": hf_config.get("num_hidden_layers", 32),
        "num_attention_heads": heads,
        "num_key_value_heads": hf_config.get("num_key_value_heads") or heads,
        "head_dim": hf_config.get("head_dim") or width // heads,
        "max_position_embeddings": hf_config.get("max_position_embeddings", 2048),
        "rms_norm_eps": hf_config.get("rms_norm_eps", 1e-6),
        "rope_theta": float(theta),
        "rope_scaling": scaling,
        "tie_word_embeddings": hf_config.get("tie_word_embeddings", False),
        "initializer_range": hf_config.get("initializer_range", 0.02),
        **{
            key: value if all(token < vocab_size for token in _tokens(value)) else None
            for key, value in special.items()
        },
    }


def to_hf_state(model: Llama) -> dict[str, Tensor]:
    """The model's weights under Hugging Face names; padding rows left out."""
    names = model.hf_names()
    return {
        names[name]: to_hf_tensor(model, name, parameter.detach())
        for name, parameter in model.named_parameters()
    }


def to_hf_tensor(model: Llama, name: str, tensor: Tensor) -> Tensor:
    """One weight, under our name ``name``, as the Hugging Face format has it."""
    return tensor[: model.vocab_size].contiguous() if name in _TABLES else tensor


def logical_rows(model: Llama) -> dict[str, int]:
    """Hugging Face name -> rows in such a folder, of the tables that are stored here with padding rows."""
    names = model.hf_names()
    return {names[name]: model.vocab_size for name in _TABLES if name in names}
