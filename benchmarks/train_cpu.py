"""Training tokens per second on a CPU against an eager fp32 loop in nanoGPT's style.

4 layers x 256 wide, T 256, B 8, V 50,304. Each variant is a process of its own (thread pools, memory settings and
compiled code are global to one); the parent lets them run in turn, so that a busy machine hurts all alike, and
prints for each the median CPU and wall time of a step and the ratio to the reference in the same round.
``--loss-steps 200`` then trains the chosen variant and the reference on the same batches from the same weights
and compares the mean loss.

    python benchmarks/train_cpu.py [--rounds 7] [--steps 3] [--threads 1] [--all] [--loss-steps 200]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from automodel_cli import device as this_machine
from automodel_cli.batch import Batch
from automodel_cli.models.gpt2 import GPT2, build_gpt2_model
from automodel_cli.train.losses import ChunkedCrossEntropy, MaskedCrossEntropy, pick_loss
from automodel_cli.train.optimizers import build_adamw
from automodel_cli.train.param_groups import build_param_groups
from automodel_cli.train.step import train_step

VOCAB, TOKENS, ROWS, WIDTH, LAYERS, HEADS = 50304, 256, 8, 256, 4, 4
LR, WEIGHT_DECAY, CLIP = 1e-3, 0.1, 1.0
STREAM_TOKENS = 1 << 20

# name -> (compute dtype, chunked loss, compiled); "chosen" is what the toolkit picks by itself.
VARIANTS: dict[str, tuple[str, bool, bool]] = {
    "fp32": ("fp32", False, False),
    "fp32 chunked": ("fp32", True, False),
    "fp32 compiled": ("fp32", False, True),
    "bf16": ("bf16", False, False),
    "bf16 chunked": ("bf16", True, False),
    "bf16 compiled": ("bf16", False, True),
    "bf16 chunked compiled": ("bf16", True, True),
}

Step = Callable[[Tensor, Tensor], float]


# ------------------------------------------------------------------------------------------------ data and model


def token_stream() -> np.ndarray:
    """Learnable tokens: half follow their predecessor by a fixed rule, half are drawn by Zipf's law."""
    rng = np.random.default_rng(0)
    drawn = np.minimum(rng.zipf(1.2, STREAM_TOKENS), VOCAB - 1).astype(np.int64)
    follows = rng.random(STREAM_TOKENS) < 0.5
    stream = drawn.copy()
    for index in range(1, STREAM_TOKENS):
        if follows[index]:
            stream[index] = (stream[index - 1] * 31 + 7) % VOCAB
    return stream.astype(np.uint16)


def get_batch(stream: np.ndarray, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random windows, as nanoGPT draws them."""
    starts = torch.randint(len(stream) - TOKENS - 1, (ROWS,), generator=generator).tolist()
    x = torch.stack([torch.from_numpy(stream[s : s + TOKENS].astype(np.int64)) for s in starts])
    y = torch.stack([torch.from_numpy(stream[s + 1 : s + 1 + TOKENS].astype(np.int64)) for s in starts])
    return x, y


def our_model() -> GPT2:
    """The benchmark's GPT in the toolkit: no biases and erf GELU, as nanoGPT's train.py has it."""
    model = build_gpt2_model(
        vocab_size=VOCAB,
        n_positions=TOKENS,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        bias=False,
        activation="gelu",
    )
    model.init_weights(1337)
    return model


class ReferenceBlock(nn.Module):
    """One pre-norm block, everything eager."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(WIDTH, bias=False)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.proj = nn.Linear(WIDTH, WIDTH, bias=False)
        self.ln_2 = nn.LayerNorm(WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.gelu = nn.GELU()
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        q, k, v = self.qkv(self.ln_1(x)).split(WIDTH, dim=2)
        q, k, v = (t.view(rows, tokens, HEADS, width // HEADS).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).contiguous().view(rows, tokens, width))
        return x + self.down(self.gelu(self.up(self.ln_2(x))))


class Reference(nn.Module):
    """A GPT in nanoGPT's style; returns logits and the mean loss."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(VOCAB, WIDTH)
        self.wpe = nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.ModuleList(ReferenceBlock() for _ in range(LAYERS))
        self.ln_f = nn.LayerNorm(WIDTH, bias=False)
        self.lm_head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.wte.weight = self.lm_head.weight

    def forward(self, idx: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))
        return logits, F.cross_entropy(logits.view(-1, VOCAB), targets.view(-1), ignore_index=-1)

    def copy_weights(self, ours: GPT2) -> None:
        """Start from the same numbers."""
        theirs = {"attn.c_attn": "qkv", "attn.c_proj": "proj", "mlp.c_fc": "up", "mlp.c_proj": "down"}
        for name, parameter in ours.named_parameters():
            for long, short in theirs.items():
                name = name.replace(long, short)
            target = self.get_parameter(name.replace("h.", "blocks.", 1) if name.startswith("h.") else name)
            target.data.copy_(parameter.data)


def reference_step() -> Step:
    """nanoGPT's loop on a CPU: fp32, eager, plain AdamW, mean loss, clip 1.0."""
    model = Reference()
    model.copy_weights(our_model())
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=LR,
        betas=(0.9, 0.95),
    )

    def step(x: Tensor, y: Tensor) -> float:
        _, loss = model(x, y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def our_step(precision: str, chunked: bool, compiled: bool) -> Step:
    """The toolkit's training step with these choices."""
    this_machine.settle_process(torch.device("cpu"))
    model = our_model()
    # nanoGPT decays every matrix, embeddings too.
    groups = build_param_groups(model, weight_decay=WEIGHT_DECAY, decay_embeddings=True)
    optimizer = build_adamw(groups, lr=LR, betas=(0.9, 0.95), device="cpu")
    loss = ChunkedCrossEntropy() if chunked else MaskedCrossEntropy()
    if compiled:
        model.compile(dynamic=False)

    def step(x: Tensor, y: Tensor) -> float:
        dtype = torch.bfloat16 if precision == "bf16" else None
        return train_step(
            model, loss, optimizer, [Batch(x, y)], max_norm=CLIP, autocast_dtype=dtype
        ).loss.item()

    return step


def chosen() -> tuple[str, bool, bool]:
    """What the toolkit picks on this machine for a run of 200 updates."""
    cpu = torch.device("cpu")
    tokens = ROWS * TOKENS
    precision, _ = this_machine.choose_precision("auto", cpu)
    loss, _ = pick_loss(vocab_size=VOCAB, tokens=tokens, device="cpu")
    size = sum(parameter.numel() for parameter in our_model().parameters())
    compiled, _ = this_machine.choose_compile(
        "auto", device=cpu, total_tokens=200 * tokens, total_steps=200, parameters=size
    )
    return precision, loss == "chunked", compiled


# ------------------------------------------------------------------------------------------------ worker and parent


def work(variant: str) -> None:
    """Answer each line ``N`` on stdin with the times and losses of N more steps, as one JSON line."""
    step = reference_step() if variant == "reference" else our_step(*VARIANTS.get(variant, chosen()))
    stream, generator = token_stream(), torch.Generator().manual_seed(1337)
    for line in sys.stdin:
        losses = []
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            losses.append(step(*get_batch(stream, generator)))
        print(
            json.dumps(
                {
                    "wall_s": time.perf_counter() - wall,
                    "cpu_s": time.process_time() - cpu,
                    "losses": losses,
                    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                }
            ),
            flush=True,
        )


class Worker:
    """A variant in its own process."""

    def __init__(self, variant: str) -> None:
        self.variant = variant
        self.rounds: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", variant],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, steps: int) -> dict[str, Any]:
        """Run ``steps`` more steps and wait for the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(steps, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def measure(variants: list[str], *, rounds: int, steps: int) -> None:
    """Print times and ratios; the first variant is the reference."""
    workers = [Worker(variant) for variant in variants]
    for worker in workers:
        first = worker.run(2)  # warm-up and compilation
        print(f"{worker.variant}: first two steps {first['wall_s']:.1f} s", file=sys.stderr)
    for _ in range(rounds):
        for worker in workers:
            worker.rounds.append(worker.run(steps))
    print(
        f"{'variant':24} {'ms/step':>8} {'cpu ms':>8} {'tok/s':>7} {'peak MiB':>8} {'x wall':>7} {'x cpu':>7}"
    )
    for worker in workers:
        wall, cpu = (median(worker, key) / steps for key in ("wall_s", "cpu_s"))
        ratios = [ratio(workers[0], worker, key) for key in ("wall_s", "cpu_s")]
        print(
            f"{worker.variant:24} {wall * 1e3:8.0f} {cpu * 1e3:8.0f} {ROWS * TOKENS / wall:7.0f}"
            f" {worker.rounds[-1]['peak_mib']:8.0f} {ratios[0]:7.2f} {ratios[1]:7.2f}"
        )
        worker.close()


def median(worker: Worker, key: str) -> float:
    """Median over rounds."""
    return statistics.median(one[key] for one in worker.rounds)


def ratio(reference: Worker, worker: Worker, key: str) -> float:
    """Median over rounds of how many times faster than the reference in the same round."""
    pairs = zip(reference.rounds, worker.rounds, strict=True)
    return statistics.median(base[key] / one[key] for base, one in pairs)


def compare_losses(steps: int) -> None:
    """Train both for ``steps`` updates on the same batches and print how far the losses are apart."""
    curves = []
    for variant in ("reference", "chosen"):
        worker = Worker(variant)
        curves.append(worker.run(steps)["losses"])
        worker.close()
    means = [statistics.fmean(curve) for curve in curves]
    furthest = max(abs(one - other) for one, other in zip(*curves, strict=True))
    assert all(math.isfinite(loss) for curve in curves for loss in curve)
    print(
        f"mean loss over {steps} steps: reference {means[0]:.4f}, chosen {means[1]:.4f},"
        f" apart {abs(means[0] - means[1]):.1e} (single steps at most {furthest:.1e};"
        f" from {curves[0][0]:.3f} to {curves[0][-1]:.3f})"
    )


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="steps in a round")
    parser.add_argument("--all", action="store_true", help="every combination, not only the chosen one")
    parser.add_argument(
        "--loss-steps", type=int, default=0, help="also compare the mean loss over so many steps"
    )
    parser.add_argument("--threads", type=int, help="of each process; default: torch's own choice")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads:
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # workers inherit it
    if arguments.worker:
        work(arguments.worker)
        return
    features = sorted(this_machine.cpu_features() & {"amx_bf16", "avx512_bf16"})
    print(
        f"torch {torch.__version__}, {arguments.threads or torch.get_num_threads()} threads,"
        f" {', '.join(features) or 'no bf16 instructions'}"
    )
    precision, chunked, compiled = chosen()
    print(
        f"chosen: {precision}, {'chunked' if chunked else 'plain'} loss, {'compiled' if compiled else 'eager'}"
    )
    variants = ["reference", "chosen", *(VARIANTS if arguments.all else ())]
    measure(variants, rounds=arguments.rounds, steps=arguments.steps)
    if arguments.loss_steps:
        compare_losses(arguments.loss_steps)


if __name__ == "__main__":
    main()
