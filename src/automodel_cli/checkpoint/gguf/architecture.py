"""Which of llama.cpp's models computes the same function, its hyperparameters, and how its tensors are stored.

| here           | architecture | tensors that change                                                               |
|----------------|--------------|-----------------------------------------------------------------------------------|
| gpt2           | gpt2         | Conv1D's ``[in, out]`` become ``[out, in]``                                       |
| llama, mistral | llama        | rows of q and k: two that are rotated together stand side by side, not K/2 apart  |
| qwen2, qwen3   | the same     | none                                                                              |

The head is always written, also where it is the token embedding: older readers want both. ``rope_freqs`` has the
factors by which Llama 3.1 makes wavelengths longer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import torch

from automodel_cli.checkpoint.gguf.form import Form
from automodel_cli.errors import CheckpointError
from automodel_cli.models.layers.llama import rotary_frequencies

Array = np.ndarray[Any, Any]
Keys = dict[str, int | float]

_CONV1D = re.compile(r".*\.(c_attn|c_proj|c_fc)\.weight")
_LARGEST_U32, _LARGEST_F32 = 2**32 - 1, float(np.finfo(np.float32).max)
_TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")
_KINDS = {
    "gpt2": gguf.MODEL_ARCH.GPT2,
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
# Qwen's graphs there take no factors (rope_freqs), and refuse a file with a tensor that they do not take.
_ROPE_KINDS = {
    gguf.MODEL_ARCH.LLAMA: ("default", "llama3"),
    gguf.MODEL_ARCH.QWEN2: ("default",),
    gguf.MODEL_ARCH.QWEN3: ("default",),
}


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file: its name and shape there, and how to get its values (fp32) when their turn comes."""

    name: str
    shape: tuple[int, ...]
    values: Callable[[], Array]


@dataclass(frozen=True)
class Layout:
    """A model as llama.cpp has it.

    Attributes:
        name: of the architecture.
        keys: hyperparameters by their names below that of the architecture.
        tensors: in the order of the file.
    """

    name: str
    keys: Keys
    tensors: list[Tensor]

    @property
    def rows(self) -> int:
        """Rows of the token embedding: ids that the file has to name."""
        return next(tensor.shape[0] for tensor in self.tensors if tensor.name == "token_embd.weight")


def layout_of(form: Form) -> Layout:
    """The model of ``form`` as llama.cpp has it.

    Raises:
        CheckpointError: llama.cpp computes another function, or a tensor has no place in the file.
    """
    config, kind = form.config, str(form.config["model_type"])
    if kind not in _KINDS:
        raise CheckpointError(
            f"models of type {kind} are not exported to GGUF, only {', '.join(_KINDS)}",
            "write it with automodel export hf, and convert that folder with llama.cpp's convert_hf_to_gguf.py",
        )
    if other := [problem for problem, found in _differences(kind, config).items() if found]:
        raise CheckpointError(
            f"llama.cpp's {kind} computes another function: this model has {', '.join(other)}",
            "automodel generate, chat and serve run it as it is",
        )
    arch = _KINDS[kind]
    keys = _gpt2_keys(config) if kind == "gpt2" else _llama_keys(config)
    _refuse_odd_numbers(keys)
    layout = Layout(gguf.MODEL_ARCH_NAMES[arch], keys, list(_tensors(form, arch, keys)))
    return layout if kind == "gpt2" else Layout(layout.name, {**keys, "vocab_size": layout.rows}, layout.tensors)


# ---------------------------------------------------------------------------------------------- hyperparameters


def _differences(kind: str, config: Mapping[str, Any]) -> dict[str, bool]:
    """What llama.cpp does not compute -> whether the model has it."""
    if kind == "gpt2":
        activation = config.get("activation_function", "gelu_new")
        return {
            f"activation {activation}": activation not in _TANH_GELU,
            "unscaled attention": not config.get("scale_attn_weights", True),
            "scale_attn_by_inverse_layer_idx": bool(config.get("scale_attn_by_inverse_layer_idx")),
            "cross-attention": bool(config.get("add_cross_attention")),
        }
    rope, activation = _rope(config), config.get("hidden_act", "silu")
    window, positions = config.get("sliding_window"), config["max_position_embeddings"]
    return {
        f"activation {activation}": activation != "silu",
        f"a window of {window} tokens": config.get("use_sliding_window", True) and (window or positions) < positions,
        f"rotary positions of the kind {rope['rope_type']}": rope["rope_type"] not in _ROPE_KINDS[_KINDS[kind]],
        "partial_rotary_factor": rope.get("partial_rotary_factor", 1.0) != 1.0,
        "a head dimension that is odd": _head_dim(config) % 2 != 0,
    }


def _refuse_odd_numbers(keys: Keys) -> None:
    """Sizes are whole numbers of 32 bits there, the others fp32."""
    for name, value in keys.items():
        if not 0 < value <= (_LARGEST_F32 if isinstance(value, float) else _LARGEST_U32):
            raise CheckpointError(
                f"{name} is {value}, which a GGUF file cannot hold", "the configuration of the model is damaged"
            )


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": config.get("rope_theta", 10000.0)}
    return rope | dict(config.get("rope_parameters") or config.get("rope_scaling") or {})


def _head_dim(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _gpt2_keys(config: Mapping[str, Any]) -> Keys:
    return {
        "context_length": config["n_positions"],
        "embedding_length": config["n_embd"],
        "feed_forward_length": config.get("n_inner") or 4 * config["n_embd"],
        "block_count": config["n_layer"],
        "attention.head_count": config["n_head"],
        "attention.layer_norm_epsilon": float(config["layer_norm_epsilon"]),
    }


def _llama_keys(config: Mapping[str, Any]) -> Keys:
    head_dim = _head_dim(config)
    return {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "block_count": config["num_hidden_layers"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config.get("num_key_value_heads") or config["num_attention_heads"],
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": head_dim,
        "rope.freq_base": float(_rope(config)["rope_theta"]),
    }


# ------------------------------------------------------------------------------------------------------ tensors


def _tensors(form: Form, arch: gguf.MODEL_ARCH, keys: Keys) -> Iterator[Tensor]:
    names = gguf.get_tensor_name_map(arch, int(keys["block_count"]))
    found = {_name_in(names, arch, name): name for name in form.entries}
    if "output.weight" not in found:
        found["output.weight"] = found["token_embd.weight"]  # tied
    if (factors := _frequency_factors(form.config)) is not None:
        yield Tensor("rope_freqs.weight", factors.shape, lambda: factors)
    for name, theirs in found.items():
        entry, change = form.entries[theirs], _change(arch, name, theirs, keys)
        shape = tuple(entry.shape)[::-1] if change is np.transpose else tuple(entry.shape)
        yield Tensor(name, shape, _reader(entry.values, change))


def _reader(values: Callable[[], torch.Tensor], change: Callable[[Array], Array]) -> Callable[[], Array]:
    return lambda: change(values().detach().to(torch.float32).numpy())


def _name_in(names: gguf.TensorNameMap, arch: gguf.MODEL_ARCH, name: str) -> str:
    there = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if there is None:
        raise CheckpointError(
            f"GGUF files of {gguf.MODEL_ARCH_NAMES[arch]} have no tensor for {name}",
            "train without what adds it, or use automodel generate, chat and serve",
        )
    return str(there)


def _change(arch: gguf.MODEL_ARCH, name: str, theirs: str, keys: Keys) -> Callable[[Array], Array]:
    """What is done to the values of one tensor."""
    if arch is gguf.MODEL_ARCH.GPT2:
        return np.transpose if _CONV1D.fullmatch(theirs) else np.asarray
    heads = {".attn_q.": "attention.head_count", ".attn_k.": "attention.head_count_kv"}
    counted = next((int(keys[key]) for part, key in heads.items() if part in name), None)
    if arch is not gguf.MODEL_ARCH.LLAMA or counted is None:
        return np.asarray
    return lambda values: side_by_side(values, counted)


def side_by_side(values: Array, heads: int) -> Array:
    """Rows (or biases) of queries or keys with element i of a head beside i + K/2, which is rotated with it."""
    halves = values.reshape(heads, 2, -1, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _frequency_factors(config: Mapping[str, Any]) -> Array | None:
    """By what each rotary frequency is divided, ``[K / 2]``; None for plain ones."""
    if "hidden_size" not in config or (rope := _rope(config))["rope_type"] == "default":
        return None
    head_dim, theta = _head_dim(config), float(rope["rope_theta"])
    plain, slowed = (rotary_frequencies(head_dim, theta, scaling) for scaling in (None, rope))
    factors: Array = (plain / slowed).numpy()
    return factors
