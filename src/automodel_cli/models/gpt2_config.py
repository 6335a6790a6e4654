"""GPT-2's arguments, sizes and ``config.json``. L layers, D width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from automodel_cli.models.model_config import (
    ModelConfig,
    known_tokens,
    refuse_arguments,
    refuse_unsupported,
    size_problems,
    token_problems,
)

INIT_STD = 0.02
NORM_EPS = 1e-5
ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu"}
"""Our name -> that in a Hugging Face configuration."""
_SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
_BUILDER = "build_gpt2_model"


@dataclass(kw_only=True)
class GPT2Config(ModelConfig):
    """What ``build_gpt2_model`` takes.

    Args:
        vocab_size: logical vocabulary; weights are stored padded to a multiple of 128.
        n_positions: longest sequence; ``n_ctx``, where given, is another name for it and wins.
        n_embd, n_layer, n_head: width, depth, attention heads.
        dropout: on embeddings, attention weights and residual branches, in training mode only.
        activation: ``gelu_tanh`` (OpenAI's and Hugging Face's) or ``gelu`` (erf).
        bias: biases in linear layers and norms.
        bos_token_id, eos_token_id: written into exports where the data has no tokenizer that tells them.
        attn_implementation: auto (the run times its kernels and takes the fastest), or one of ``layers.ATTENDS`` and
            ``attention_kernels.KERNELS``: sdpa, matmul, eager, cudnn, flash, efficient, math, fa3, fa4.
        is_meta_device: allocate nothing; ``materialize(device, seed)`` does it later.

    Raises:
        ConfigError: an argument is out of range or does not fit the others.
    """

    family: ClassVar[str] = "gpt2"

    vocab_size: int = 50257
    n_positions: int = 1024
    n_ctx: int | None = None
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    dropout: float = 0.0
    activation: str = "gelu_tanh"
    bias: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    attn_implementation: str = "auto"
    is_meta_device: bool = False

    def __post_init__(self) -> None:
        self.n_positions = self.n_positions if self.n_ctx is None else self.n_ctx
        problems = size_problems(self, _SIZES)
        if not 0.0 <= self.dropout < 1.0:
            problems.append(f"dropout is {self.dropout!r}, expected 0 <= dropout < 1")
        if self.activation not in ACTIVATIONS:
            problems.append(f"activation is {self.activation!r}, expected gelu_tanh or gelu")
        refuse_arguments(_BUILDER, problems or token_problems(self))

    def parameters(self) -> dict[str, int]:
        """They sum to 124,439,808 for GPT-2 small."""
        width, layers = self.n_embd, self.n_layer
        return {
            "embedding": self.vocab_size * width,
            "position": self.n_positions * width,
            "matrix": layers * 12 * width * width,  # 3 + 1 for attention, 4 + 4 for the MLP
            "norm": (2 * layers + 1) * width * (2 if self.bias else 1),
            "bias": layers * 9 * width if self.bias else 0,  # 3 + 1 + 4 + 1
        }

    def dimensions(self) -> dict[str, Any]:
        width = self.n_embd
        own = {"layers": self.n_layer, "heads": self.n_head, "mlp_width": 4 * width}
        return {**own, **dict.fromkeys(("width", "hidden", "key_width"), width)}

    def hf_config(self) -> dict[str, Any]:
        """``config.json`` as transformers reads it."""
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            **{name: getattr(self, name) for name in _SIZES},
            "n_ctx": self.n_positions,  # OpenAI's name, which llama.cpp's converter reads
            "n_inner": None,
            "activation_function": ACTIVATIONS[self.activation],
            **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), self.dropout),
            "layer_norm_epsilon": NORM_EPS,
            "initializer_range": INIT_STD,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "tie_word_embeddings": True,
            "dtype": "float32",
        }

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The builder's arguments for a ``config.json`` of transformers.

        Raises:
            CheckpointError: it asks for something that this family does not compute.
        """
        names = {theirs: ours for ours, theirs in ACTIVATIONS.items()} | {"gelu_pytorch_tanh": "gelu_tanh"}
        activation, width = config.get("activation_function", "gelu_new"), config.get("n_embd", 768)
        unsupported = {
            f"activation_function {activation!r}": activation not in names,
            f"n_inner {config.get('n_inner')}": config.get("n_inner") not in (None, 4 * width),
            "untied head": not config.get("tie_word_embeddings", True),
            "unscaled attention": not config.get("scale_attn_weights", True),
            "scale_attn_by_inverse_layer_idx": config.get("scale_attn_by_inverse_layer_idx", False),
            "layer_norm_epsilon": config.get("layer_norm_epsilon", NORM_EPS) != NORM_EPS,
        }
        refuse_unsupported("GPT-2", _BUILDER, unsupported)
        same = cls._same_names(config, _SIZES)
        own = {"dropout": config.get("resid_pdrop", 0.0), "activation": names[activation]}
        return {**same, **own, **known_tokens(config, same["vocab_size"])}
