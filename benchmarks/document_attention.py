"""Attention within documents on a GPU: FlexAttention's blocks against a dense mask and against plain causal attention.

Forward and backward of one layer in bf16, and the mask itself, made once a forward; documents of a mean length whose
ends lie anywhere. The variants take turns within each round; printed are medians and ratios to causal attention, which
does more work: it looks across documents.

    python benchmarks/document_attention.py [--rows 16] [--tokens 1024] [--heads 12] [--width 64] [--mean 500]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch

from automodel_cli.models.layers.document_attention import attend_blocks, block_mask, dense_mask
from automodel_cli.models.layers.shared import attend_sdpa


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"rows": 16, "tokens": 1024, "heads": 12, "width": 64, "mean": 500}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("needs a CUDA device")

    torch.manual_seed(0)
    segments = (torch.rand(args.rows, args.tokens, device="cuda") < 1 / args.mean).cumsum(1)
    size = (args.rows, args.heads, args.tokens, args.width)
    leaves = [torch.randn(size, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    upstream = torch.randn_like(leaves[0])
    blocks, dense = block_mask(segments), dense_mask(segments)
    make_blocks = torch.compile(lambda ids: block_mask(ids).as_tuple()[2:10], dynamic=False)

    def layer(attend: Callable[..., torch.Tensor], mask: object) -> Callable[[], object]:
        return lambda: torch.autograd.grad(attend(*leaves, mask=mask, dropout=0.0), leaves, upstream)

    variants = {
        "causal, SDPA": layer(attend_sdpa, None),
        "documents, blocks": layer(attend_blocks, blocks),
        "documents, dense mask": layer(attend_sdpa, dense),
        "making the blocks, eager": lambda: block_mask(segments),
        "making the blocks, compiled": lambda: make_blocks(segments),
        "making the dense mask, eager": lambda: dense_mask(segments),
    }
    for work in variants.values():
        milliseconds(work, 3)  # compiles
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(args.rounds):
        for name, work in variants.items():
            times[name].append(milliseconds(work, args.repeats))
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {size}, documents of {args.mean} tokens")
    print(f"blocks that are not computed: {blocks.sparsity():.0f}% (causal alone: about half)")
    reference = statistics.median(times["causal, SDPA"])
    for name, found in times.items():
        median = statistics.median(found)
        print(f"{name:30s} {median:8.3f} ms  {median / reference:6.2f} of causal")


if __name__ == "__main__":
    main()
