"""A model in the terms of Hugging Face, tensor by tensor: where an export to GGUF begins, whatever holds the weights.

A checkpoint and a Hugging Face folder both become the configuration of a model and its tensors by their names there;
none is read before its turn comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from automodel_cli.checkpoint.hf import export as hf_export
from automodel_cli.checkpoint.hf import format as hf_format
from automodel_cli.checkpoint.hf.export import Entry, Source
from automodel_cli.checkpoint.storage.sharded import DTYPES
from automodel_cli.checkpoint.storage.step_files import StepReader
from automodel_cli.checkpoint.storage.tensor_file import read_header
from automodel_cli.errors import CheckpointError
from automodel_cli.models.gpt import GPT
from automodel_cli.models.interface import CausalLM

_TABLES = {"embed_tokens.weight": "model.embed_tokens.weight", "embed_positions.weight": "transformer.wpe.weight"}
_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Form:
    """What a Hugging Face folder says of a model.

    Attributes:
        config: ``config.json``, with all defaults.
        entries: tensors by their names there; a tied head is not among them.
    """

    config: Mapping[str, Any]
    entries: Mapping[str, Entry]


def of_step(reader: StepReader, *, averaged: bool = False) -> Form:
    """The model of a checkpoint, with its last weights or their average.

    Raises:
        CheckpointError: it has no such form, or the checkpoint lacks a tensor.
    """
    model, source = hf_export.model_and_source(reader, averaged=averaged)
    if isinstance(model, GPT) and model.config.hf_kind != "llama":
        return _gpt2_like(model, source)
    if not hf_export.has_format(model):
        raise CheckpointError(hf_export.why_not(model), "GPT-2, Llama, Mistral, Qwen 2 and Qwen 3 can be exported")
    entries = hf_export.entries_of(model, source)
    if entries is None:
        raise _only_transformers(reader.folder)
    return Form(_config(model), entries)


def of_folder(folder: Path) -> Form:
    """The model of a Hugging Face folder.

    Raises:
        CheckpointError: it cannot be read, or is of a kind that only transformers can map.
    """
    model, shapes = hf_format.on_meta(folder)
    targets = hf_format.targets_of(model, shapes, folder)
    if targets is None:
        raise _only_transformers(folder)
    files = {name: (path, info) for path in hf_format.weight_files(folder) for name, info in _tensors(path)}
    entries = {}
    for name, target in targets.items():
        path, info = files[name]
        entries[target.there.name] = Entry(DTYPES[info.dtype], info.shape, partial(_read, path, name))
    return Form(_config(model), entries)


def _tensors(path: Path) -> Any:
    return read_header(path).tensors.items()


def _read(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, framework="pt") as handle:
        tensor: torch.Tensor = handle.get_tensor(name)
        return tensor


def _config(model: CausalLM) -> dict[str, Any]:
    own = model.hf_config()
    if own is not None:
        return own
    hf: Any = model
    config: dict[str, Any] = hf.hf.config.to_dict()
    return config


def _only_transformers(folder: Path) -> CheckpointError:
    return CheckpointError(
        f"{folder}: transformers alone can bring these weights into the form that llama.cpp's own converter reads",
        "write them with automodel export hf, and convert that folder with llama.cpp's convert_hf_to_gguf.py",
    )


def _gpt2_like(model: GPT, source: Source) -> Form:
    """A model of ``build_gpt_model`` with the block of GPT-2: queries, keys and values in one, missing biases zero.

    Raises:
        CheckpointError: it computes something else.
    """
    config, entries = model.config, {}
    if other := config.other_than("gpt2"):
        raise CheckpointError(
            f"llama.cpp has no model with these options of build_gpt_model: as GPT-2 it would need {', '.join(other)}; "
            f"as Llama {', '.join(config.other_than('llama'))}",
            "automodel generate, chat and serve run it as it is",
        )
    for name, parameter in model.named_parameters():
        if ".k_proj." in name or ".v_proj." in name:
            continue
        parts = [name.replace(".q_proj.", f".{one}_proj.") for one in "qkv"] if ".q_proj." in name else [name]
        rows = model.vocab_size if name in ("embed_tokens.weight", _HEAD) else len(parts) * len(parameter)
        there = _TABLES.get(name) or (name if name == _HEAD else f"model.{name.replace('.q_proj.', '.qkv_proj.')}")
        values = partial(_stacked, source, parts, rows)
        entries[there] = Entry(source.dtypes[name], (rows, *parameter.shape[1:]), values)
        if not config.bias and name not in (*_TABLES, _HEAD):
            bias = there.removesuffix("weight") + "bias"
            entries[bias] = Entry(torch.float32, (rows,), partial(torch.zeros, rows))
    sizes = {"n_positions": config.max_position_embeddings, "n_embd": config.hidden_size, "n_inner": config.mlp_width}
    sizes |= {"n_layer": config.num_hidden_layers, "n_head": config.num_attention_heads}
    return Form({"model_type": "gpt2", "layer_norm_epsilon": config.norm_eps, **sizes}, entries)


def _stacked(source: Source, parts: list[str], rows: int) -> torch.Tensor:
    return torch.cat([source.read(name) for name in parts])[:rows]
