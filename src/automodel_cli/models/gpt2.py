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
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from automodel_cli.batch import Batch
from automodel_cli.errors import CheckpointError, ConfigError
from automodel_cli.models.init import copy_whole, fill_constant, fill_normal
from automodel_cli.models.interface import Attend, CausalLM, HeadLoss, Role
from automodel_cli.models.layers.attention_kernels import AttendWith
from automodel_cli.models.layers.kv_cache import KVCache
from automodel_cli.models.layers.shared import (
    MLP,
    CausalSelfAttention,
    attend_by_name,
    attention_mask,
    positions_of,
)
from automodel_cli.sizing.shape import padded_vocab

INIT_STD = 0.02
NORM_EPS = 1e-5

# Our name -> the argument of torch's gelu, and the name in a Hugging Face configuration.
_GELU_APPROXIMATION = {"gelu_tanh": "tanh", "gelu": "none"}
_HF_ACTIVATION = {"gelu_tanh": "gelu_new", "gelu": "gelu"}
_TRANSPOSED_IN_HF = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(
        self, width: int, heads: int, *, layer: int, bias: bool, dropout: float, activation: str, attend: Any
    ):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=NORM_EPS, bias=bias)
        self.attn = CausalSelfAttention(width, heads, layer=layer, bias=bias, dropout=dropout, attend=attend)
        self.ln_2 = nn.LayerNorm(width, eps=NORM_EPS, bias=bias)
        self.mlp = MLP(width, bias=bias, dropout=dropout, approximate=_GELU_APPROXIMATION[activation])

    def forward(self, x: Tensor, *, mask: Any = None, cache: KVCache | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask=mask, cache=cache)
        return x + self.mlp(self.ln_2(x))


class GPT2(CausalLM):
    """The GPT-2 architecture; make one with ``build_gpt2_model``."""

    takes_residual_dtype = True

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = config["vocab_size"]
        self.padded_vocab_size = padded_vocab(self.vocab_size)
        self.max_seq_len = config["n_positions"]
        self.notes: list[str] = []
        width, dropout, bias = config["n_embd"], config["dropout"], config["bias"]
        attend = attend_by_name(config["attn_implementation"])
        self.wte = nn.Embedding(self.padded_vocab_size, width)
        self.wpe = nn.Embedding(config["n_positions"], width)
        self.drop = nn.Dropout(dropout)
        self.h = nn.ModuleList(
            Block(
                width,
                config["n_head"],
                layer=layer,
                bias=bias,
                dropout=dropout,
                activation=config["activation"],
                attend=attend,
            )
            for layer in range(config["n_layer"])
        )
        self.ln_f = nn.LayerNorm(width, eps=NORM_EPS, bias=bias)

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
            dropout=self.config["dropout"] if self.training else 0.0,
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
        return {"attention heads (n_head)": self.config["n_head"]}

    @property
    def spreads_attention(self) -> bool:
        return True

    def change_attention(self, change: Callable[[Attend], Attend]) -> None:
        for module in self.modules():
            if isinstance(module, CausalSelfAttention):
                module.attend = change(module.attend)

    def attention_shape(self) -> tuple[int, int] | None:
        heads = self.config["n_head"]
        return (
            (heads, self.config["n_embd"] // heads) if self.config["attn_implementation"] == "auto" else None
        )

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
        return INIT_STD / math.sqrt(2 * self.config["n_layer"]) if residual else INIT_STD

    def model_config(self) -> dict[str, Any]:
        return {"family": "gpt2", **self.config}

    def hf_names(self) -> dict[str, str]:
        return {name: f"transformer.{name}" for name, _ in self.named_parameters()}

    def hf_config(self) -> dict[str, Any]:
        """The ``config.json`` that makes ``transformers`` build the same function."""
        config = self.config
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": self.vocab_size,
            "n_positions": config["n_positions"],
            "n_ctx": config["n_positions"],  # OpenAI's name, which llama.cpp's converter reads
            "n_embd": config["n_embd"],
            "n_layer": config["n_layer"],
            "n_head": config["n_head"],
            "n_inner": None,
            "activation_function": _HF_ACTIVATION[config["activation"]],
            "embd_pdrop": config["dropout"],
            "attn_pdrop": config["dropout"],
            "resid_pdrop": config["dropout"],
            "layer_norm_epsilon": NORM_EPS,
            "initializer_range": INIT_STD,
            "bos_token_id": config["bos_token_id"],
            "eos_token_id": config["eos_token_id"],
            "tie_word_embeddings": True,
            "dtype": "float32",
        }


def _role(name: str) -> Role:
    if name == "wte.weight":
        return "embedding"
    if name == "wpe.weight":
        return "position"
    if ".ln_" in f".{name}":
        return "norm"
    return "bias" if name.endswith("bias") else "matrix"


def build_gpt2_model(
    *,
    vocab_size: int = 50257,
    n_positions: int = 1024,
    n_ctx: int | None = None,
    n_embd: int = 768,
    n_layer: int = 12,
    n_head: int = 12,
    dropout: float = 0.0,
    activation: str = "gelu_tanh",
    bias: bool = True,
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
    attn_implementation: str = "auto",
    is_meta_device: bool = False,
) -> GPT2:
    """A GPT-2 without meaningful weights: call ``init_weights(seed)`` or load some.

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
        is_meta_device: allocate nothing; ``materialise(device, seed)`` does it later.

    Raises:
        ConfigError: an argument is out of range or does not fit the others.
    """
    config = {
        "vocab_size": vocab_size,
        "n_positions": n_positions if n_ctx is None else n_ctx,
        "n_embd": n_embd,
        "n_layer": n_layer,
        "n_head": n_head,
        "dropout": dropout,
        "activation": activation,
        "bias": bias,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "attn_implementation": attn_implementation,
    }
    _check(config)
    with torch.device("meta"):
        model = GPT2(config)
    return model if is_meta_device else model.to_empty(device="cpu")


def _check(config: Mapping[str, Any]) -> None:
    """Raise one ConfigError that names every argument out of range."""
    problems = [
        f"{key} is {config[key]!r}, expected a whole number of at least 1"
        for key in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
        if not isinstance(config[key], int) or isinstance(config[key], bool) or config[key] < 1
    ]
    if not 0.0 <= config["dropout"] < 1.0:
        problems.append(f"dropout is {config['dropout']!r}, expected 0 <= dropout < 1")
    if config["activation"] not in _GELU_APPROXIMATION:
        problems.append(f"activation is {config['activation']!r}, expected gelu_tanh or gelu")
    for key in ("bos_token_id", "eos_token_id"):
        token = config[key]
        if token is not None and not problems and not 0 <= token < config["vocab_size"]:
            problems.append(f"{key} {token} is not below vocab_size {config['vocab_size']}")
    if problems:
        raise ConfigError("build_gpt2_model: " + "; ".join(problems), "correct the model section")


def config_from_hf(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of ``build_gpt2_model`` for a Hugging Face GPT-2 ``config.json``.

    Raises:
        CheckpointError: the configuration uses something that this GPT-2 does not have.
    """
    activation = {hf: ours for ours, hf in _HF_ACTIVATION.items()} | {"gelu_pytorch_tanh": "gelu_tanh"}
    hf_activation = hf_config.get("activation_function", "gelu_new")
    width = hf_config.get("n_embd", 768)
    unsupported = [
        text
        for text, bad in (
            (f"activation_function {hf_activation!r}", hf_activation not in activation),
            (f"n_inner {hf_config.get('n_inner')}", hf_config.get("n_inner") not in (None, 4 * width)),
            ("untied head", not hf_config.get("tie_word_embeddings", True)),
            ("unscaled attention", not hf_config.get("scale_attn_weights", True)),
            ("scale_attn_by_inverse_layer_idx", hf_config.get("scale_attn_by_inverse_layer_idx", False)),
            ("layer_norm_epsilon", hf_config.get("layer_norm_epsilon", NORM_EPS) != NORM_EPS),
        )
        if bad
    ]
    if unsupported:
        raise CheckpointError(
            f"this GPT-2 configuration has {', '.join(unsupported)}, which build_gpt2_model does not",
            "load it with transformers.AutoModelForCausalLM.from_pretrained as the model's _target_",
        )
    vocab_size = hf_config.get("vocab_size", 50257)
    # transformers fills in 50256 for any vocabulary; a token that does not exist is no token.
    special = {key: hf_config.get(key) for key in ("bos_token_id", "eos_token_id")}
    return {
        "vocab_size": vocab_size,
        "n_positions": hf_config.get("n_positions", 1024),
        "n_embd": width,
        "n_layer": hf_config.get("n_layer", 12),
        "n_head": hf_config.get("n_head", 12),
        "dropout": hf_config.get("resid_pdrop", 0.0),
        "activation": activation[hf_activation],
        **{
            key: token if token is not None and token < vocab_size else None for key, token in special.items()
        },
    }


def from_hf_state(model: GPT2, tensors: Mapping[str, Tensor]) -> None:
    """Copy Hugging Face GPT-2 tensors into ``model``; names with or without ``transformer.``.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape.
    """
    check_hf_shapes(model, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    found = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    for name, parameter in model.named_parameters():
        tensor = (found[name].t() if name.endswith(_TRANSPOSED_IN_HF) else found[name]).to(torch.float32)
        padding = parameter.shape[0] - tensor.shape[0]
        copy_whole(parameter, F.pad(tensor, (0, 0, 0, padding)) if padding else tensor)


def check_hf_shapes(model: GPT2, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check the names and shapes of Hugging Face GPT-2 tensors against ``model``.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape.
    """
    found = {name.removeprefix("transformer."): tuple(shape) for name, shape in shapes.items()}
    ignored = {name for name in found if name.endswith((".attn.bias", ".attn.masked_bias"))} | {
        "lm_head.weight"
    }
    ours = dict(model.named_parameters())
    problems = [f"{name} is missing" for name in sorted(ours.keys() - found.keys())]
    problems += [f"{name} is not part of the model" for name in sorted(found.keys() - ours.keys() - ignored)]
    for name in sorted(ours.keys() & found.keys()):
        shape = found[name][::-1] if name.endswith(_TRANSPOSED_IN_HF) else found[name]
        wanted = _logical_shape(model, name, ours[name])
        if shape != wanted:
            problems.append(f"{name} has shape {shape}, expected {wanted}")
    if problems:
        raise CheckpointError(
            f"these GPT-2 weights do not fit the model: {'; '.join(problems[:5])}",
            "build the model with the sizes in the folder's config.json",
        )


def to_hf_state(model: GPT2) -> dict[str, Tensor]:
    """The model's weights under Hugging Face names and in its layouts; padding rows left out."""
    state = {
        f"transformer.{name}": to_hf_tensor(model, name, parameter.detach())
        for name, parameter in model.named_parameters()
    }
    if not model.config["bias"]:
        state.update(_zero_biases(model))
    return state


def to_hf_tensor(model: GPT2, name: str, tensor: Tensor) -> Tensor:
    """One weight, under our name ``name``, in the layout of the Hugging Face format."""
    if name == "wte.weight":
        tensor = tensor[: model.vocab_size]
    return (tensor.t() if name.endswith(_TRANSPOSED_IN_HF) else tensor).contiguous()


def _zero_biases(model: GPT2) -> dict[str, Tensor]:
    """Hugging Face's GPT-2 always has biases: zeros, where ours was built without."""
    zeros: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if name not in ("wte.weight", "wpe.weight"):
            bias = f"transformer.{name.removesuffix('weight')}bias"
            zeros[bias] = torch.zeros(parameter.shape[0], dtype=parameter.dtype)
    return zeros


def _logical_shape(model: GPT2, name: str, parameter: Tensor) -> tuple[int, ...]:
    shape = tuple(parameter.shape)
    return (model.vocab_size, *shape[1:]) if name == "wte.weight" else shape
