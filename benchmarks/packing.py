"""Packed against padded rows: the share of positions that hold real tokens, and label tokens trained per second.

Rows as chat data has them: lengths log-normal about a median, cut at ``--tokens``. Padded are micro-batches of
``--rows`` rows in random order, each as long as its longest row; packed are micro-batches of so many packs that they
hold about as many positions. Both train on the same rows, forward and backward, taking turns within each round; printed
are medians and the ratio of the same round.

    python benchmarks/packing.py [--tokens 1024] [--median 180] [--spread 0.9] [--device cpu]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from automodel_cli.batch import IGNORE_INDEX, Batch
from automodel_cli.data import packing
from automodel_cli.data.collate import default_collate
from automodel_cli.data.packing import Packed, Packing, Read, Start, batch_of_packs, row_of, windows
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.train.losses import ChunkedCrossEntropy

VOCAB = 4096


def share(batches: Sequence[Batch]) -> float:
    """Of all positions, those with a label."""
    labels = [batch.labels for batch in batches if batch.labels is not None]
    return sum(int((one != IGNORE_INDEX).sum()) for one in labels) / sum(one.numel() for one in labels)


def show_windows(lengths: np.ndarray, size: int) -> None:
    chosen = packing.WINDOW_PACKS
    for packs in (4, 16, chosen, 256):
        packing.WINDOW_PACKS = packs
        found = Packed(0, 0, 0, 0)
        started = time.perf_counter()
        for window in windows((Read(0, range(n)) for n in lengths.tolist()), Packing(size), Start()):
            found = found.with_window(window)
        took = (time.perf_counter() - started) / len(lengths) * 1e6
        print(f"window of {packs:3} packs: {found.in_words(Packing(size))}, {took:.1f} us per row")
    packing.WINDOW_PACKS = chosen


def seconds(work: Callable[[], None], device: str) -> float:
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {
        "tokens": 1024,
        "median": 180,
        "rows": 8,
        "count": 128,
        "layers": 4,
        "width": 256,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--spread", type=float, default=0.9)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    drawn = np.random.default_rng(0)
    lengths = np.clip(drawn.lognormal(np.log(args.median), args.spread, 50_000), 8, args.tokens).astype(int)
    print(f"lengths: mean {lengths.mean():.0f}, median {np.median(lengths):.0f}, longest {lengths.max()}")
    show_windows(lengths, args.tokens)

    items = [{"input_ids": drawn.integers(0, VOCAB, n + 1)} for n in lengths[: args.count]]
    padded = [default_collate(items[n : n + args.rows]) for n in range(0, len(items), args.rows)]
    positions = statistics.mean(batch.input_ids.numel() for batch in padded)
    reads = (Read(0, row_of(item)) for item in items)
    packs = [pack for window in windows(reads, Packing(args.tokens), Start()) for pack in window.packs]
    each = max(1, round(positions / args.tokens))
    packed = [batch_of_packs(packs[n : n + each], args.tokens) for n in range(0, len(packs), each)]
    print(f"padded: {len(padded)} micro-batches of {args.rows} rows, {share(padded):.1%} real tokens")
    print(f"packed: {len(packed)} micro-batches of {each} packs, {share(packed):.1%} real tokens")

    model = build_gpt2_model(
        vocab_size=VOCAB,
        n_positions=args.tokens + 1,
        n_embd=args.width,
        n_layer=args.layers,
        n_head=args.width // 64,
    )
    model.materialize(args.device, seed=0)
    loss = ChunkedCrossEntropy()

    def train(batches: Sequence[Batch]) -> None:
        for batch in batches:
            with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.device == "cuda"):
                nll = model(batch, head_loss=loss)
            nll.backward()

    here = [[batch.to(args.device) for batch in batches] for batches in (padded, packed)]
    for batches in here:
        train(batches[:2])
    rounds = [[seconds(lambda b=batches: train(b), args.device) for batches in here] for _ in range(args.rounds)]
    tokens = int(lengths[: args.count].sum())
    speeds = [tokens / statistics.median(column) for column in zip(*rounds, strict=True)]
    ratios = sorted(one / other for one, other in rounds)
    print(f"label tokens/s: padded {speeds[0]:,.0f}, packed {speeds[1]:,.0f}")
    print(f"packed over padded: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
