"""lingua's ``consolidated.pth`` with ``params.json`` (layout: ``trainers.py``)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch import Tensor

from automodel_cli.checkpoint.imports import torch_file
from automodel_cli.checkpoint.imports.imported import (
    WHAT,
    Imported,
    Size,
    check_sizes,
    llama,
    llama_sizes,
    refuse,
    renamed,
    weights_of,
)
from automodel_cli.errors import CheckpointError
from automodel_cli.json_files import FileModel, FiniteFloat, read_json, validated

_LINGUA_NAMES = {
    "output.weight": "lm_head.weight",
    "output.tied_module.weight": "lm_head.weight",
    "tok_embeddings.weight": "embed_tokens.weight",
    "layers.{}.attention_norm.weight": "layers.{}.input_layernorm.weight",
    "layers.{}.attention.wq.weight": "layers.{}.self_attn.q_proj.weight",
    "layers.{}.attention.wk.weight": "layers.{}.self_attn.k_proj.weight",
    "layers.{}.attention.wv.weight": "layers.{}.self_attn.v_proj.weight",
    "layers.{}.attention.wo.weight": "layers.{}.self_attn.o_proj.weight",
    "layers.{}.ffn_norm.weight": "layers.{}.post_attention_layernorm.weight",
    "layers.{}.feed_forward.w1.weight": "layers.{}.mlp.gate_proj.weight",
    "layers.{}.feed_forward.w2.weight": "layers.{}.mlp.down_proj.weight",
    "layers.{}.feed_forward.w3.weight": "layers.{}.mlp.up_proj.weight",
    "norm.weight": "norm.weight",
}


class _LinguaModel(FileModel):
    """What is used of ``model`` in ``params.json``, with lingua's defaults."""

    dim: Size
    n_layers: Size
    n_heads: Size | None = None
    head_dim: Size | None = None
    n_kv_heads: Size | None = None
    norm_eps: Annotated[FiniteFloat, Field(gt=0)] = 1e-5
    rope_theta: Annotated[FiniteFloat, Field(gt=0)] = 10000.0
    max_seqlen: Size = 1024
    vocab_size: int = -1


_LINGUA_FREE = {
    "ffn_dim_multiplier", "multiple_of", "init_base_std", "init_std_factor", "seed", "weight_tying", "attn_impl",
}  # fmt: skip


def lingua_model(folder: Path) -> Imported:
    """The model of a folder of lingua's.

    Raises:
        CheckpointError: damaged, of another architecture, or names and sizes that do not agree.
    """
    where = folder / "params.json"
    told = read_json(where, CheckpointError)
    told = told.get("model", told) if isinstance(told, dict) else told
    config = validated(told, _LinguaModel, where, CheckpointError, hint=WHAT)
    other = told.keys() - _LinguaModel.model_fields.keys() - _LINGUA_FREE
    refuse(where, [f"model.{key} is {told[key]!r}" for key in sorted(other, key=str) if told[key]])
    if config.n_heads is None and config.head_dim is None:
        refuse(where, ["model has neither n_heads nor head_dim"])
    width = config.head_dim or config.dim // (config.n_heads or 1)
    heads = config.n_heads or config.dim // width
    path = folder / "consolidated.pth"
    weights = renamed(weights_of(torch_file.read(path), path), _LINGUA_NAMES, path)
    weights = {name: _halves(name, tensor, width, path) for name, tensor in weights.items()}
    sizes = llama_sizes(weights, path)
    names = {"dim": "hidden_size", "n_layers": "num_hidden_layers", "vocab_size": "vocab_size"}
    known_rows = told.get("vocab_size") if config.vocab_size > 0 else None
    found = {theirs: sizes[ours] for theirs, ours in names.items()}
    check_sizes(where, {**told, "vocab_size": known_rows}, found)
    return llama("lingua", path, weights, {
        **sizes, "num_attention_heads": heads, "num_key_value_heads": config.n_kv_heads or heads, "head_dim": width,
        "max_position_embeddings": config.max_seqlen, "rms_norm_eps": config.norm_eps, "rope_theta": config.rope_theta,
    })  # fmt: skip


def _halves(name: str, tensor: Tensor, width: int, where: Path) -> Tensor:
    """Rows of queries and keys, from rotary pairs that are neighbours to pairs that are half a head apart."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return tensor
    if tensor.dim() != 2 or width < 2 or tensor.shape[0] % width or width % 2:
        refuse(where, [f"{name} has shape {tuple(tensor.shape)}, which are no heads of {width}"])
    return tensor.view(-1, width // 2, 2, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
