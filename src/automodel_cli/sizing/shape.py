"""How large a model is and what it costs. Pure arithmetic, no torch: a family's configuration knows its ``Shape``.

L layers, D width, T sequence length, N parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

VOCAB_MULTIPLE = 128  # weights are stored with the vocabulary rounded up to this


def padded_vocab(vocab_size: int, multiple: int = VOCAB_MULTIPLE) -> int:
    """``vocab_size`` rounded up: matrix units want 50,304 = 393 x 128, not 50,257."""
    return -(-vocab_size // multiple) * multiple


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


def flops_per_token(shape: Shape | None, seq_len: int) -> int | None:
    """Training FLOPs of one token, forward and backward: 6 N + 12 L T D.

    The attention term counts the whole T x T square, as MFU figures usually do (PaLM, nanoGPT), although a
    causal kernel does half of it. None where the model's shape is not known.
    """
    if shape is None or shape.layers is None or shape.width is None:
        return None
    return 6 * shape.matmul_params + 12 * shape.layers * seq_len * shape.width
