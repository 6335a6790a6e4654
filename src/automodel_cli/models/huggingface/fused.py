"""Which weights of transformers' models are several linear maps in one, or lie as ``[in, out]``.

    transformers.pytorch_utils.Conv1D     ``[in, out]`` (GPT-2, GPT-BigCode and others of their time)
    c_attn (GPT-2)                        queries, keys and values, a third each
    qkv_proj (Phi-3 and its kin)          queries, then keys and values of fewer heads
    gate_up_proj                          the gate and what it lets through, a half each

GPT-NeoX and Falcon interleave queries, keys and values head by head; there they count as one map.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from automodel_cli.models.interface import MatrixLayout


def matrix_layouts(model: nn.Module, config: Any) -> dict[str, MatrixLayout]:
    """By the names of ``model.named_parameters()``; ``config`` is the text model's."""
    layouts = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(module, Conv1D | nn.Linear) or weight is None:
            continue
        transposed = isinstance(module, Conv1D)
        sizes = _sizes(name.rpartition(".")[2], weight.shape[1 if transposed else 0], config)
        if transposed or sizes is not None:
            layouts[f"{name}.weight"] = MatrixLayout(sizes, transposed)
    return layouts


def _sizes(leaf: str, outputs: int, config: Any) -> tuple[int, ...] | None:
    if leaf == "qkv_proj":
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        keys = outputs * kv_heads // (heads + 2 * kv_heads)
        return (outputs - 2 * keys, keys, keys)
    parts = {"c_attn": 3, "gate_up_proj": 2}.get(leaf)
    return None if parts is None or outputs % parts else (outputs // parts,) * parts
