"""How large a model is and what it costs, from its ``model_config`` alone. Pure arithmetic, no torch.

L layers, D width, T sequence length, V logical vocabulary, P padded vocabulary, N parameters.
Where a function cannot know (a family that is not in the table), it returns None rather than a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VOCAB_MULTIPLE = 128  # weights are stored with the vocabulary rounded up to this


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
    """What cost formulas need of a model. Checkpoints keep these fields, so that new ones have a default.

    Attributes:
        stored_params: parameters in memory, padding included.
        matmul_params: parameters that each token is multiplied with; tables that are only looked up are left
            out, a tied head is in.
        layers, width: depth, and heads x head dim of the attention; None where not known.
        padded_vocab_size: logits of one token.
        hidden: width of the residual stream.
        heads: of queries.
        key_width: key-value heads x head dim.
        mlp_width: inner width of the MLP.
        table_params, head_params, block_params: of ``stored_params``, what is in the token embedding, in the head
            (0: it is tied to the embedding), and in the blocks.
        llama_like: blocks have RMS norms, separate projections and a gated MLP, as transformers writes them; false:
            layer norms, one projection to queries, keys and values, and an MLP with an activation.
        shares_inputs: matrices with one input share its copy in the compute dtype, and keys are repeated for all
            query heads before attention, as in our Llama.
    """

    stored_params: int
    matmul_params: int
    layers: int | None
    width: int | None
    padded_vocab_size: int
    hidden: int | None = None
    heads: int | None = None
    key_width: int | None = None
    mlp_width: int | None = None
    table_params: int = 0
    head_params: int = 0
    block_params: int = 0
    llama_like: bool = False
    shares_inputs: bool = False


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """The shape of a ``model_config``; families other than GPT-2 and Llama carry theirs under ``shape``."""
    if config.get("family") == "gpt2":
        counts = gpt2_parameters(config)
        total, width, layers = sum(counts.values()), config["n_embd"], config["n_layer"]
        last_norm = counts["norm"] // (2 * layers + 1)
        return Shape(
            stored_params=total + padding_parameters(config),
            matmul_params=total - counts["position"],
            layers=layers,
            width=width,
            padded_vocab_size=padded_vocab(config["vocab_size"]),
            hidden=width,
            heads=config["n_head"],
            key_width=width,
            mlp_width=4 * width,
            table_params=padded_vocab(config["vocab_size"]) * width,
            block_params=counts["matrix"] + counts["bias"] + counts["norm"] - last_norm,
        )
    if config.get("family") == "llama":
        return _llama_shape(config)
    return Shape(**config["shape"]) if "shape" in config else None


def _llama_shape(config: Mapping[str, Any]) -> Shape:
    counts = llama_parameters(config)
    total, table = sum(counts.values()), padded_vocab(config["vocab_size"]) * config["hidden_size"]
    heads = config["num_attention_heads"] * config["head_dim"]
    return Shape(
        stored_params=total + padding_parameters(config),
        matmul_params=total if config["tie_word_embeddings"] else total - counts["embedding"],
        layers=config["num_hidden_layers"],
        width=heads,
        padded_vocab_size=padded_vocab(config["vocab_size"]),
        hidden=config["hidden_size"],
        heads=config["num_attention_heads"],
        key_width=config["num_key_value_heads"] * config["head_dim"],
        mlp_width=config["intermediate_size"],
        table_params=table,
        head_params=0 if config["tie_word_embeddings"] else table,
        block_params=counts["matrix"] + counts["norm"] - config["hidden_size"],
        llama_like=True,
        shares_inputs=True,
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
