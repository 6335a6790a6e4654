"""What a mixture costs: batches of ten sources against batches of one file, and the way to a far position.

1. Batch production, CPU time a batch (8 rows x 1024 tokens), shuffled: one file of N tokens, one data set of ten
   files of N / 10, and a mixture of these ten with weights from 0.02 to 0.3, interleaved; medians of the ratios.
2. Where a run is at update 1,000,000 (batch 512) of ten sources, in three stages with a ramp: milliseconds, the
   patterns of the periods made anew and kept.
3. Plans: 1,000 random ones of sources, weights, stages and ramps, each counted one sample after the other.
4. Loss by source: CPU time of an update with losses of ten sources told apart, and with weighted tokens, against the
   same update without, in turn; medians of the ratios (a GPT of 4 x 256, 8 rows x 256 tokens, one thread).

    python benchmarks/mixture.py [--rounds 9] [--tokens 40000000] [--plans 1000] [--updates 15] [--only 4]
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from automodel_cli.batch import Batch
from automodel_cli.corpus.formats.nanogpt_writer import ShardWriter
from automodel_cli.data.mixture import order as mixture_order
from automodel_cli.data.mixture.dataset import Mixture
from automodel_cli.data.mixture.order import MixtureOrder, Stage
from automodel_cli.data.nanogpt_dataset import NanogptDataset
from automodel_cli.data.token_loader import TokenLoader
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.train.losses import ChunkedCrossEntropy, MaskedCrossEntropy
from automodel_cli.train.row_losses import SourceSums
from automodel_cli.train.step import train_step

ROWS, SEQ_LEN, SOURCES, BATCHES = 8, 1024, 10, 400
WEIGHTS = (0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.05, 0.04, 0.02, 0.02)


def write(path: Path, tokens: int) -> Path:
    """A token file."""
    writer = ShardWriter(path, dtype=np.dtype("uint16"), layout="nemo")
    writer.write(np.random.default_rng(0).integers(0, 50_000, tokens).astype(np.uint16), np.zeros(0))
    writer.close()
    return path


def seconds_a_batch(dataset: NanogptDataset | Mixture) -> float:
    """CPU seconds of one batch, the first hundred left out."""
    updates = iter(TokenLoader(dataset, global_batch_size=ROWS, local_batch_size=ROWS, num_epochs=None, prefetch=False))
    for _ in range(100):
        next(updates)
    begun = time.process_time()
    for _ in range(BATCHES):
        next(updates)
    return (time.process_time() - begun) / BATCHES


def batches(folder: Path, tokens: int, rounds: int) -> None:
    """Part 1."""
    whole = write(folder / "whole.bin", tokens)
    files = [write(folder / f"part_{number}.bin", tokens // SOURCES) for number in range(SOURCES)]
    sources = {
        f"s{number}": {"file_pattern": str(file), "weight": weight}
        for number, (file, weight) in enumerate(zip(files, WEIGHTS, strict=True))
    }
    found = []
    for _ in range(rounds):
        one = seconds_a_batch(NanogptDataset(whole, SEQ_LEN, shuffle_files=True))
        files_of_one = seconds_a_batch(NanogptDataset(files, SEQ_LEN, shuffle_files=True))
        found.append((one, files_of_one, seconds_a_batch(Mixture(sources, SEQ_LEN))))
    one, files_of_one, mixed = (statistics.median(times) * 1e6 for times in zip(*found, strict=True))
    print(
        f"a batch of {ROWS} x {SEQ_LEN}: one file {one:.0f} us, ten files {files_of_one:.0f} us, ten sources "
        f"{mixed:.0f} us ({rounds} rounds)"
    )
    for number, name in enumerate(("one file", "ten files")):
        ratios = [times[2] / times[number] for times in found]
        print(f"ten sources / {name}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def far_position() -> None:
    """Part 2."""
    backwards = WEIGHTS[::-1]
    stages = [
        Stage(0, WEIGHTS),
        Stage(10**8, backwards, WEIGHTS),
        Stage(3 * 10**8, backwards),
        Stage(4 * 10**8, WEIGHTS),
    ]
    order, sample = MixtureOrder(stages), np.arange(10**6 * 512, 10**6 * 512 + 512)
    times = []
    for _ in range(21):
        begun = time.perf_counter()
        order(sample)
        order.given(int(sample[0]))
        times.append(time.perf_counter() - begun)
    mixture_order._period.cache_clear()
    begun = time.perf_counter()
    MixtureOrder(stages)
    built = time.perf_counter() - begun
    print(f"update 1,000,000: {statistics.median(times) * 1e3:.2f} ms; the plan made anew {built * 1e3:.0f} ms")


def plans(count: int) -> None:
    """Part 3."""
    chance, worst = random.Random(0), 0.0
    for _ in range(count):
        stages = random_plan(chance)
        order = MixtureOrder(stages)
        total = stages[-1].first + chance.randint(1, 2000)
        sources, windows = order(np.arange(total))
        for source in range(len(stages[0].weights)):
            mine = windows[sources == source]
            assert (mine == np.arange(len(mine))).all(), "a window came early, twice or never"
        for stage, following in zip(stages, [*stages[1:], None], strict=True):
            if stage.ramp_from is None:
                end = total if following is None else following.first
                worst = max(worst, off_by(order, stage, end))
    assert worst < 1, worst
    print(f"{count:,} random plans: every window in its turn, counts at most {worst:.3f} windows off their shares")


def random_plan(chance: random.Random) -> list[Stage]:
    """Up to twelve sources with weights of two decimals, in up to six stages."""
    sources, first, before = chance.randint(1, 12), 0, None
    stages = []
    for _ in range(chance.randint(1, 6)):
        weights = tuple(round(chance.random(), 2) * chance.randint(0, 1) for _ in range(sources))
        weights = weights if any(weights) else (1.0,) * sources
        stages.append(Stage(first, weights, before if chance.random() < 0.3 else None))
        first, before = first + chance.randint(1, 4000), weights
    return stages if stages[-1].ramp_from is None else [*stages, Stage(first, stages[-1].weights)]


def off_by(order: MixtureOrder, stage: Stage, end: int) -> float:
    """How far the counts of a stage come off its shares, in windows, after any of its samples."""
    if end <= stage.first:
        return 0.0
    chosen = order(np.arange(stage.first, end))[0]
    given = np.cumsum(chosen[:, None] == np.arange(len(stage.weights)), axis=0)
    shares = np.array(stage.weights) / sum(stage.weights)
    return float(np.abs(given - np.arange(1, len(chosen) + 1)[:, None] * shares).max())


def loss_by_source(rounds: int) -> None:
    """Part 4."""
    torch.set_num_threads(1)
    for name, loss, vocabulary in (
        ("plain", MaskedCrossEntropy(), 4096),
        ("chunked", ChunkedCrossEntropy(), 50_304),
    ):
        ids = torch.randint(vocabulary, (8, 257), generator=torch.Generator().manual_seed(0))
        plain = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
        told_apart = replace(plain, sources=torch.arange(8))
        weighted = replace(told_apart, row_weights=torch.linspace(0.5, 1.5, 8))
        model = build_gpt2_model(vocab_size=vocabulary, n_positions=256, n_embd=256, n_layer=4, n_head=4)
        model.init_weights(0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        found = []
        for _ in range(rounds + 1):
            times = []
            for batch, sources in ((plain, 0), (told_apart, SOURCES), (weighted, SOURCES)):
                begun = time.process_time()
                train_step(model, loss, optimizer, [batch], sources=sources)
                times.append(time.process_time() - begun)
            found.append(times)
        found = found[1:]  # the first one allocates
        ratios = [[times[which] / times[0] for times in found] for which in (1, 2)]
        told, weighing = (f"{statistics.median(own):.4f} ({min(own):.3f} to {max(own):.3f})" for own in ratios)
        update = statistics.median(times[0] for times in found)
        print(
            f"{name} loss, {update * 1e3:.0f} ms: ten sources told apart {told}, tokens weighted {weighing} times that"
        )
        sums, rows = SourceSums(SOURCES, torch.device("cpu")), torch.rand(8)
        begun = time.process_time()
        for _ in range(1000):
            sums.add(told_apart, rows)
        print(f"  of which adding up by source {time.process_time() - begun:.3f} ms")


def main() -> None:
    """All of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=40_000_000)
    parser.add_argument("--plans", type=int, default=1000)
    parser.add_argument("--updates", type=int, default=15)
    parser.add_argument("--only", type=int, choices=(1, 2, 3, 4))
    asked = parser.parse_args()
    if asked.only in (None, 1):
        with tempfile.TemporaryDirectory() as folder:
            batches(Path(folder), asked.tokens, asked.rounds)
    if asked.only in (None, 2):
        far_position()
    if asked.only in (None, 3):
        plans(asked.plans)
    if asked.only in (None, 4):
        loss_by_source(asked.updates)


if __name__ == "__main__":
    main()
