"""Llama's arguments, sizes and ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from automodel_cli.errors import ConfigError
from automodel_cli.models.model_config import (
    GroupedHeads,
    ModelConfig,
    is_positive,
    known_tokens,
    refuse_arguments,
    refuse_unsupported,
    size_problems,
    token_problems,
)

SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
_SAME_IN_HF = (
    *(name for name in SIZES if name not in ("num_key_value_heads", "head_dim")),
    "rms_norm_eps",
    "tie_word_embeddings",
    "initializer_range",
)
_LLAMA3_SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_BUILDER = "build_llama_model"


@dataclass(kw_only=True)
class LlamaConfig(GroupedHeads, ModelConfig):
    """What ``build_llama_model`` takes.

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
        is_meta_device: allocate nothing; ``materialize(device, seed)`` does it later.

    Raises:
        ConfigError: an argument is out of range or does not fit the others.
    """

    family: ClassVar[str] = "llama"

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    initializer_range: float = 0.02
    scale_residual_init: bool = False
    attn_implementation: str = "auto"
    is_meta_device: bool = False

    def __post_init__(self) -> None:
        self.rope_theta = float(self.rope_theta)
        self.rope_scaling = _scaling(self.rope_scaling)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        given = [name for name in SIZES if name != "head_dim" or self.head_dim is not None]
        problems = size_problems(self, given)
        problems += [
            f"{name} is {getattr(self, name)!r}, expected a number above 0"
            for name in ("rms_norm_eps", "rope_theta", "initializer_range")
            if not is_positive(getattr(self, name))
        ]
        refuse_arguments(_BUILDER, problems or [*self.head_problems(rotated=True), *token_problems(self)])
        self.head_dim = self.head_width

    def parameters(self) -> dict[str, int]:
        """They sum to 6,738,415,616 for Llama 2 7B."""
        width, layers, table = self.hidden_size, self.num_hidden_layers, self.vocab_size * self.hidden_size
        heads = 2 * self.num_attention_heads + 2 * self.kv_heads  # of q and o, of k and v
        return {
            "embedding": table,
            "head": 0 if self.tie_word_embeddings else table,
            "matrix": layers * width * (heads * self.head_width + 3 * self.intermediate_size),
            "norm": (2 * layers + 1) * width,
        }

    def dimensions(self) -> dict[str, Any]:
        return {
            "layers": self.num_hidden_layers,
            "width": self.num_attention_heads * self.head_width,
            "hidden": self.hidden_size,
            "heads": self.num_attention_heads,
            "key_width": self.kv_heads * self.head_width,
            "mlp_width": self.intermediate_size,
            "llama_like": True,
            "shares_inputs": True,
        }

    def hf_config(self) -> dict[str, Any]:
        """``config.json`` as transformers reads it."""
        rope = self.rope_scaling or {"rope_type": "default"}
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **{name: getattr(self, name) for name in SIZES},
            "hidden_act": "silu",
            "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": {"rope_theta": self.rope_theta, **rope},
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "tie_word_embeddings": self.tie_word_embeddings,
            "initializer_range": self.initializer_range,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "dtype": "float32",
        }

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The builder's arguments for a ``config.json`` of transformers.

        Raises:
            CheckpointError: it asks for something that this family does not compute.
        """
        # transformers 5 has one mapping, 4 two keys.
        rope = {**(config.get("rope_parameters") or config.get("rope_scaling") or {})}
        theta = rope.pop("rope_theta", config.get("rope_theta", 10000.0))
        unsupported = {
            f"hidden_act {config.get('hidden_act')!r}": config.get("hidden_act", "silu") != "silu",
            "attention_bias": config.get("attention_bias", False),
            "mlp_bias": config.get("mlp_bias", False),
            "attention_dropout": config.get("attention_dropout", 0.0),
            "partial_rotary_factor": rope.pop("partial_rotary_factor", 1.0) != 1.0,
        }
        try:
            scaling = _scaling(rope or None)
        except ConfigError as error:
            unsupported[error.message.removeprefix(f"{_BUILDER}: ")] = True
        refuse_unsupported("Llama", _BUILDER, unsupported)
        same = cls._same_names(config, _SAME_IN_HF)
        heads, width = same["num_attention_heads"], same["hidden_size"]
        return {
            **same,
            "num_key_value_heads": config.get("num_key_value_heads") or heads,
            "head_dim": config.get("head_dim") or width // heads,
            "rope_theta": float(theta),
            "rope_scaling": scaling,
            **known_tokens(config, same["vocab_size"]),
        }


def _scaling(given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Scaled rotary frequencies as ``rotary_frequencies`` takes them; None for plain ones.

    Raises:
        ConfigError: scaling of another kind than Llama 3.1's, or not all of its numbers.
    """
    kind = "default" if given is None else given.get("rope_type", given.get("type"))
    if given is None or kind == "default":
        return None
    missing = [key for key in _LLAMA3_SCALING if not is_positive(given.get(key))]
    unknown = sorted(given.keys() - {"rope_type", "type", *_LLAMA3_SCALING})
    if kind != "llama3" or missing or unknown:
        found = f"without {', '.join(missing)}" if missing else f"with {', '.join(unknown)}"
        found = found if kind == "llama3" else f"of the kind {kind!r}"
        raise ConfigError(
            f"{_BUILDER}: rope_scaling {found}",
            f"it is null, or rope_type: llama3 with {', '.join(_LLAMA3_SCALING)}",
        )
    return {"rope_type": "llama3", **{key: given[key] for key in _LLAMA3_SCALING}}
