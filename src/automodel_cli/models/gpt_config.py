"""GPT's arguments, presets, sizes and ``config.json``. L layers, D width, K head dim, T sequence length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from automodel_cli.errors import CheckpointError
from automodel_cli.models.llama_config import LlamaConfig
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
from automodel_cli.sizing.shape import Shape

GATE_CHANNELS = 32
"""Channels of a token's hidden state that the gate of its value embedding looks at."""
PRESETS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "positions": "learned",
        "rope_theta": 10000.0,
        "rope_reversed": False,
        "norm": "layernorm",
        "norm_gain": True,
        "norm_eps": 1e-5,
        "embedding_norm": False,
        "qk_norm": False,
        "qk_norm_gain": False,
        "activation": "gelu_tanh",
        "bias": True,
        "tie_word_embeddings": True,
        "softcap": 0.0,
        "init": "gpt2",
    },
    "modern": {
        "positions": "rope",
        "rope_theta": 10000.0,
        "rope_reversed": True,
        "norm": "rmsnorm",
        "norm_gain": False,
        "norm_eps": 1e-6,
        "embedding_norm": True,
        "qk_norm": True,
        "qk_norm_gain": False,
        "activation": "relu2",
        "bias": False,
        "tie_word_embeddings": False,
        "softcap": 15.0,
        "init": "nanochat",
    },
}
"""Radford et al. 2019; the function of nanochat as transformers has it (``NanoChatForCausalLM``)."""
_CAPS = (1e-3, 1e6)  # beyond these fp32 has no gradient left, or nothing is capped
_FROM_PRESET: Any = None  # the default of what a preset decides
_CHOICES = {
    "preset": tuple(PRESETS),
    "positions": ("rope", "learned"),
    "norm": ("rmsnorm", "layernorm"),
    "activation": ("relu2", "swiglu", "gelu_tanh", "gelu"),
    "init": ("gpt2", "nanochat"),
}
_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
)
_NEEDED = {
    "llama": {
        "positions": "rope",
        "rope_reversed": False,
        "norm": "rmsnorm",
        "norm_gain": True,
        "embedding_norm": False,
        "qk_norm": False,
        "activation": "swiglu",
        "softcap": 0.0,
    },
    "nanochat": {
        "positions": "rope",
        "rope_reversed": True,
        "norm": "rmsnorm",
        "norm_gain": False,
        "embedding_norm": True,
        "qk_norm": True,
        "qk_norm_gain": False,
        "activation": "relu2",
        "bias": False,
    },
}
"""``model_type`` -> the options with which its class in transformers computes the same function."""
_GPT2 = {
    "positions": "learned",
    "norm": "layernorm",
    "norm_gain": True,
    "embedding_norm": False,
    "qk_norm": False,
    "activation": "gelu_tanh",
    "softcap": 0.0,
}
"""The options with which the block is GPT-2's, as llama.cpp has it."""
_TITLES = {"llama": "LlamaForCausalLM", "nanochat": "NanoChatForCausalLM"}
_BUILDER = "build_gpt_model"


@dataclass(kw_only=True)
class GPTConfig(GroupedHeads, ModelConfig):
    """What ``build_gpt_model`` takes. Options that are not given are those of the preset.

    Args:
        preset: ``modern`` (nanochat's: rotary positions, QK-norm, norms without gain, ReLU^2, softcap 15, untied head,
            no biases) or ``gpt2`` (learned positions, LayerNorm, GELU, tied head, biases).
        vocab_size: logical vocabulary; weights are stored padded to a multiple of 128.
        hidden_size, num_hidden_layers, num_attention_heads: width, depth, query heads.
        num_key_value_heads: key-value heads, which divide the query heads among them (Ainslie et al. 2023); None: one
            for each.
        head_dim: width of a head; None: hidden_size / num_attention_heads.
        intermediate_size: width of the MLP; None: 4 x hidden_size, with ``swiglu`` 8/3 of it, up to a multiple of 64.
        max_position_embeddings: longest sequence.
        positions: ``rope`` (rotary, Su et al. 2021) or ``learned`` (Radford et al. 2019).
        rope_theta: base of the rotary wavelengths.
        rope_reversed: rotate by minus the angle, as nanochat's weights expect: neither better nor worse.
        norm, norm_gain, norm_eps: ``rmsnorm`` (Zhang & Sennrich 2019) or ``layernorm`` (Ba et al. 2016); whether with
            weights; what is added to the mean square.
        embedding_norm: a norm between the embeddings and the first block, as in nanochat.
        qk_norm, qk_norm_gain: RMS norm of queries and keys over the head's width, after the rotation, so that no
            attention score is above sqrt(head_dim) (Henry et al. 2020, Dehghani et al. 2023); with weights or without.
        activation: ``relu2`` (So et al. 2021), ``swiglu`` (Shazeer 2020), ``gelu_tanh`` or ``gelu`` (erf).
        bias: biases in linear layers and in LayerNorm.
        tie_word_embeddings: the head is the token embedding.
        softcap: c: logits become c tanh(logits / c), in fp32 (Gemma 2, 2024); 0: they stay.
        window_pattern: a letter a layer, from the first on and repeated: S looks back ``short_window`` tokens, L to the
            beginning. The last layer is always L. ``SSSL`` in nanochat.
        short_window: tokens that an S layer sees, the own one included; None: max_position_embeddings / 2.
        value_embeddings: in every other layer, the last among them, values get a gated embedding of the token added
            (nanochat; after Zhou et al. 2024).
        residual_scalars: each block begins with r x + s x0, x0 being what the first block got, r and s learned, 1 and
            0.1 at first (nanochat, modded-nanogpt).
        init: initial values, ``gpt2`` or ``nanochat`` (``models.gpt`` lists them).
        initializer_range: standard deviation of the initial weights under ``gpt2``.
        bos_token_id, eos_token_id: written into exports where the data has no tokenizer that tells them.
        attn_implementation: auto (the run times its kernels and takes the fastest), or one of ``layers.ATTENDS`` and
            ``attention_kernels.KERNELS``, as for ``build_gpt2_model``.
        is_meta_device: allocate nothing; ``materialize(device, seed)`` does it later.

    Raises:
        ConfigError: an argument is out of range or does not fit the others.
    """

    family: ClassVar[str] = "gpt"

    preset: str = "modern"
    vocab_size: int = 50257
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    max_position_embeddings: int = 1024
    positions: str = _FROM_PRESET
    rope_theta: float = _FROM_PRESET
    rope_reversed: bool = _FROM_PRESET
    norm: str = _FROM_PRESET
    norm_gain: bool = _FROM_PRESET
    norm_eps: float = _FROM_PRESET
    embedding_norm: bool = _FROM_PRESET
    qk_norm: bool = _FROM_PRESET
    qk_norm_gain: bool = _FROM_PRESET
    activation: str = _FROM_PRESET
    bias: bool = _FROM_PRESET
    tie_word_embeddings: bool = _FROM_PRESET
    softcap: float = _FROM_PRESET
    window_pattern: str = "L"
    short_window: int | None = None
    value_embeddings: bool = False
    residual_scalars: bool = False
    init: str = _FROM_PRESET
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    attn_implementation: str = "auto"
    is_meta_device: bool = False

    def __post_init__(self) -> None:
        for name, value in PRESETS.get(self.preset, PRESETS["modern"]).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        optional = ("num_key_value_heads", "head_dim", "intermediate_size", "short_window")
        given = [name for name in (*_SIZES, "short_window") if name not in optional or getattr(self, name) is not None]
        problems = size_problems(self, given)
        problems += self._choice_problems()
        refuse_arguments(_BUILDER, problems or [*self._head_problems(), *token_problems(self)])
        self.num_key_value_heads, self.head_dim = self.kv_heads, self.head_width
        self.intermediate_size, self.short_window = self.mlp_width, self.window

    def _choice_problems(self) -> list[str]:
        problems = [
            f"{name} is {getattr(self, name)!r}, expected {' or '.join(choices)}"
            for name, choices in _CHOICES.items()
            if getattr(self, name) not in choices
        ]
        problems += [
            f"{name} is {getattr(self, name)!r}, expected a number above 0"
            for name in ("norm_eps", "rope_theta", "initializer_range")
            if not is_positive(getattr(self, name))
        ]
        if not (self.softcap == 0 or (is_positive(self.softcap) and _CAPS[0] <= self.softcap <= _CAPS[1])):
            problems.append(f"softcap is {self.softcap!r}, expected {_CAPS[0]:g} to {_CAPS[1]:g}, or 0 for none")
        if not self.window_pattern or set(self.window_pattern) - {"S", "L"}:
            problems.append(f"window_pattern is {self.window_pattern!r}, expected letters S and L, such as SSSL")
        return problems

    def _head_problems(self) -> list[str]:
        problems, width = self.head_problems(rotated=self.positions == "rope"), self.hidden_size
        if self.value_embeddings and width < GATE_CHANNELS:
            problems.append(f"value_embeddings: gates need a hidden_size of at least {GATE_CHANNELS}, not {width}")
        return problems

    @property
    def mlp_width(self) -> int:
        """Inner width of the MLP."""
        default = -(-self.hidden_size * 8 // 3 // 64) * 64 if self.activation == "swiglu" else 4 * self.hidden_size
        return self.intermediate_size or default

    @property
    def window(self) -> int:
        """Tokens that an S layer sees."""
        return self.short_window or max(1, self.max_position_embeddings // 2)

    @property
    def windows(self) -> list[int | None]:
        """Of each layer the tokens that it sees, None: all."""
        pattern, last = self.window_pattern, self.num_hidden_layers - 1
        letters = [pattern[layer % len(pattern)] for layer in range(last)]
        return [*(self.window if letter == "S" else None for letter in letters), None]

    @property
    def value_layers(self) -> list[int]:
        """The layers with value embeddings: every other one, the last among them."""
        last = self.num_hidden_layers - 1
        return [layer for layer in range(last + 1) if layer % 2 == last % 2] if self.value_embeddings else []

    def parameters(self) -> dict[str, int]:
        """They sum to 124,439,808 for the preset gpt2."""
        width, layers, inner = self.hidden_size, self.num_hidden_layers, self.mlp_width
        queries, keys = self.num_attention_heads * self.head_width, self.kv_heads * self.head_width
        table, gated = self.vocab_size * width, self.activation == "swiglu"
        attention, mlp = width * (2 * queries + 2 * keys), (3 if gated else 2) * width * inner
        biases = queries + 2 * keys + width + (2 if gated else 1) * inner + width
        value_layers = len(self.value_layers)
        return {
            "embedding": table + value_layers * self.vocab_size * keys,
            "head": 0 if self.tie_word_embeddings else table,
            "position": self.max_position_embeddings * width if self.positions == "learned" else 0,
            "matrix": layers * (attention + mlp) + value_layers * GATE_CHANNELS * self.kv_heads,
            "norm": self._block_norms() + (1 + self.embedding_norm) * self._norm_size(),
            "bias": layers * biases if self.bias else 0,
        }

    def _norm_size(self) -> int:
        weights = int(self.norm_gain)
        return (weights * (2 if self.norm == "layernorm" and self.bias else 1)) * self.hidden_size

    def _block_norms(self) -> int:
        heads = 2 * self.head_width if self.qk_norm and self.qk_norm_gain else 0
        return self.num_hidden_layers * (2 * self._norm_size() + heads + (2 if self.residual_scalars else 0))

    def dimensions(self) -> dict[str, Any]:
        return {
            "layers": self.num_hidden_layers,
            "width": self.num_attention_heads * self.head_width,
            "hidden": self.hidden_size,
            "heads": self.num_attention_heads,
            "key_width": self.kv_heads * self.head_width,
            "mlp_width": self.mlp_width,
            "llama_like": self.activation == "swiglu",
            "shares_inputs": True,
            "windows": tuple(window for window in self.windows if window is not None),
        }

    def shape(self) -> Shape:
        """Value embeddings are looked up, whatever the head is; norms are counted where they are."""
        shape, counts = super().shape(), self.parameters()
        tables = len(self.value_layers) * self.vocab_size * self.kv_heads * self.head_width
        return replace(
            shape,
            matmul_params=shape.matmul_params - (tables if self.tie_word_embeddings else 0),
            block_params=counts["matrix"] + counts["bias"] + self._block_norms(),
        )

    # ------------------------------------------------------------------------------------------ Hugging Face's format

    @classmethod
    def reads(cls, model_type: Any) -> bool:
        """nanochat's folders become this model; Llama's become ``build_llama_model``'s, and this one can take them."""
        return bool(model_type == "nanochat")

    @property
    def hf_kind(self) -> str | None:
        """``model_type`` of the class in transformers that computes the same function; None: there is none."""
        return next((kind for kind in _NEEDED if not self.other_than(kind)), None)

    def other_than(self, kind: str) -> list[str]:
        """What this would have to be to compute the function of ``gpt2``, or of a class in transformers."""
        needed = _GPT2 if kind == "gpt2" else _NEEDED[kind]
        other = [
            f"{name} {str(value).lower()}" for name, value in needed.items() if getattr(self, name) != value
        ]  # what it would have to be
        other += [f"no {name}" for name in ("value_embeddings", "residual_scalars") if getattr(self, name)]
        if any(self.windows):
            other.append("window_pattern L")
        if kind == "gpt2" and self.kv_heads != self.num_attention_heads:
            other.append(f"num_key_value_heads {self.num_attention_heads}")
        if kind != "llama" and self.head_width * self.num_attention_heads != self.hidden_size:
            other.append("head_dim hidden_size / num_attention_heads")
        return other

    @property
    def why_no_hf_format(self) -> str:
        """What keeps this model from being a Hugging Face folder."""
        classes = "; ".join(f"{_TITLES[kind]} needs {', '.join(self.other_than(kind))}" for kind in _NEEDED)
        return f"no class of transformers computes what these options of {_BUILDER} make: {classes}"

    def hf_config(self) -> dict[str, Any] | None:
        """``config.json`` as transformers reads it; None where it has no such class."""
        if (kind := self.hf_kind) is None:
            return None
        common = {
            "architectures": [_TITLES[kind]],
            "model_type": kind,
            **{name: getattr(self, name) for name in _SIZES if name != "head_dim" or kind == "llama"},
            "rms_norm_eps": self.norm_eps,
            "rope_parameters": {"rope_theta": self.rope_theta, "rope_type": "default"},
            "attention_bias": self.bias,
            "attention_dropout": 0.0,
            "tie_word_embeddings": self.tie_word_embeddings,
            "initializer_range": self.initializer_range,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "dtype": "float32",
        }
        if kind == "llama":
            return {**common, "hidden_act": "silu", "mlp_bias": self.bias}
        return {
            **common,
            "hidden_act": self.activation,
            "final_logit_softcapping": self.softcap or None,
            "pad_token_id": None,
        }

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The builder's arguments for a ``config.json`` of transformers, Llama's or nanochat's.

        Raises:
            CheckpointError: it asks for something that this family does not compute.
        """
        kind = config.get("model_type")
        if kind not in _NEEDED:
            raise CheckpointError(
                f"{_BUILDER} reads folders of {' and '.join(_NEEDED)}, not of {kind}",
                "load it with transformers.AutoModelForCausalLM.from_pretrained as the model's _target_",
            )
        own = _from_llama(config) if kind == "llama" else _from_nanochat(config)
        return {**_NEEDED[kind], **own, "window_pattern": "L", "value_embeddings": False, "residual_scalars": False}


def _from_llama(config: Mapping[str, Any]) -> dict[str, Any]:
    bias = bool(config.get("attention_bias", False))
    own = LlamaConfig.from_hf({**config, "attention_bias": False, "mlp_bias": False})
    unsupported = {
        "biases in one of attention and MLP": bias != bool(config.get("mlp_bias", False)),
        "rope_scaling": own.pop("rope_scaling") is not None,
    }
    refuse_unsupported("Llama", _BUILDER, unsupported)
    return {**own, "norm_eps": own.pop("rms_norm_eps"), "bias": bias}


def _from_nanochat(config: Mapping[str, Any]) -> dict[str, Any]:
    rope = {**(config.get("rope_parameters") or config.get("rope_scaling") or {})}
    unsupported = {
        f"hidden_act {config.get('hidden_act')!r}": config.get("hidden_act", "relu2") != "relu2",
        "attention_bias": config.get("attention_bias", False),
        "attention_dropout": config.get("attention_dropout", 0.0),
        "scaled rotary positions": rope.get("rope_type", "default") != "default",
        "another head_dim": config.get("head_dim")
        not in (None, config["hidden_size"] // config["num_attention_heads"]),
    }
    refuse_unsupported("NanoChat", _BUILDER, unsupported)
    needed = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {
        **{name: config[name] for name in needed},
        "num_key_value_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
        "max_position_embeddings": config.get("max_position_embeddings", 2048),
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "rope_theta": float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
        "softcap": float(config.get("final_logit_softcapping", 15.0) or 0.0),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "initializer_range": config.get("initializer_range", 0.02),
        **known_tokens(config, config["vocab_size"]),
    }
