"""litgpt's ``lit_model.pth`` with ``model_config.yaml`` (layout: ``trainers.py``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from automodel_cli.checkpoint.imports import torch_file
from automodel_cli.checkpoint.imports.imported import (
    WHAT,
    Imported,
    Size,
    Weights,
    check_sizes,
    llama,
    llama_sizes,
    refuse,
    renamed,
    weights_of,
)
from automodel_cli.errors import CheckpointError
from automodel_cli.json_files import FileModel, FiniteFloat, read_yaml, validated

_LITGPT_NAMES = {
    "lm_head.weight": "lm_head.weight",
    "transformer.wte.weight": "embed_tokens.weight",
    "transformer.h.{}.norm_1.weight": "layers.{}.input_layernorm.weight",
    "transformer.h.{}.attn.qkv.weight": "layers.{}.self_attn.qkv",
    "transformer.h.{}.attn.attn.weight": "layers.{}.self_attn.qkv_by_group",
    "transformer.h.{}.attn.proj.weight": "layers.{}.self_attn.o_proj.weight",
    "transformer.h.{}.norm_2.weight": "layers.{}.post_attention_layernorm.weight",
    "transformer.h.{}.mlp.fc_1.weight": "layers.{}.mlp.gate_proj.weight",
    "transformer.h.{}.mlp.fc_2.weight": "layers.{}.mlp.up_proj.weight",
    "transformer.h.{}.mlp.proj.weight": "layers.{}.mlp.down_proj.weight",
    "transformer.ln_f.weight": "norm.weight",
}


class _LitgptConfig(FileModel):
    """What is used of ``model_config.yaml``, with litgpt's defaults."""

    name: str = ""
    block_size: Size = 4096
    n_layer: Size
    n_embd: Size
    n_head: Size
    n_query_groups: Size | None = None
    head_size: Size | None = None
    intermediate_size: Size | None = None
    padded_vocab_size: Size | None = None
    norm_eps: Annotated[FiniteFloat, Field(gt=0)] = 1e-5
    rope_base: Annotated[FiniteFloat, Field(gt=0)] = 10000
    rope_adjustments: dict[str, FiniteFloat] | None = None


# What a Llama has, and litgpt's default where the file says nothing.
_LITGPT_IS = {
    "norm_class_name": ("RMSNorm", "LayerNorm"),
    "mlp_class_name": ("LLaMAMLP", "GptNeoxMLP"),
    "parallel_residual": (False, True),
    "rotary_percentage": (1.0, 0.25),
    "rope_condense_ratio": (1, 1),
    "bias": (False, True),
    "norm_1": (True, True),
    "norm_2": (True, True),
}
# Of no effect on a model that has the above.
_LITGPT_FREE = {
    "hf_config", "vocab_size", "padding_multiple", "norm_qk_type", "gelu_approximate", "attention_scores_scalar",
    "moe_intermediate_size", "n_expert_per_token",
}  # fmt: skip


def litgpt_model(folder: Path) -> Imported:
    """The model of a folder of litgpt's.

    Raises:
        CheckpointError: damaged, of another architecture, or names and sizes that do not agree.
    """
    where = folder / "model_config.yaml"
    told = read_yaml(where, CheckpointError)
    config = validated(told, _LitgptConfig, where, CheckpointError, hint=WHAT)
    width = config.head_size or config.n_embd // config.n_head
    other = told.keys() - _LitgptConfig.model_fields.keys() - _LITGPT_IS.keys() - _LITGPT_FREE
    problems = [
        f"{key} is {told.get(key, default)!r}"
        for key, (wanted, default) in _LITGPT_IS.items()
        if told.get(key, default) != wanted
    ]
    problems += [f"{key} is {told[key]!r}" for key in sorted(other, key=str) if told[key]]
    problems += ["it is a Gemma"] * ("gemma" in config.name.lower())
    scale = told.get("attention_scores_scalar")
    problems += [f"attention_scores_scalar is {scale!r}"] * (scale not in (None, width))
    refuse(where, problems)
    path = folder / "lit_model.pth"
    groups = config.n_query_groups or config.n_head
    weights = renamed(weights_of(torch_file.read(path), path), _LITGPT_NAMES, path)
    weights = _without_joined_heads(weights, config.n_head, groups, width, path)
    sizes = llama_sizes(weights, path)
    keys = ("padded_vocab_size", "n_embd", "intermediate_size", "n_layer")
    check_sizes(where, told, dict(zip(keys, sizes.values(), strict=True)))
    return llama("litgpt", path, weights, {
        **sizes, "num_attention_heads": config.n_head, "num_key_value_heads": groups, "head_dim": width,
        "max_position_embeddings": config.block_size, "rms_norm_eps": config.norm_eps, "rope_theta": config.rope_base,
        "rope_scaling": _litgpt_scaling(config.rope_adjustments),
    })  # fmt: skip


def _litgpt_scaling(given: Mapping[str, float] | None) -> dict[str, Any] | None:
    if not given:
        return None
    renamed = {"original_max_seq_len": "original_max_position_embeddings"}
    return {"rope_type": "llama3", **{renamed.get(key, key): value for key, value in given.items()}}


def _without_joined_heads(weights: Weights, heads: int, groups: int, width: int, where: Path) -> Weights:
    """With three matrices for each that litgpt has of queries, keys and values."""
    found: Weights = {}
    for name, tensor in weights.items():
        stem, _, kind = name.rpartition(".")
        if not kind.startswith("qkv"):
            found[name] = tensor
            continue
        if heads % groups or tuple(tensor.shape[:1]) != ((heads + 2 * groups) * width,):
            expected = f"{heads} heads and 2 x {groups} of {width}"
            refuse(where, [f"{stem} has {tuple(tensor.shape)}, which are not {expected}"])
        if kind == "qkv_by_group":
            by_group = tensor.view(groups, heads // groups + 2, width, -1)
            parts = (by_group[:, :-2], by_group[:, -2], by_group[:, -1])
        else:
            parts = tensor.split((heads * width, groups * width, groups * width))
        for part, letter in zip(parts, "qkv", strict=True):
            found[f"{stem}.{letter}_proj.weight"] = part.reshape(-1, tensor.shape[-1])
    return found
