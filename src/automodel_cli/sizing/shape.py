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
class ParamCounts:
    """Parameters in three conventions, without the padding of the vocabulary."""

    total: int
    non_embedding: int  # without token and position embeddings, and without a head that is tied to them
    # Matrices of the blocks and the head, tied or not: what multiplies every token. Of the conventions in use the one
    # whose best ratio of tokens to parameters depends least on the budget (nanochat)
    scaling: int


@dataclass(frozen=True)
class Shape:
    """What cost formulas need of a model. Checkpoints keep these fields, so that new ones have a default."""

    stored_params: int  # parameters in memory, padding included
    # Parameters that each token is multiplied with; tables that are only looked up are left out, a tied head is in
    matmul_params: int
    layers: int | None  # layers, width: depth, and heads x head dim of the attention; None where not known
    width: int | None
    padded_vocab_size: int  # logits of one token
    hidden: int | None = None  # width of the residual stream
    heads: int | None = None  # of queries
    key_width: int | None = None  # key-value heads x head dim
    mlp_width: int | None = None  # inner width of the MLP
    # table_params, head_params, block_params: of ``stored_params``, what is in the token embedding, in the head (0: it
    # is tied to the embedding), and in the blocks
    table_params: int = 0
    head_params: int = 0
    block_params: int = 0
    # Blocks have RMS norms, separate projections and a gated MLP, as transformers writes them; false: layer norms, one
    # projection to queries, keys and values, and an MLP with an activation
    llama_like: bool = False
    # Matrices with one input share its copy in the compute dtype, and keys are repeated for all query heads before
    # attention, as in our Llama
    shares_inputs: bool = False
    windows: tuple[int, ...] = ()  # tokens that a token sees, in each layer where that is not all


def flops_per_token(shape: Shape | None, seq_len: int) -> int | None:
    """Training FLOPs of one token, forward and backward: 6 N + 12 L T D, with min(window, T) for T where there is one.

    The attention term counts the whole T x T square, as MFU figures usually do (PaLM, nanoGPT), although a
    causal kernel does half of it. None where the model's shape is not known.
    """
    if shape is None or shape.layers is None or shape.width is None:
        return None
    seen = (shape.layers - len(shape.windows)) * seq_len + sum(min(window, seq_len) for window in shape.windows)
    return 6 * shape.matmul_params + 12 * seen * shape.width
