"""nanoGPT, litgpt and lingua, restated in a few lines each: tiny models, their logits, and the files they save.

Independent of the package on purpose: one function a trainer, weights under the trainer's own names.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml

VOCAB, WIDTH, HEADS, LAYERS, LENGTH = 61, 24, 4, 2, 16


def drawn(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> OrderedDict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = OrderedDict((name, torch.randn(shape, generator=generator) / 5) for name, shape in shapes.items())
    state._metadata = OrderedDict({"": {"version": 1}})  # as nn.Module.state_dict() has
    return state


def attention(q, k, v):
    """[B, H, T, K] each; causal."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(future, -math.inf).softmax(-1) @ v
    return mixed.transpose(1, 2).flatten(2)


def heads_of(x, width):
    return x.unflatten(-1, (-1, width)).transpose(1, 2)


# --------------------------------------------------------------------------------------------- nanoGPT


def nanogpt_state(*, bias: bool) -> OrderedDict[str, torch.Tensor]:
    shapes = {"transformer.wte.weight": (VOCAB, WIDTH), "transformer.wpe.weight": (LENGTH, WIDTH)}
    for layer in range(LAYERS):
        block = f"transformer.h.{layer}."
        for name, shape in {
            "ln_1": (WIDTH,), "attn.c_attn": (3 * WIDTH, WIDTH), "attn.c_proj": (WIDTH, WIDTH),
            "ln_2": (WIDTH,), "mlp.c_fc": (4 * WIDTH, WIDTH), "mlp.c_proj": (WIDTH, 4 * WIDTH),
        }.items():  # fmt: skip
            shapes[f"{block}{name}.weight"] = shape
            if bias:
                shapes[f"{block}{name}.bias"] = shape[:1]
    shapes["transformer.ln_f.weight"] = (WIDTH,)
    if bias:
        shapes["transformer.ln_f.bias"] = (WIDTH,)
    state = drawn(shapes)
    state["lm_head.weight"] = state["transformer.wte.weight"]
    return state


def nanogpt_logits(state, ids, *, approximate="none"):
    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state.get(f"{name}.bias"), 1e-5)

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    x = state["transformer.wte.weight"][ids] + state["transformer.wpe.weight"][: ids.shape[1]]
    for layer in range(LAYERS):
        block = f"transformer.h.{layer}"
        joined = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn").split(WIDTH, -1)
        mixed = attention(*(heads_of(one, WIDTH // HEADS) for one in joined))
        x = x + linear(mixed, f"{block}.attn.c_proj")
        inner = F.gelu(linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc"), approximate=approximate)
        x = x + linear(inner, f"{block}.mlp.c_proj")
    return F.linear(norm(x, "transformer.ln_f"), state["lm_head.weight"])


def save_nanogpt(folder: Path, state, *, bias: bool, **model_args) -> Path:
    """``ckpt.pt`` of train.py, from a compiled model, with a mask of slow attention and optimizer state."""
    folder.mkdir(parents=True, exist_ok=True)
    model = OrderedDict((f"_orig_mod.{name}", tensor) for name, tensor in state.items())
    model["_orig_mod.transformer.h.0.attn.bias"] = torch.ones(LENGTH, LENGTH).tril().view(1, 1, LENGTH, LENGTH)
    args = {"n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH, "block_size": LENGTH, "bias": bias}
    torch.save(
        {
            "model": model,
            "optimizer": {
                "state": {0: {"step": torch.tensor(3.0)}},
                "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95)}],
            },
            "model_args": {**args, "vocab_size": VOCAB, "dropout": 0.0, **model_args},
            "iter_num": 3,
            "best_val_loss": torch.tensor(2.5),
            "config": {"dataset": "openwebtext", "device": "cuda", "compile": True},
        },
        folder / "ckpt.pt",
    )
    return folder / "ckpt.pt"


# ---------------------------------------------------------------------------------------------- Llama

GROUPS, HEAD, INNER = 2, 6, 40


def rotated(x, theta, *, neighbours):
    """[B, H, T, K]: pairs (2i, 2i + 1), or (i, i + K / 2)."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] * theta ** (-torch.arange(half) / half)
    cos, sin = angles.cos(), angles.sin()
    a, b = (x[..., 0::2], x[..., 1::2]) if neighbours else (x[..., :half], x[..., half:])
    pair = (a * cos - b * sin, a * sin + b * cos)
    return torch.stack(pair, -1).flatten(-2) if neighbours else torch.cat(pair, -1)


def llama_logits(weight, ids, *, theta, eps, neighbours, qkv):
    """``weight(name, layer)``; ``qkv(x, layer)`` gives [B, T, ...] of queries, keys, values."""

    def norm(x, name, layer=None):
        return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight(name, layer)

    x = weight("embedding")[ids]
    for layer in range(LAYERS):
        q, k, v = (heads_of(one, HEAD) for one in qkv(norm(x, "norm_1", layer), layer))
        q, k = rotated(q, theta, neighbours=neighbours), rotated(k, theta, neighbours=neighbours)
        k, v = (one.repeat_interleave(HEADS // GROUPS, 1) for one in (k, v))
        x = x + attention(q, k, v) @ weight("out", layer).T
        inner = norm(x, "norm_2", layer)
        inner = F.silu(inner @ weight("gate", layer).T) * (inner @ weight("up", layer).T)
        x = x + inner @ weight("down", layer).T
    return norm(x, "norm") @ weight("head").T


LITGPT = {
    "embedding": ("transformer.wte.weight", (VOCAB, WIDTH)),
    "norm_1": ("transformer.h.{}.norm_1.weight", (WIDTH,)),
    "qkv": ("transformer.h.{}.attn.qkv.weight", ((HEADS + 2 * GROUPS) * HEAD, WIDTH)),
    "out": ("transformer.h.{}.attn.proj.weight", (WIDTH, HEADS * HEAD)),
    "norm_2": ("transformer.h.{}.norm_2.weight", (WIDTH,)),
    "gate": ("transformer.h.{}.mlp.fc_1.weight", (INNER, WIDTH)),
    "up": ("transformer.h.{}.mlp.fc_2.weight", (INNER, WIDTH)),
    "down": ("transformer.h.{}.mlp.proj.weight", (WIDTH, INNER)),
    "norm": ("transformer.ln_f.weight", (WIDTH,)),
    "head": ("lm_head.weight", (VOCAB, WIDTH)),
}
LINGUA = {
    "embedding": ("tok_embeddings.weight", (VOCAB, WIDTH)),
    "norm_1": ("layers.{}.attention_norm.weight", (WIDTH,)),
    "q": ("layers.{}.attention.wq.weight", (HEADS * HEAD, WIDTH)),
    "k": ("layers.{}.attention.wk.weight", (GROUPS * HEAD, WIDTH)),
    "v": ("layers.{}.attention.wv.weight", (GROUPS * HEAD, WIDTH)),
    "out": ("layers.{}.attention.wo.weight", (WIDTH, HEADS * HEAD)),
    "norm_2": ("layers.{}.ffn_norm.weight", (WIDTH,)),
    "gate": ("layers.{}.feed_forward.w1.weight", (INNER, WIDTH)),
    "up": ("layers.{}.feed_forward.w3.weight", (INNER, WIDTH)),
    "down": ("layers.{}.feed_forward.w2.weight", (WIDTH, INNER)),
    "norm": ("norm.weight", (WIDTH,)),
    "head": ("output.weight", (VOCAB, WIDTH)),
}


def llama_state(table):
    return drawn({name.format(layer): shape for name, shape in table.values() for layer in range(LAYERS)})


def litgpt_logits(state, ids, *, theta=5000, eps=1e-5, by_group=False):
    def weight(name, layer=None):
        return state[LITGPT[name][0].format(layer)]

    def qkv(x, layer):
        joined = x @ weight("qkv", layer).T
        if not by_group:
            return joined.split((HEADS * HEAD, GROUPS * HEAD, GROUPS * HEAD), -1)
        parts = joined.unflatten(-1, (GROUPS, HEADS // GROUPS + 2, HEAD))
        return tuple(part.flatten(2) for part in parts.split((HEADS // GROUPS, 1, 1), -2))

    return llama_logits(weight, ids, theta=theta, eps=eps, neighbours=False, qkv=qkv)


def lingua_logits(state, ids, *, theta=5000.0, eps=1e-5):
    def weight(name, layer=None):
        return state[LINGUA[name][0].format(layer)]

    def qkv(x, layer):
        return (x @ weight(name, layer).T for name in "qkv")

    return llama_logits(weight, ids, theta=theta, eps=eps, neighbours=True, qkv=qkv)


def save_litgpt(folder: Path, state, *, alone: bool = False, **config) -> Path:
    """``model_config.yaml`` as ``yaml.dump(asdict(config))`` writes it, for a Llama."""
    folder.mkdir(parents=True, exist_ok=True)
    body = {
        "name": "tiny-llama", "hf_config": {"org": "me", "name": "tiny"}, "block_size": LENGTH, "n_layer": LAYERS,
        "n_embd": WIDTH, "n_head": HEADS, "n_query_groups": GROUPS, "head_size": HEAD, "vocab_size": 60,
        "padded_vocab_size": VOCAB, "padding_multiple": 64, "intermediate_size": INNER, "norm_class_name": "RMSNorm",
        "mlp_class_name": "LLaMAMLP", "norm_eps": 1e-5, "parallel_residual": False, "rotary_percentage": 1.0,
        "rope_base": 5000, "rope_condense_ratio": 1, "bias": False, "attn_bias": False, "lm_head_bias": False,
        "norm_qk": False, "n_expert": 0, "sliding_window_size": None, "gelu_approximate": "none", "norm_1": True,
        "norm_2": True, "rope_adjustments": None, **config,
    }  # fmt: skip
    (folder / "model_config.yaml").write_text(yaml.dump(body))
    torch.save(state if alone else {"model": state, "iter_num": 3, "step_count": 3}, folder / "lit_model.pth")
    return folder


def save_lingua(folder: Path, state, **model) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    body = {
        "dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "head_dim": None, "n_kv_heads": GROUPS, "norm_eps": 1e-5,
        "rope_theta": 5000.0, "max_seqlen": LENGTH, "vocab_size": VOCAB, "weight_tying": False, "sliding_window": None,
        "ffn_dim_multiplier": None, "multiple_of": 8, "init_std_factor": "disabled", "seed": 1, **model,
    }  # fmt: skip
    (folder / "params.json").write_text(json.dumps({"name": "run", "steps": 3, "model": body}))
    torch.save({"model": state, "optim": {"state": {}}}, folder / "consolidated.pth")
    return folder
