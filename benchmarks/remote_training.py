"""What it costs to train from object storage: opening, waiting for batches, tokens a second.

A real S3 server (moto's) runs in a process of its own on this machine, so it takes part of the same cores. It reads
a whole object for each range of it: so the corpus is in files of 4 MB.

1. Opening: a corpus of 300 shards with its manifest, by path and by URL, in a new process' first seconds: time.
2. Waiting: batches of 32 rows x 1024 tokens for updates that take 50 ms (a sleep): what the loop waits for them
   after the first, in file order and shuffled; from a disk, from a cold cache and from a warm one.
3. Training: tokens a second of `automodel pretrain llm` from the second update on, one thread, interleaved: from a
   disk, from a cold cache, from a warm one. The ratio is the median over the rounds of each round's ratio.

    python benchmarks/remote_training.py [--only opening|waiting|training] [--rounds 2] [--steps 60]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from automodel_cli.corpus.formats.manifest import CorpusManifest, describe_file
from automodel_cli.corpus.formats.nanogpt_writer import ShardWriter
from automodel_cli.data.nanogpt_dataset import NanogptDataset
from automodel_cli.data.token_loader import TokenLoader
from automodel_cli.storage.cache import remote_file
from automodel_cli.storage.cache.settings import CacheSettings, use_cache
from automodel_cli.storage.opening import open_store

SERVER = "import sys; from moto.server import main; main(['-H', '127.0.0.1', '-p', sys.argv[1]])"
KEYS = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark", "AWS_REGION": "us-east-1"}
DATASET = "automodel_cli.data.nanogpt_dataset.NanogptDataset"
PARTS = ("opening", "waiting", "training")
SHARDS, SHARD_TOKENS = 300, 20_000
TOKENS = 40_000_000
ROWS, SEQ_LEN, UPDATE_S, UPDATES = 32, 1024, 0.05, 150


def write_corpus(folder: Path, shards: int, tokens: int) -> None:
    """Random ids in ``shards`` files of ``tokens`` each, with a manifest."""
    folder.mkdir(parents=True)
    files = []
    for number in range(shards):
        name = "dataset.bin" if number == 0 else f"dataset_{number:05d}.bin"
        ids = np.random.default_rng(number).integers(0, 50_000, tokens).astype("<u2")
        writer = ShardWriter(folder / name, dtype=np.dtype("<u2"))
        writer.write(ids, np.arange(0, tokens, 500))
        writer.close()
        files.append(describe_file(folder, name, "tokens", "train", tokens=tokens, documents=tokens // 500))
    facts = {"name": "gpt2", "fingerprint": "xxh3:0123456789abcdef", "vocab_size": 50257, "eot_id": 0, "bos_id": None}
    CorpusManifest(
        folder=folder,
        layout="bin",
        dtype="uint16",
        eot="prepend",
        tokenizer=facts,
        documents=sum(file.documents for file in files),
        tokens=sum(file.tokens for file in files),
        bad_rows=0,
        files=tuple(files),
    ).write()


def start_server() -> tuple[subprocess.Popen[bytes], str]:
    """A server, and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", SERVER, str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process, f"http://127.0.0.1:{port}"
        time.sleep(0.1)
    raise TimeoutError("moto's server did not start")


def upload(folder: Path, url: str) -> None:
    """Every file of ``folder``."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            open_store(url).upload(f"{url}/{path.relative_to(folder).as_posix()}", path)


def opening(folder: Path, url: str, cache: Path) -> dict[str, float]:
    """Seconds to open 300 shards."""

    def timed(pattern: str) -> float:
        began = time.perf_counter()
        NanogptDataset(pattern, SEQ_LEN)
        return time.perf_counter() - began

    found = {"disk": [], "cold": [], "warm": []}
    for _ in range(5):
        shutil.rmtree(cache, ignore_errors=True)
        for name, pattern in (("disk", str(folder)), ("cold", url), ("warm", url)):
            found[name].append(timed(pattern))
    return {name: statistics.median(times) for name, times in found.items()}


def waiting(pattern: str, *, shuffled: bool) -> dict[str, float]:
    """What a loop waits for its batches: the first, all others together, and the longest of them."""
    began = time.perf_counter()
    dataset = NanogptDataset(pattern, SEQ_LEN, shuffle_files=shuffled)
    loader = iter(TokenLoader(dataset, global_batch_size=ROWS, local_batch_size=ROWS, num_epochs=None))
    next(loader)
    first, waits = time.perf_counter() - began, []
    for _ in range(UPDATES):
        time.sleep(UPDATE_S)
        asked = time.perf_counter()
        next(loader)
        waits.append(time.perf_counter() - asked)
    share = sum(waits) / (sum(waits) + UPDATES * UPDATE_S)
    return {"first_s": first, "share": share, "longest_s": max(waits)}


def train(folder: Path, pattern: str, cache: Path, steps: int) -> float:
    """Tokens a second from the second update to the last."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    model = {"vocab_size": 50304, "n_positions": 256, "n_embd": 64, "n_layer": 2, "n_head": 2}
    config: dict[str, Any] = {
        "model": {"_target_": "automodel_cli.models.gpt2.build_gpt2_model", **model},
        "dataset": {"_target_": DATASET, "file_pattern": pattern, "seq_len": 256},
        "data_cache": {"folder": str(cache), "chunk_bytes": 1 << 20},
        "compile": False,
        "step_scheduler": {"global_batch_size": 8, "local_batch_size": 8, "max_steps": steps},
        "checkpoint": {"checkpoint_dir": str(run), "save_consolidated": False},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "automodel_cli", "pretrain", "llm", "-c", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    times = [datetime.fromisoformat(one["time"]).timestamp() for one in records if one["kind"] == "train"]
    return (len(times) - 1) * 8 * 256 / (times[-1] - times[0])


def show(title: str, rows: dict[str, Any]) -> None:
    """Print a heading and a line for each row."""
    print(f"\n{title}")
    for name, value in rows.items():
        print(f"  {name:24} {value}", flush=True)


def cold(cache: Path) -> None:
    """Forget what was fetched, in this process too."""
    remote_file._fetcher.cache_clear()
    shutil.rmtree(cache, ignore_errors=True)


def main() -> None:
    """Run the three parts."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", choices=PARTS)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--steps", type=int, default=60)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, cache = Path(name), Path(name) / "cache"
        server, address = start_server()
        try:
            os.environ |= {**KEYS, "AWS_ENDPOINT_URL": address}
            import boto3

            boto3.client("s3", endpoint_url=address).create_bucket(Bucket="benchmark")
            use_cache(CacheSettings(cache))
            for part in PARTS if asked.only is None else (asked.only,):
                measure(part, folder, cache, asked.rounds, asked.steps)
        finally:
            server.terminate()


def measure(part: str, folder: Path, cache: Path, rounds: int, steps: int) -> None:
    """One of the three parts, printed."""
    name, shards, tokens = ("shards", SHARDS, SHARD_TOKENS) if part == "opening" else ("corpus", 20, TOKENS // 20)
    local, url = folder / name, f"s3://benchmark/{name}"
    if not local.exists():
        write_corpus(local, shards, tokens)
        upload(local, url)
    cold(cache)
    if part == "opening":
        times = opening(local, url, cache)
        show(f"opening {SHARDS} shards", {one: f"{seconds:.3f} s" for one, seconds in times.items()})
    elif part == "waiting":
        for shuffled in (False, True):
            measure_waiting(str(local), url, cache, shuffled=shuffled)
    else:
        measure_training(folder, str(local), url, cache, rounds, steps)


def measure_waiting(local: str, url: str, cache: Path, *, shuffled: bool) -> None:
    """Medians of three rounds."""
    found: dict[str, list[dict[str, float]]] = {"disk": [], "cold": [], "warm": []}
    for _ in range(3):
        cold(cache)
        for kind, pattern in (("disk", local), ("cold", url), ("warm", url)):
            remote_file._fetcher.cache_clear()
            found[kind].append(waiting(pattern, shuffled=shuffled))
    show(f"waiting, {'shuffled' if shuffled else 'in file order'}", {k: in_words(v) for k, v in found.items()})


def measure_training(folder: Path, local: str, url: str, cache: Path, rounds: int, steps: int) -> None:
    """Medians of ``rounds``, each of a disk, a cold cache and a warm one."""
    speeds: dict[str, list[float]] = {"disk": [], "cold": [], "warm": []}
    for _ in range(rounds):
        cold(cache)
        for kind, pattern in (("disk", local), ("cold", url), ("warm", url)):
            speeds[kind].append(train(folder, pattern, cache, steps))
        print("  round:", ", ".join(f"{kind} {all_of[-1]:,.0f}" for kind, all_of in speeds.items()), flush=True)
    show("training", {kind: f"{statistics.median(all_of):,.0f} tokens/s" for kind, all_of in speeds.items()})
    for kind in ("cold", "warm"):
        ratios = [here / there for here, there in zip(speeds[kind], speeds["disk"], strict=True)]
        print(f"  {kind} / disk: {statistics.median(ratios):.3f} ({', '.join(f'{one:.3f}' for one in sorted(ratios))})")


def in_words(rounds: list[dict[str, float]]) -> str:
    """The medians of what ``waiting`` found."""
    median: Callable[[str], float] = lambda key: statistics.median(one[key] for one in rounds)  # noqa: E731
    return (
        f"first batch after {median('first_s'):.2f} s, then {median('share'):.2%} of the time, "
        f"{1000 * median('longest_s'):.0f} ms at most"
    )


if __name__ == "__main__":
    main()
