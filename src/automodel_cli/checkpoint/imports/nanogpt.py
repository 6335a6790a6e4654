"""nanoGPT's ``ckpt.pt`` (layout: ``trainers.py``)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from automodel_cli.checkpoint.imports import torch_file
from automodel_cli.checkpoint.imports.imported import (
    NOT_HELD,
    WHAT,
    Imported,
    Size,
    check_sizes,
    layers_of,
    refuse,
    size_of,
    weights_of,
)
from automodel_cli.errors import CheckpointError
from automodel_cli.json_files import FileModel, FiniteFloat, validated


class _ModelArgs(FileModel):
    """``model_args``; another key is another architecture."""

    n_layer: Size
    n_head: Size
    n_embd: Size
    block_size: Size
    vocab_size: Size
    bias: bool = True
    dropout: FiniteFloat = 0.0


def nanogpt_model(path: Path, activation: str | None) -> Imported:
    """The model of a ``ckpt.pt``; ``activation`` as for ``trainers.read``.

    Raises:
        CheckpointError: damaged, of another architecture, or names and sizes that do not agree.
    """
    stored = torch_file.read(path)
    if not isinstance(stored, dict) or "model_args" not in stored:
        raise CheckpointError(f"{path} has no model_args: it is not a checkpoint of nanoGPT", WHAT)
    where = path.with_name(f"{path.name}: model_args")
    told = stored["model_args"]
    args = validated(told, _ModelArgs, where, CheckpointError, hint=NOT_HELD)
    refuse(path, [f"model_args has {key}" for key in told if key not in _ModelArgs.model_fields])
    weights = {name.removeprefix("transformer."): tensor for name, tensor in weights_of(stored, path).items()}
    for name in [name for name in weights if name.endswith((".attn.bias", ".attn.masked_bias"))]:
        del weights[name]
    head = weights.pop("lm_head.weight", None)
    sizes = {
        "vocab_size": size_of(weights, "wte.weight", 0, path),
        "n_embd": size_of(weights, "wte.weight", 1, path),
        "block_size": size_of(weights, "wpe.weight", 0, path),
        "n_layer": layers_of(list(weights)),
    }
    check_sizes(where, told, sizes)
    if head is not None and not _same(head, weights["wte.weight"]):
        refuse(path, ["lm_head.weight is not wte.weight"])
    sizes["n_positions"] = sizes.pop("block_size")
    likely = "gelu" if "bias" in told else "gelu_tanh"
    told_only = {"n_head": args.n_head, "bias": args.bias, "dropout": args.dropout}
    arguments = {**sizes, **told_only, "activation": activation or likely}
    notes = () if activation else (_ACTIVATION_NOTES[likely],)
    return Imported("nanoGPT", "gpt2", arguments, weights, path, notes)


_ACTIVATION_NOTES = {
    "gelu": "activation gelu (erf), nanoGPT's since June 2023; of an older one say --activation gelu_tanh",
    "gelu_tanh": "activation gelu_tanh: model_args has no bias, as an early nanoGPT's; else say --activation gelu",
}


def _same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() or torch.equal(one, other)
