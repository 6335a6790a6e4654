"""What the data path costs: making a batch, resuming at step 1e6, opening 1,000 shards.

1. Batch production, CPU time of the whole process a batch (8 rows x 1024 tokens), interleaved with three
   references on the same file: windows as Python lists through torch's DataLoader with a padding collate to
   LongTensors (how NeMo AutoModel does it), the same with torch's own default_collate, and nanoGPT's get_batch.
2. Resume: from construction of data set and loader to the first batch at update 1,000,000, shuffled, on a file of
   20e9 tokens (sparse: it takes no room on the disk).
3. Start-up: 1,000 shards opened and the first shuffled batch drawn, in a fresh process; time and memory.

    python benchmarks/data_loading.py [--rounds 7] [--tokens 110000000]
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate

from automodel_cli.corpus.formats.nanogpt_bin import HEADER_BYTES, header_bytes
from automodel_cli.data.nanogpt_dataset import NanogptDataset
from automodel_cli.data.token_loader import TokenLoader

ROWS, SEQ_LEN = 8, 1024
SHARDS, SHARD_TOKENS = 1000, 1_000_000
SPARSE_TOKENS = 20_000_000_000
RESUME_STEP = 1_000_000


# ---------------------------------------------------------------------------------------- references


class ListWindows(IterableDataset[dict[str, list[int]]]):
    """Windows as Python lists of ints, one after the other."""

    def __init__(self, path: Path) -> None:
        self.tokens = torch.from_numpy(np.memmap(path, "<u2", "c", offset=HEADER_BYTES))

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        position = 0
        while position + SEQ_LEN < len(self.tokens):
            window = self.tokens[position : position + SEQ_LEN + 1]
            yield {
                "input_ids": window[:-1].to(torch.int32).tolist(),
                "labels": window[1:].to(torch.int64).tolist(),
            }
            position += SEQ_LEN + 1


def padding_collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Lists of lists, padded to the longest, as LongTensors."""
    batch = {}
    for name, pad in (("input_ids", 0), ("labels", -100)):
        longest = max(len(row[name]) for row in rows)
        batch[name] = torch.LongTensor([row[name] + [pad] * (longest - len(row[name])) for row in rows])
    return batch


def get_batch(path: Path) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Random rows of a memmap that is opened anew for each batch, stacked from one tensor a row."""
    while True:
        data = np.memmap(path, dtype=np.uint16, mode="r", offset=HEADER_BYTES)
        starts = torch.randint(len(data) - SEQ_LEN, (ROWS,))
        yield (
            torch.stack([torch.from_numpy(data[i : i + SEQ_LEN].astype(np.int64)) for i in starts]),
            torch.stack([torch.from_numpy(data[i + 1 : i + 1 + SEQ_LEN].astype(np.int64)) for i in starts]),
        )


def ours(path: Path, *, shuffle: bool) -> Iterator[Any]:
    """Our data set and loader, endless."""
    dataset = NanogptDataset(path, SEQ_LEN, shuffle_files=shuffle)
    return iter(TokenLoader(dataset, global_batch_size=ROWS, local_batch_size=ROWS, num_epochs=None, prefetch="auto"))


# ------------------------------------------------------------------------------------- the three parts


def batch_production(folder: Path, *, tokens: int, rounds: int) -> dict[str, float]:
    """Median CPU microseconds a batch, by loader."""
    path = folder / "tokens.bin"
    write_random_tokens(path, tokens)
    contenders: dict[str, tuple[Callable[[], Iterator[Any]], int]] = {
        "lists + padding collate": (lambda: endless_list_loader(path, padding_collate), 60),
        "lists + default_collate": (lambda: endless_list_loader(path, default_collate), 15),
        "nanoGPT get_batch": (lambda: get_batch(path), 300),
        "ours, file order": (lambda: ours(path, shuffle=False), 1500),
        "ours, shuffled": (lambda: ours(path, shuffle=True), 1500),
    }
    streams = {name: make() for name, (make, _) in contenders.items()}
    timings: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, (_, batches) in contenders.items():
            spent = cpu_seconds(streams[name], batches)
            if number:  # the first round warms up
                timings[name].append(spent / batches * 1e6)
    return {name: statistics.median(values) for name, values in timings.items()}


def endless_list_loader(path: Path, collate: Callable[[Any], Any]) -> Iterator[Any]:
    """Torch's DataLoader in this process, epoch after epoch."""
    loader = DataLoader(ListWindows(path), batch_size=ROWS, collate_fn=collate)
    return itertools.chain.from_iterable(itertools.repeat(loader))


def cpu_seconds(stream: Iterator[Any], batches: int) -> float:
    started = time.process_time()
    for _ in itertools.islice(stream, batches):
        pass
    return time.process_time() - started


def resume(folder: Path, *, rounds: int) -> float:
    """Median milliseconds from construction to the first batch at update RESUME_STEP."""
    path = folder / "sparse.bin"
    with path.open("wb") as handle:
        handle.truncate(2 * SPARSE_TOKENS)
    timings = []
    for _ in range(rounds):
        started = time.perf_counter()
        dataset = NanogptDataset(path, SEQ_LEN, shuffle_files=True)
        loader = TokenLoader(dataset, global_batch_size=ROWS, local_batch_size=ROWS, num_epochs=None)
        position = {**loader.state_dict(), "samples_consumed": RESUME_STEP * ROWS}
        loader.load_state_dict(position)
        next(iter(loader))
        timings.append((time.perf_counter() - started) * 1e3)
    return statistics.median(timings)


def start_up(folder: Path, *, rounds: int) -> tuple[float, float]:
    """Median (seconds, MiB) that 1,000 shards and the first shuffled batch cost a fresh process."""
    shards = folder / "shards"
    shards.mkdir()
    for number in range(SHARDS):
        with (shards / f"dataset_{number:05d}.bin").open("wb") as handle:
            handle.write(header_bytes(SHARD_TOKENS, np.dtype("<u2")))
            handle.truncate(HEADER_BYTES + 2 * SHARD_TOKENS)
    found = []
    for _ in range(rounds):
        command = [sys.executable, __file__, "--open", str(shards)]
        found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return statistics.median(f["seconds"] for f in found), statistics.median(f["mib"] for f in found)


def open_and_draw(shards: Path) -> None:
    """What ``start_up`` runs: prints seconds and the growth of resident memory as JSON."""
    before = resident_mib()
    started = time.perf_counter()
    dataset = NanogptDataset(f"{shards}/*.bin", SEQ_LEN, shuffle_files=True)
    next(iter(TokenLoader(dataset, global_batch_size=ROWS, local_batch_size=ROWS)))
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "mib": resident_mib() - before}))


def resident_mib() -> float:
    """Memory of this process now, mapped pages of files included; NaN where /proc does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return pages * resource.getpagesize() / (1 << 20)


def write_random_tokens(path: Path, tokens: int) -> None:
    """A token file of random GPT-2 ids, a piece at a time."""
    generator = np.random.default_rng(0)
    with path.open("wb") as handle:
        handle.write(header_bytes(tokens, np.dtype("<u2")))
        for first in range(0, tokens, 1 << 22):
            count = min(1 << 22, tokens - first)
            handle.write(generator.integers(0, 50257, count, dtype=np.uint16).tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=110_000_000)  # 220 MB
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open is not None:
        open_and_draw(options.open)
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="data_loading_") as name:
        folder = Path(name)
        costs = batch_production(folder, tokens=options.tokens, rounds=options.rounds)
        resumed_ms = resume(folder, rounds=options.rounds)
        seconds, mib = start_up(folder, rounds=options.rounds)
    report(costs, resumed_ms, seconds, mib)


def report(costs: dict[str, float], resumed_ms: float, seconds: float, mib: float) -> None:
    slowest_ours = max(cost for name, cost in costs.items() if name.startswith("ours"))
    print(f"batch of {ROWS} x {SEQ_LEN}, CPU time per batch (median)")
    for name, cost in costs.items():
        rate = ROWS * SEQ_LEN / cost
        print(f"  {name:<26} {cost:9.1f} us {rate:8.1f} Mtok/s {cost / slowest_ours:8.1f} x ours, slower order")
    replay_s = costs["lists + padding collate"] * RESUME_STEP / 1e6
    print(f"resume at step {RESUME_STEP:,}, {SPARSE_TOKENS:,} tokens, shuffled: {resumed_ms:.1f} ms to the first batch")
    print(f"  (a replay through lists would take {replay_s:,.0f} s)")
    print(f"{SHARDS:,} shards opened, first shuffled batch: {seconds * 1e3:.0f} ms, {mib:.1f} MiB")


if __name__ == "__main__":
    main()
