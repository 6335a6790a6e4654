"""What Megatron data costs: building indices, blending, reading samples, opening 1,000 shards without an index.

1. Sample index of 2M documents, 1.6G tokens (S = 1,024), and all three indices; CPU time.
2. Blend of 14 data sets, 9.5M samples: the first time, and from the cache.
3. Reading samples of 1,024 tokens, one thread, CPU time of the whole process, interleaved with a reference in the
   same process: megatron-core's own data set where it is installed, and the way it reads written out here.
4. 1,000 shards, ``order: stateless``: from construction to the first batch in a fresh process that holds torch.

    python benchmarks/megatron_data.py [--rounds 5] [--documents 40000]
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
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from automodel_cli.corpus.formats.megatron_bin import bin_path, inspect_prefix
from automodel_cli.corpus.formats.megatron_index import MegatronIndex
from automodel_cli.corpus.formats.megatron_writer import MegatronWriter
from automodel_cli.data.megatron.blending import blend
from automodel_cli.data.megatron.gpt_index import (
    Epochs,
    SampleShape,
    build_indices,
    document_index,
    normalize,
    sample_index,
)
from automodel_cli.data.megatron.index_cache import ArraySpec, IndexCache, IndexEntry
from automodel_cli.data.megatron_dataset import MegatronPretraining
from automodel_cli.data.token_loader import TokenLoader

DOCUMENTS, TOKENS_EACH = 2_000_000, 816  # 1.63G tokens
BLEND_SAMPLES, BLEND_WEIGHTS = (
    9_472_000,
    [7400.0] * 13 + [1912.0],
)  # FineWeb-Edu 10BT in 14 shards, 18,500 x 512
SHARDS, SHARD_DOCUMENTS = 1000, 1000
SEQ_LEN, ROWS = 1024, 8
EOD = 50256


def document_lengths(count: int, mean: float) -> np.ndarray:
    """Skewed as web pages are; int32."""
    drawn = np.random.default_rng(0).lognormal(np.log(mean) - 0.405, 0.9, count)
    return np.maximum(drawn, 1).astype(np.int32)


def cpu_seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


# ------------------------------------------------------------------------------------------- indices


def indexing(rounds: int) -> None:
    lengths = document_lengths(DOCUMENTS, TOKENS_EACH)
    epochs, shape = Epochs(int(lengths.sum()), 1), SampleShape(SEQ_LEN)
    documents = document_index(0, DOCUMENTS, epochs, np.random.RandomState(1234))
    samples = shape.count(epochs.tokens)
    alone = [cpu_seconds(lambda: sample_index(lengths, documents, samples, shape)) for _ in range(rounds)]
    whole = [
        cpu_seconds(lambda: build_indices(lengths, (0, DOCUMENTS), epochs, shape, seed=1234)) for _ in range(rounds)
    ]
    print(f"{DOCUMENTS:,} documents, {epochs.tokens:,} tokens, {samples:,} samples of {SEQ_LEN}")
    print(f"  sample index {statistics.median(alone) * 1e3:.0f} ms (target: 150 ms)", end="; ")
    print(f"document, sample and shuffle index {statistics.median(whole) * 1e3:.0f} ms")


def blending(folder: Path) -> None:
    weights = normalize(BLEND_WEIGHTS)
    names = ("dataset_index", "dataset_sample_index")

    def build() -> dict[str, np.ndarray]:
        found = blend(weights, BLEND_SAMPLES)
        return {name: getattr(found, name) for name in names}

    arrays = {name: ArraySpec(("int16", "int64"), (BLEND_SAMPLES,), 0, BLEND_SAMPLES) for name in names}
    entry = IndexEntry("blend", {"weights": weights}, None, arrays, build)
    first, again = (cpu_seconds(lambda: IndexCache(folder / "cache").arrays([entry])) for _ in range(2))
    print(f"blend of {len(weights)} data sets, {BLEND_SAMPLES:,} samples")
    print(f"  {first:.2f} s the first time (target: 5 s), then {again * 1e3:.1f} ms from the cache")


# ------------------------------------------------------------------------------------------- reading


class AsMegatronReads:
    """One sample at a time: parts of documents put together, widened, masks made; the reference's way."""

    def __init__(self, dataset: MegatronPretraining) -> None:
        file = inspect_prefix(dataset.parts[0].prefix)
        self.tokens = np.memmap(bin_path(file.prefix), file.dtype, "r")
        self.lengths = MegatronIndex(file).lengths()
        self.pointers = np.cumsum(self.lengths, dtype=np.int64) - self.lengths
        self.indices = dataset.order.indices[0]

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        at = self.indices.shuffle_index[number]
        first, offset = self.indices.sample_index[at]
        last, end = self.indices.sample_index[at + 1]
        parts = []
        for entry in range(first, last + 1):
            document = self.indices.document_index[entry]
            begin = offset if entry == first else 0
            stop = end + 1 if entry == last else self.lengths[document]
            start = self.pointers[document]
            parts.append(self.tokens[start + begin : start + stop])
        text = torch.from_numpy(np.concatenate(parts, dtype=np.int64)).long()
        tokens, labels = text[:-1].contiguous(), text[1:].contiguous()
        loss_mask = torch.ones(SEQ_LEN)
        loss_mask[labels == -1] = 0.0
        tokens[tokens == -1] = 0
        labels[labels == -1] = 0
        positions = torch.arange(SEQ_LEN)
        return {"tokens": tokens, "labels": labels, "loss_mask": loss_mask, "position_ids": positions}


class Stub:
    """A tokenizer as megatron-core asks for one."""

    pad, eod, vocab_size = -1, EOD, EOD + 1
    unique_identifiers: ClassVar[dict[str, Any]] = {}


def megatron_core(prefix: Path, cache: Path) -> Any:
    """megatron-core's own data set over the file, None where it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
            from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
        except ImportError:
            return None
    config = GPTDatasetConfig(
        random_seed=1234,
        sequence_length=SEQ_LEN,
        blend=([str(prefix)], None),
        split="100,0,0",
        tokenizer=Stub(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        path_to_cache=str(cache),
    )
    return BlendedMegatronDatasetBuilder(GPTDataset, [None] * 3, lambda: True, config).build()[0]


def samples_of(dataset: Any) -> Iterator[Any]:
    return (dataset[number] for number in itertools.count())


def batches_of(prefix: Path, order: str) -> Iterator[Any]:
    dataset = MegatronPretraining(prefix, SEQ_LEN, split="100,0,0", order=order)
    loader = TokenLoader(dataset, global_batch_size=ROWS, local_batch_size=ROWS, num_epochs=None, prefetch=False)
    return iter(loader)


def reading(folder: Path, *, documents: int, rounds: int) -> None:
    """Samples of a file of documents of 850 tokens on average, each read by each contender once to warm up."""
    prefix = folder / "read_text_document"
    write_random(prefix, document_lengths(documents, 850))
    items = MegatronPretraining(prefix, SEQ_LEN, split="100,0,0")
    core = megatron_core(prefix, folder / "core")
    contenders: dict[str, tuple[Iterator[Any], int]] = {
        **({} if core is None else {"megatron-core 0.16.1, by item": (samples_of(core), 1)}),
        "its way written out, by item": (samples_of(AsMegatronReads(items)), 1),
        "ours, order megatron, by item": (samples_of(items), 1),
        f"ours, order megatron, batches of {ROWS}": (batches_of(prefix, "megatron"), ROWS),
        f"ours, order stateless, batches of {ROWS}": (batches_of(prefix, "stateless"), ROWS),
    }
    timings: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, (stream, rows) in contenders.items():
            spent = cpu_seconds(lambda stream=stream, rows=rows: take(stream, 4000 // rows))
            if number:
                timings[name].append(spent / 4000)
    reference = statistics.median(next(iter(timings.values())))
    print(f"samples of {SEQ_LEN} tokens, one thread, CPU time per sample (median); target: 2 x the reference")
    for name, values in timings.items():
        cost = statistics.median(values)
        print(f"  {name:<40} {cost * 1e6:7.1f} us {SEQ_LEN / cost / 1e6:7.1f} Mtok/s {reference / cost:6.1f} x")


def take(stream: Iterator[Any], count: int) -> None:
    for _ in itertools.islice(stream, count):
        pass


def write_random(prefix: Path, lengths: np.ndarray) -> None:
    """Random GPT-2 ids in documents of the given lengths."""
    random, writer = np.random.default_rng(0), MegatronWriter(prefix, dtype=np.dtype("<u2"))
    for piece in np.array_split(lengths, 16):
        writer.write(random.integers(0, EOD, int(piece.sum()), dtype=np.uint16), piece)
    writer.close()


# ------------------------------------------------------------------------------------------- start-up


def start_up(folder: Path, rounds: int) -> None:
    """Seconds and MiB that 1,000 shards and the first batch cost a process that already holds torch."""
    shards = folder / "shards"
    shards.mkdir()
    lengths = np.full(SHARD_DOCUMENTS, 1000)
    writer = MegatronWriter(shards / "data_00000_text_document", dtype=np.dtype("<u2"))
    writer.write(np.zeros(int(lengths.sum()), dtype="<u2"), lengths)
    writer.close()
    index = (shards / "data_00000_text_document.idx").read_bytes()
    for number in range(1, SHARDS):
        prefix = shards / f"data_{number:05d}_text_document"
        Path(f"{prefix}.idx").write_bytes(index)
        with bin_path(prefix).open("wb") as handle:
            handle.truncate(2 * int(lengths.sum()))  # sparse: it takes no room on the disk
    found = []
    for _ in range(rounds):
        command = [sys.executable, __file__, "--open", str(shards)]
        found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    seconds, cpu, mib = (statistics.median(f[key] for f in found) for key in ("seconds", "cpu", "mib"))
    print(f"{SHARDS:,} shards opened, order stateless, first batch: {seconds * 1e3:.0f} ms ({cpu * 1e3:.0f} ms of")
    print(f"  CPU time), {mib:.1f} MiB (target: 500 ms, 50 MB)")


def open_and_draw(shards: Path) -> None:
    """What ``start_up`` runs: prints seconds and the growth of resident memory as JSON."""
    before, started, cpu = resident_mib(), time.perf_counter(), time.process_time()
    dataset = MegatronPretraining(f"{shards}/*", SEQ_LEN, split="99,1,0", order="stateless")
    next(iter(TokenLoader(dataset, global_batch_size=ROWS, local_batch_size=ROWS)))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    print(json.dumps({"seconds": seconds, "cpu": cpu, "mib": resident_mib() - before}))


def resident_mib() -> float:
    """Memory of this process now; NaN where /proc does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return pages * resource.getpagesize() / (1 << 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--documents", type=int, default=40_000)  # of the file to read: 34M tokens
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open is not None:
        open_and_draw(options.open)
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="megatron_data_") as name:
        indexing(options.rounds)
        blending(Path(name))
        reading(Path(name), documents=options.documents, rounds=options.rounds)
        start_up(Path(name), options.rounds)


if __name__ == "__main__":
    main()
