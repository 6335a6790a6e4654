"""How long training waits for a checkpoint: saved in the foreground, in the background, and by torch's own writers.

One GPT-2 with AdamW (weights and two moments in fp32). Each round saves it four times, in turn:

    sync         Checkpointer.save: hashed, made durable, published; training waits for all of it
    async        the same with is_async: training waits for the copy to CPU memory
    torch sync   torch.distributed.checkpoint.save of the same tensors (no hashes), fsync
    torch async  torch.distributed.checkpoint.async_save; training waits for the staging

The first save in the background also allocates the buffers that later ones use again; it is printed, not counted.

    python benchmarks/checkpoint_stall.py [--rounds 3] [--layers 6] [--width 512] [--folder DIR]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter

from automodel_cli.checkpoint import optimizer_state
from automodel_cli.checkpoint.checkpointer import Checkpointer
from automodel_cli.checkpoint.snapshot import model_tensors, names_by_id
from automodel_cli.models.gpt2 import build_gpt2_model

Save = Callable[[int], tuple[float, float]]  # step -> seconds that training waits, seconds until it is durable


def build(layers: int, width: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A model whose optimizer has moments."""
    model = build_gpt2_model(n_layer=layers, n_embd=width, n_head=width // 64)
    model.init_weights(0)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def ours(run: Path, model: Any, optimizer: torch.optim.Optimizer, *, is_async: bool) -> Save:
    checkpointer = Checkpointer(run, is_async=is_async)
    arguments = {"state": {}, "loader_state": {}, "config_yaml": "", "facts": {"model": model.model_config()}}

    def save(step: int) -> tuple[float, float]:
        shutil.rmtree(run, ignore_errors=True)
        started = time.perf_counter()
        checkpointer.save(step, model=model, optimizer=optimizer, **arguments)
        waited = time.perf_counter() - started
        checkpointer.wait()
        return waited, time.perf_counter() - started

    return save


def torchs(run: Path, model: Any, optimizer: torch.optim.Optimizer, *, is_async: bool) -> Save:
    flat = optimizer_state.flatten(optimizer, names_by_id(model))
    state = {**model_tensors(model), **flat.tensors}

    def save(step: int) -> tuple[float, float]:
        shutil.rmtree(run, ignore_errors=True)
        writer = FileSystemWriter(run / str(step), sync_files=True)
        started = time.perf_counter()
        if not is_async:
            dcp.save(state, storage_writer=writer, no_dist=True)
            return (time.perf_counter() - started,) * 2
        future = dcp.async_save(state, storage_writer=writer)
        waited = time.perf_counter() - started
        future.result()
        return waited, time.perf_counter() - started

    return save


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--folder", type=Path, default=None, help="where to write (default: a temporary folder)")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    model, optimizer = build(arguments.layers, arguments.width)
    size = 3 * sum(parameter.nbytes for parameter in model.parameters())
    print(f"weights and moments: {size / 2**20:,.0f} MiB")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        makers = {"ours": ours, "torch": torchs}
        ways = {
            f"{who}, {'async' if is_async else 'sync'}": make(
                Path(folder, f"{who}{is_async}"), model, optimizer, is_async=is_async
            )
            for who, make in makers.items()
            for is_async in (False, True)
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for number in range(arguments.rounds + 1):
            for name, save in ways.items():
                measured = save(number + 1)
                if number:
                    found[name].append(measured)
                elif "async" in name:
                    print(f"first save, {name}: waited {measured[0]:.2f} s")
        dist.destroy_process_group()
    report(found, size)


def report(found: dict[str, list[tuple[float, float]]], size: int) -> None:
    """A line a way, and the ratios of each round."""
    for name, rounds in found.items():
        waited, durable = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(
            f"{name:13s} training waits {waited:6.2f} s, durable after {durable:6.2f} s "
            f"({size / durable / 2**20:,.0f} MiB/s)"
        )
    pairs = [("ours, async", "ours, sync"), ("torch, async", "torch, sync"), ("ours, sync", "torch, sync")]
    for above, below in pairs:
        ratios = [a[0] / b[0] for a, b in zip(found[above], found[below], strict=True)]
        print(
            f"wait {above} / {below}: median {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        )


if __name__ == "__main__":
    main()
