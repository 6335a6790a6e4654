"""How much memory a training step takes at its highest, and what it is for. Pure arithmetic, no torch.

B rows, T tokens of a row, N = B x T tokens of a micro-batch, D width of the residual stream, Q = heads x head dim,
KV = key-value heads x head dim, F width of the MLP, L layers, P padded vocabulary, C tokens of a loss chunk,
c bytes of a number in the compute dtype (2 for bf16 and fp16, 4 for fp32).

A step is followed through the moments at which memory can be at its highest, and the largest of them is the answer:

    loss            all activations are kept, and the loss operator has its buffers of logits
    loss backward   the same, with the gradient of the logits
    last block      all activations, the head's gradient, and the workspace of the first block that goes backward
    first block     activations of one block, gradients of all others
    embedding       all gradients, and the embedding's beside the head's: a tied weight gets both, then their sum
    optimizer       weights, gradients and moments
    validation      weights, moments and the last gradients, a block going forward or the loss over one batch
    tasks           the same, with the sequences of in-context tasks or of texts that are continued

What each operation keeps was read off ``torch.autograd.graph.saved_tensors_hooks`` (eager) and off the graphs that
AOTAutograd's min-cut partitioner makes (compiled), for torch 2.13; tests compare with both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from automodel_cli.sizing.shape import Shape

FP32_BYTES = 4
_COMPUTE_BYTES = {"fp32": 4}  # everything else that matrix products are computed in is kept in two bytes
_MIB = 1 << 20
_MOMENTS = {"Adafactor": 0, "Adagrad": 1, "Muon": 1, "RMSprop": 1, "Rprop": 2}
DEFAULT_MOMENTS = 2
"""AdamW's."""

TASK_LOGITS = {"cpu": 1 << 24, "cuda": 1 << 27}
"""Logits of scored positions at once, in in-context tasks."""

_MUON_AT_ONCE, _MUON_WORKS_ON = 1 << 26, {2: 11, 4: 8}
"""Elements that ``train.muon.optimizer`` works on at a time, and bytes that it allocates for each (measured)."""

_CPU_LIBRARIES = 40 * _MIB

# cuBLAS has a workspace of 32 MiB (Hopper) in the thread of the forward pass and in that of the backward pass.
_CUDA_WORKSPACE = 64 * _MIB


@dataclass(frozen=True)
class StepPlan:
    """How a step is computed: everything but the model that its memory depends on."""

    seq_len: int
    local_batch_size: int  # rows of a micro-batch
    precision: str = "bf16"  # bf16, fp16 or fp32 products; weights, gradients and moments are fp32
    residual_bytes: int = FP32_BYTES  # of a number in the stream between blocks
    compiled: bool = False
    whole: bool = True  # what is compiled is the whole model with its loss; false: each block
    head_loss: str = "plain"  # plain or chunked; ``chunk_tokens`` of the latter
    chunk_tokens: int = 1024
    z_loss: bool = False  # whether the loss has one
    softcap: bool = False  # whether logits are capped
    recompute: str | None = None  # None, full or selective: activation checkpointing
    # ``linear`` where the kernel keeps one number a row of scores, ``matmul`` where it keeps the weights ``[B, H, T,
    # T]`` in the compute dtype, ``eager`` where softmax may keep them in fp32 as well
    attention: str = "linear"
    dropout: bool = False  # whether masks are kept
    moments: int = 2  # numbers that the optimizer keeps of each weight (AdamW 2)
    # muon_adamw: bytes of a number of the matrices that it makes orthogonal; of those it keeps one less. 0: another
    muon_bytes: int = 0
    ranks: int = 1  # all; muon_adamw divides what it keeps over them under ddp too
    # An update has several micro-batches: gradients are there during the forward pass
    accumulates: bool = False
    device: str = "cuda"  # ``cpu`` or ``cuda``
    strategy: str | None = None  # None for one process, fsdp2 or ddp for more
    shards: int = 1  # ranks that weights, gradients and moments are divided over (dp_shard x cp)
    tp: int = 1  # tp, cp: ranks that share matrices, and rows
    cp: int = 1
    offload: bool = False  # weights and moments are in CPU memory, not on the device
    bucket_view: bool = False  # with ddp, gradients are views of the buckets that are exchanged
    resident_bytes: int = 0  # on a CPU, what the process had before the model was built
    validates: bool = False  # whether batches of this size are scored between updates
    # task_tokens, task_row: tokens of a forward of in-context tasks or samples, and of its longest row; 0: none
    task_tokens: int = 0
    task_row: int = 0
    # On a CPU, checkpoints are written in the background, from a copy of weights, moments and their average
    staged: bool = False
    averages: bool = False  # an average of the weights is kept, in fp32

    @property
    def compute_bytes(self) -> int:
        """Bytes of a number in the compute dtype."""
        return _COMPUTE_BYTES.get(self.precision, 2)

    @property
    def half(self) -> bool:
        """Products are computed in another dtype than weights are stored in."""
        return self.compute_bytes < FP32_BYTES

    @property
    def tokens(self) -> int:
        """Tokens that this rank has between the matrices."""
        return -(-self.local_batch_size * self.seq_len // (self.cp * self.tp))


@dataclass(frozen=True)
class PeakMemory:
    """Bytes on one device at the ``moment`` of a step that needs most, by purpose."""

    moment: str
    weights: int = 0
    gradients: int = 0
    moments: int = 0
    average: int = 0
    activations: int = 0
    head: int = 0
    workspace: int = 0
    process: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Purpose -> bytes, without what there is none of."""
        names = ("weights", "gradients", "moments", "average", "activations", "head", "workspace", "process")
        return {name: size for name in names if (size := getattr(self, name))}


def moments_of(optimizer: str, arguments: Mapping[str, Any]) -> int:
    """Numbers that an optimizer, named by its class, keeps of each weight; two where it is not known."""
    if optimizer == "SGD":
        return int(bool(arguments.get("momentum")))
    return _MOMENTS.get(optimizer, DEFAULT_MOMENTS) + int(bool(arguments.get("amsgrad")))


def muon_bytes_of(orthogonalization: str) -> int:
    """``StepPlan.muon_bytes`` of matrices that are orthogonalized in bfloat16 or float32; ``none``: no Muon."""
    return {"none": 0, "float32": FP32_BYTES}.get(orthogonalization, 2)


def peak_memory(shape: Shape, plan: StepPlan) -> PeakMemory | None:
    """The moment of a step at which most memory is in use; None where too little is known of the model."""
    if None in (shape.layers, shape.width, shape.hidden, shape.heads, shape.key_width, shape.mlp_width):
        return None
    return max(_Step(shape, plan).moments(), key=lambda peak: peak.total)


class _Step:
    """The moments of one step. Every method is one term, in bytes on this device."""

    def __init__(self, shape: Shape, plan: StepPlan) -> None:
        self.shape, self.plan = shape, plan
        self.tokens, self.c = plan.tokens, plan.compute_bytes
        assert shape.layers is not None
        self.layers = shape.layers
        self.sharded = plan.strategy == "fsdp2"

    def moments(self) -> Iterable[PeakMemory]:
        """All that can be the highest."""
        kept, again = self.kept_by_blocks(), self.computed_again()
        block = kept // self.layers + again
        ends = self.kept_outside_blocks()
        head_gradient, table_gradient = self.head_gradient(), FP32_BYTES * self.shape.table_params
        all_gradients = self.gradients()
        block_gradients = all_gradients * self.shape.block_params // max(1, self.shape.stored_params)
        before = all_gradients if self.plan.accumulates else 0
        others = 0 if self.plan.accumulates else block_gradients * (self.layers - 1) // self.layers
        working = self.backward_of_a_block()
        yield self.at("loss", before, kept + ends + self.casts(), self.head_kept() + self.loss_forward())
        yield self.at("loss backward", before, kept + ends + self.casts_kept(), self.loss_backward())
        yield self.at("last block", before, kept + again + self.casts_kept(), head_gradient, working)
        yield self.at("first block", before + others, block + self.casts_kept() // self.layers, head_gradient, working)
        if self.plan.accumulates:
            yield self.at("embedding", before, 0, head_gradient + table_gradient)
        else:
            rest = all_gradients - self.held(FP32_BYTES * self.shape.table_params)
            rest -= self.held(FP32_BYTES * self.shape.head_params)
            yield self.at("embedding", rest, 0, head_gradient + table_gradient)
        yield self.at("optimizer", all_gradients, 0, 0, self.update_of_muon())
        if self.plan.validates:
            head = self.loss_forward() + (0 if self.plan.head_loss == "chunked" else self.head_kept())
            yield self.scoring("validation", all_gradients, self.tokens, self.plan.seq_len, head)
        if self.plan.task_tokens:
            tokens, row = self.plan.task_tokens, self.plan.task_row
            yield self.scoring("tasks", all_gradients, tokens, row, self.head_of_tasks(tokens), cached=True)

    def scoring(
        self, moment: str, gradients: int, tokens: int, row: int, head: int, *, cached: bool = False
    ) -> PeakMemory:
        """A forward without gradients, at its widest block or at the head; the last gradients are still there."""
        inner = (3 if self.shape.llama_like else 2) * (self.shape.mlp_width or 0)  # of gate, up, product; in, out
        width = max(inner, 4 * (self.shape.width or 0))
        scores = 0 if self.plan.attention == "linear" else 2 * (self.shape.heads or 0) * row
        block = self.c * tokens * max(width, 3 * (self.shape.width or 0) + scores)
        keys = 2 * self.c * self.layers * (self.shape.key_width or 0) * tokens if cached else 0
        kept = self.casts() + keys
        in_block = 3 * self.plan.residual_bytes * self.hidden * tokens  # before, after attention, normalized
        at_head = (self.plan.residual_bytes + self.c) * self.hidden * tokens
        if in_block + block > at_head + head:
            return self.at(moment, gradients, kept + in_block, 0, block)
        return self.at(moment, gradients, kept + at_head, head)

    def head_of_tasks(self, tokens: int) -> int:
        """Logits of scored positions in pieces (``evaluation.span_scores``): compute dtype, fp32, log-probabilities."""
        logits = min(TASK_LOGITS.get(self.plan.device, TASK_LOGITS["cuda"]), tokens * self.shape.padded_vocab_size)
        each = FP32_BYTES + FP32_BYTES + (self.c if self.plan.half else 0)
        return each * logits + (self.c * self.head_size if self.plan.half else 0)

    def at(self, moment: str, gradients: int, activations: int, head: int, workspace: int = 0) -> PeakMemory:
        """A moment, with what is there all the time."""
        stored = 0 if self.plan.offload else self.held(FP32_BYTES * self.shape.stored_params)
        moments = 0 if self.plan.offload else self.kept_by_optimizer()
        gathered = 0 if moment == "optimizer" else self.gathered()
        return PeakMemory(
            moment,
            weights=stored + gathered,
            gradients=gradients + self.buckets(),
            moments=moments,
            average=self.plan.averages * stored,
            activations=activations,
            head=head,
            workspace=workspace + (_CUDA_WORKSPACE if self.plan.device == "cuda" else 0),
            process=self.process(),
        )

    def process(self) -> int:
        """On a CPU: what the process had, libraries that work brings in, and a copy that is being written."""
        if self.plan.device != "cpu":
            return 0
        copy = (1 + self.plan.averages) * self.held(FP32_BYTES * self.shape.stored_params) + self.kept_by_optimizer()
        return self.plan.resident_bytes + _CPU_LIBRARIES + (copy if self.plan.staged else 0)

    # ---------------------------------------------------------------------------------- weights and gradients

    def held(self, size: int) -> int:
        """This rank's part of a state of the parameters: tp divides what is in blocks, fsdp2 everything."""
        blocks = size * self.shape.block_params // max(1, self.shape.stored_params)
        whole = size - blocks + blocks // self.plan.tp
        return -(-whole // self.plan.shards) if self.sharded else whole

    def kept_by_optimizer(self) -> int:
        """Its numbers of the weights, in fp32."""
        numbers = self.plan.moments * self.held(FP32_BYTES * self.shape.stored_params)
        if not self.plan.muon_bytes:
            return numbers
        numbers -= FP32_BYTES * self.matrices()
        return -(-numbers // self.plan.ranks) if self.plan.strategy == "ddp" else numbers

    def matrices(self) -> int:
        """Numbers in the matrices of the blocks, as this rank has weights."""
        return self.shape.block_params // (self.plan.tp * self.plan.shards if self.sharded else 1)

    def update_of_muon(self) -> int:
        """Updates before and after they are stacked; what is sent and received; what is worked on at a time."""
        if not self.plan.muon_bytes:
            return 0
        whole, ranks = self.plan.muon_bytes * self.matrices(), self.plan.ranks
        own = -(-whole // ranks) if self.plan.strategy == "ddp" else whole
        travels = 0 if ranks == 1 else own + whole  # under ddp each rank receives all that was updated
        at_once = _MUON_WORKS_ON[self.plan.muon_bytes] * min(_MUON_AT_ONCE, self.matrices())
        return max(2 * own, own + at_once) + travels

    def gradients(self) -> int:
        """fp32, as weights; FSDP2 divides them when they are exchanged, after the last micro-batch."""
        size = FP32_BYTES * self.shape.stored_params
        if self.sharded and self.plan.accumulates:
            return self.held(size) * self.plan.shards
        return self.held(size)

    def buckets(self) -> int:
        """DDP's buckets: a second copy of the gradients, where those are not views of them."""
        if self.plan.strategy != "ddp" or self.plan.bucket_view:
            return 0
        return FP32_BYTES * self.shape.stored_params

    def gathered(self) -> int:
        """FSDP2: tables and head whole in fp32; of blocks three in the compute dtype, and one's gradient in fp32."""
        if not self.sharded:
            return 0
        block = self.shape.block_params // self.layers // self.plan.tp
        ends = self.shape.stored_params - self.shape.block_params
        return FP32_BYTES * ends + 3 * self.c * block + 2 * FP32_BYTES * block

    def casts(self) -> int:
        """Autocast's copies of the blocks' matrices in the compute dtype, all of them until the forward pass ends."""
        if not self.plan.half or self.sharded or (self.plan.compiled and self.plan.recompute):
            return 0
        return self.c * self.shape.block_params // self.plan.tp

    def casts_kept(self) -> int:
        """Those of them that the backward pass uses: recomputation makes its own."""
        return 0 if self.plan.recompute else self.casts()

    # -------------------------------------------------------------------------------------------- activations

    def kept_by_blocks(self) -> int:
        """What all blocks keep between forward and backward."""
        if self.plan.recompute == "full":
            per_token: float = self.plan.residual_bytes * self.hidden  # the input of each block
        elif self.plan.recompute == "selective":
            per_token = self.plan.residual_bytes * self.hidden + self.dear_outputs()
        else:
            per_token = self.everything()
        return round(self.layers * self.tokens * per_token)

    def computed_again(self) -> int:
        """What recomputation adds in the backward pass of a block: all that it would have kept and has not."""
        if self.plan.recompute is None:
            return 0
        has = self.outputs_in_use() if self.plan.recompute == "selective" else 0
        return round(self.tokens * (self.everything() - has))

    def everything(self) -> float:
        """Bytes that a block keeps of a token, without recomputation."""
        inner, queries = self.shape.mlp_width or 0, self.shape.width or 0
        keys = queries if self.shape.shares_inputs else self.shape.key_width or 0
        attention = self.c * (queries + 2 * keys) + self.c * queries  # q, k, v and what attention gives
        if not self.shape.llama_like:
            # their inputs (or, compiled, x normalised), mean, std
            norms = 2 * self.norm_bytes * self.hidden + 4 * FP32_BYTES
            inputs = 2 * self.c * self.hidden * self.plan.tp  # of the first matrices of attention and MLP
            mlp = 2 * self.c * inner  # before and after the activation
        elif self.plan.compiled:
            norms = 2 * self.norm_bytes * self.hidden + 2 * FP32_BYTES
            inputs = 2 * self.c * self.hidden * self.plan.tp
            mlp = 3 * self.c * inner  # gate, up and their product
        else:
            norms = 4 * FP32_BYTES * self.hidden + 2 * FP32_BYTES  # input, and normalised before its weight
            # q, k, v; gate, up: autocast makes a copy for each, in fp32 (and in our Llama) they share one
            copies = 5 if self.plan.half and not self.shape.shares_inputs else 2
            inputs = copies * self.c * self.hidden * self.plan.tp
            mlp = 4 * self.c * inner  # gate, silu of it, up, product
        return norms + inputs + attention + self.scores() + mlp + self.dropped()

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.shape.hidden or 0

    @property
    def norm_bytes(self) -> int:
        """Of a number that a norm keeps: an eager norm reads its input in fp32, whatever the stream is kept in."""
        return self.plan.residual_bytes if self.plan.compiled else FP32_BYTES

    def scores(self) -> int:
        """What attention keeps of a token's scores, all heads: flash one logsumexp, plain softmax a row of T."""
        heads, row = self.shape.heads or 0, self.plan.seq_len
        kept = {
            "linear": FP32_BYTES * heads,
            "matmul": self.c * heads * row,
            # Autocast computes softmax in fp32 on CUDA, and in the compute dtype on a CPU.
            "eager": (FP32_BYTES + self.c if self.plan.half and self.plan.device == "cuda" else self.c) * heads * row,
        }
        return kept[self.plan.attention]

    def dropped(self) -> int:
        """Masks of the two residual dropouts: a byte a number on CUDA, the compute dtype on a CPU."""
        each = 1 if self.plan.device == "cuda" else self.c
        return 2 * each * self.hidden if self.plan.dropout else 0

    def dear_outputs(self) -> int:
        """What selective checkpointing keeps of a token: every second matrix product, and attention's output."""
        if self.shape.llama_like:  # also q before its rotation, and what the MLP gives
            return self.outputs_in_use() + self.c * ((self.shape.width or 0) + self.hidden)
        return self.outputs_in_use()

    def outputs_in_use(self) -> int:
        """Those of them that the block keeps without recomputation, too."""
        queries, keys, inner = self.shape.width or 0, self.shape.key_width or 0, self.shape.mlp_width or 0
        attention = self.c * queries + FP32_BYTES * (self.shape.heads or 0)
        if self.plan.attention != "linear":
            attention = 0  # batched products are not among them
        products = keys + inner if self.shape.llama_like else queries + 2 * keys + inner  # v, gate; c_attn, c_fc
        return attention + self.c * products

    def backward_of_a_block(self) -> int:
        """Gradients on their way through a block: of the residual stream, and of the widest tensor before and after."""
        inner = self.shape.mlp_width or 0
        return self.tokens * (3 * self.plan.residual_bytes * self.hidden + self.c * inner)

    # ---------------------------------------------------------------------------------------- head and loss

    @property
    def compiled_ends(self) -> bool:
        """Whether last norm, head and loss are compiled."""
        return self.plan.compiled and self.plan.whole

    def kept_outside_blocks(self) -> int:
        """Input of the last norm (RMS: also normalised), and of the head."""
        if self.compiled_ends:
            return self.tokens * self.hidden * (self.plan.residual_bytes + self.c)
        norm = (2 if self.shape.llama_like else 1) * FP32_BYTES
        return self.tokens * self.hidden * (norm + self.c)

    @property
    def logits(self) -> int:
        """Numbers of the logits of a micro-batch."""
        return self.tokens * self.shape.padded_vocab_size

    @property
    def head_size(self) -> int:
        """Numbers in the head's weight."""
        return self.shape.head_params or self.shape.table_params

    def head_kept(self) -> int:
        """Of the plain loss, autocast's copy of the head's weight; chunked, both gradients."""
        if self.plan.head_loss == "chunked":
            return FP32_BYTES * self.head_size + self.c * self.tokens * self.hidden
        return self.c * self.head_size if self.plan.half else 0

    def loss_forward(self) -> int:
        """Buffers of the loss while it is computed."""
        if self.plan.head_loss == "chunked":
            rows = min(self.plan.chunk_tokens, self.tokens)
            buffer = self.c * rows * self.shape.padded_vocab_size
            head = self.c * self.head_size if self.plan.half else 0
            if self.plan.device == "cuda":  # one kernel does it in place, and products are added in fp32 at once
                return buffer + head + (0 if self.plan.half else self.c * self.head_size)
            if self.plan.half and not self.compiled_ends:
                buffer += FP32_BYTES * rows * self.shape.padded_vocab_size  # scores in fp32
            if self.plan.softcap and not self.compiled_ends:
                buffer += FP32_BYTES * rows * self.shape.padded_vocab_size  # slopes
            return buffer + head + self.c * self.head_size  # product of a chunk
        if self.compiled_ends:
            return self.c * self.logits
        # Logits in the compute dtype (a name in the loss function holds them), in fp32, and log-probabilities.
        return (self.c + (FP32_BYTES if self.plan.half else 0) + FP32_BYTES) * self.logits

    def loss_backward(self) -> int:
        """Buffers of the loss, and what the head keeps, when its gradient is computed."""
        if self.plan.head_loss == "chunked":
            return self.head_kept() + FP32_BYTES * self.head_size + self.c * self.tokens * self.hidden
        if self.compiled_ends:
            return self.head_kept() + self.c * self.logits  # the gradient takes the place of the logits
        # Log-probabilities, their gradient, and the gradient of the logits; all fp32. A z-loss has two of them too.
        return self.head_kept() + (5 if self.plan.z_loss else 3) * FP32_BYTES * self.logits

    def head_gradient(self) -> int:
        """fp32 ``[P, D]``: waits for the embedding's where the weight is tied."""
        return FP32_BYTES * self.head_size
