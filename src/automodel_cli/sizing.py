"""How large a model is and what it costs, from its ``model_config`` alone. Pure arithmetic, no torch.

L layers, D width, T sequence length, V logical vocabulary, P padded vocabulary, N parameters.
Where a function cannot know (a family that is not in the table), it returns None rather than a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VOCAB_MULTIPLE = 128  # weights are stored with the vocabulary rounded up to this
FP32_BYTES = 4
_COMPUTE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def padded_vocab(vocab_size: int, multiple: int = VOCAB_MULTIPLE) -> int:
    """``vocab_size`` rounded up: matrix units want 50,304 = 393 x 128, not 50,257."""
    return -(-vocab_size // multiple) * multiple


def gpt2_parameters(config: Mapping[str, Any]) -> dict[str, int]:
    """Logical parameters of a GPT-2 by role; they sum to 124,439,808 for GPT-2 small."""
    width, layers, biased = config["n_embd"], config["n_layer"], config.get("bias", True)
    norms = 2 * layers + 1
    return {
        "embedding": config["vocab_size"] * width,
        "position": config["n_positions"] * width,
        "matrix": layers * 12 * width * width,  # 3 + 1 for attention, 4 + 4 for the MLP
        "norm": norms * width * (2 if biased else 1),
        "bias": layers * 9 * width if biased else 0,  # 3 + 1 + 4 + 1
    }


def llama_parameters(config: Mapping[str, Any]) -> dict[str, int]:
    """Logical parameters of a Llama by role; they sum to 6,738,415,616 for Llama 2 7B."""
    width, layers, table = config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]
    heads = 2 * config["num_attention_heads"] + 2 * config["num_key_value_heads"]  # of q and o, of k and v
    return {
        "embedding": table * width,
        "head": 0 if config["tie_word_embeddings"] else table * width,
        "matrix": layers * width * (heads * config["head_dim"] + 3 * config["intermediate_size"]),
        "norm": (2 * layers + 1) * width,
    }


def padding_parameters(config: Mapping[str, Any]) -> int:
    """Weights stored in padding rows: in memory and in checkpoints, but in no count."""
    rows = padded_vocab(config["vocab_size"]) - config["vocab_size"]
    if config.get("family") == "llama":
        return rows * config["hidden_size"] * (1 if config["tie_word_embeddings"] else 2)
    return rows * config["n_embd"]


@dataclass(frozen=True)
class Shape:
    """What cost formulas need of a model.

    Attributes:
        stored_params: parameters in memory, padding included.
        matmul_params: parameters that each token is multiplied with; tables that are only looked up are left
            out, a tied head is in.
        layers, width: depth, and heads x head dim of the attention; None where not known.
        padded_vocab_size: logits of one token.
        kept: elements in the compute dtype that a layer keeps of one token for its backward pass; None: not known,
            taken for GPT-2's.
    """

    stored_params: int
    matmul_params: int
    layers: int | None
    width: int | None
    padded_vocab_size: int
    kept: int | None = None


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """The shape of a ``model_config``; families other than GPT-2 and Llama carry theirs under ``shape``."""
    if config.get("family") == "gpt2":
        counts = gpt2_parameters(config)
        total = sum(counts.values())
        return Shape(
            stored_params=total + padding_parameters(config),
            matmul_params=total - counts["position"],
            layers=config["n_layer"],
            width=config["n_embd"],
            padded_vocab_size=padded_vocab(config["vocab_size"]),
        )
    if config.get("family") == "llama":
        return _llama_shape(config)
    return Shape(**config["shape"]) if "shape" in config else None


def _llama_shape(config: Mapping[str, Any]) -> Shape:
    counts = llama_parameters(config)
    total = sum(counts.values())
    heads = config["num_attention_heads"] * config["head_dim"]
    return Shape(
        stored_params=total + padding_parameters(config),
        matmul_params=total if config["tie_word_embeddings"] else total - counts["embedding"],
        layers=config["num_hidden_layers"],
        width=heads,
        padded_vocab_size=padded_vocab(config["vocab_size"]),
        # norms 2 D; queries, keys and values (repeated for their groups), attention 4 H K; gate, its silu, up, product
        kept=2 * config["hidden_size"] + 4 * heads + 4 * config["intermediate_size"],
    )


def flops_per_token(config: Mapping[str, Any], seq_len: int) -> int | None:
    """Training FLOPs of one token, forward and backward: 6 N + 12 L T D.

    The attention term counts the whole T x T square, as MFU figures usually do (PaLM, nanoGPT), although a
    causal kernel does half of it. None where the family's shape is not known.
    """
    shape = shape_of(config)
    if shape is None or shape.layers is None or shape.width is None:
        return None
    return 6 * shape.matmul_params + 12 * shape.layers * seq_len * shape.width


def memory_estimate(
    config: Mapping[str, Any],
    *,
    seq_len: int,
    local_batch_size: int,
    precision: str = "bf16",
    chunked_loss: bool = False,
) -> dict[str, int] | None:
    """Bytes of a training step on one device, by purpose; AdamW, fp32 master weights, no checkpointing.

    An estimate of what autograd keeps without ``torch.compile``, which saves somewhat more than the fused
    graph.
    """
    shape = shape_of(config)
    if shape is None or shape.layers is None or shape.width is None:
        return None
    tokens = local_batch_size * seq_len
    return {
        "weights": FP32_BYTES * shape.stored_params,
        "gradients": FP32_BYTES * shape.stored_params,
        "moments": 2 * FP32_BYTES * shape.stored_params,
        "activations": tokens * shape.layers * activation_bytes(shape.width, precision, shape.kept),
        "logits": _logits_bytes(tokens, shape, precision, chunked_loss),
    }


def activation_bytes(width: int, precision: str, kept: int | None = None) -> int:
    """Bytes that one layer keeps of one token for its backward pass.

    In the compute dtype ``kept`` elements, by default GPT-2's: norm 1, queries, keys and values 3, attention 2, norm 1,
    MLP 4 + 4 widths; in fp32 the two inputs of the norms. 38 x width in bf16.
    """
    kept = 15 * width if kept is None else kept
    return kept * _COMPUTE_BYTES[precision] + 2 * width * FP32_BYTES


def _logits_bytes(tokens: int, shape: Shape, precision: str, chunked: bool) -> int:
    compute = _COMPUTE_BYTES[precision]
    if chunked:
        tokens = min(tokens, 1024)
        return tokens * shape.padded_vocab_size * (2 * compute + FP32_BYTES)
    return tokens * shape.padded_vocab_size * (compute + 2 * FP32_BYTES)
