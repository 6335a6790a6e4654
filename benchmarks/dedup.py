"""Near-duplicates: what is found of planted copies, against the exact similarity of all pairs, and the speed of a core.

1. quality: documents of a text, and copies with words replaced, beginnings or ends cut, or boilerplate added, by
   seed. The Jaccard similarity of all pairs is computed from sets of word tuples, without our hashes, and by an
   inverted index, without bands. Which pairs end in one cluster, and how like the document that stays is each one that
   is left out? The same for datasketch's MinHashLSH, as its documentation uses it.
2. speed: the same text, one process each, interleaved, medians of CPU time: ours from .jsonl files to .jsonl files with
   a report; datasketch's from the same files to a list of documents to keep.
3. memory: peak memory of a process while the input grows.

Run: ``python benchmarks/dedup.py TEXT.parquet [quality] [speed] [memory]`` (a file with a column ``text``; all three).
"""

from __future__ import annotations

import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

THRESHOLD, SIZE = 0.8, 5
BINS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0001)
BOILERPLATE = [
    "all",
    "rights",
    "reserved",
    "no",
    "part",
    "of",
    "this",
    "page",
    "may",
    "be",
    "copied",
    "without",
    "the",
    "written",
    "permission",
    "of",
    "its",
    "owner",
    "please",
    "read",
    "the",
    "terms",
    "of",
    "use",
    "and",
    "our",
    "notice",
    "about",
    "privacy",
    "before",
    "you",
    "go",
    "on",
    "to",
    "the",
    "next",
    "page",
    "or",
    "leave",
    "a",
    "comment",
    "below",
]
DATASKETCH = """
import json, sys
from datasketch import MinHash, MinHashLSH
lsh, kept = MinHashLSH(threshold=float(sys.argv[2]), num_perm=128), []
number = 0
for line in open(sys.argv[1]):
    words = json.loads(line)["text"].lower().split()
    found = MinHash(num_perm=128)
    found.update_batch([" ".join(words[k : k + 5]).encode() for k in range(max(1, len(words) - 4))])
    alike = lsh.query(found)
    if not alike:
        kept.append(number)
    lsh.insert(number, found)
    number += 1
print(len(kept))
"""
MEASURE = """
import resource, subprocess, sys, time
started_s = time.monotonic()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(time.monotonic() - started_s, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
"""
"""A small process in between: what one that is forked off a large one holds counts as its peak, too."""


# ---------------------------------------------------------------------------------------------- planting


def edited(rng: random.Random, text: str, share: float) -> str:
    """``text`` with about that share of its words changed, in one of four ways."""
    words = text.split(" ")
    count = max(1, int(share * len(words)))
    how = rng.choice(("replace", "head", "tail", "boilerplate"))
    if how == "replace":
        for _ in range(max(1, count // SIZE)):  # each change is in as many shingles as they have words
            words[rng.randrange(len(words))] = rng.choice(BOILERPLATE)
    elif how == "head":
        words = words[count:]
    elif how == "tail":
        words = words[:-count]
    else:
        start = rng.randrange(len(BOILERPLATE))
        added = (BOILERPLATE[start:] + BOILERPLATE * (1 + count // len(BOILERPLATE)))[:count]
        words = [*words, *added] if rng.random() < 0.5 else [*added, *words]
    return " ".join(words)


def planted(texts: list[str], documents: int, seed: int = 0) -> list[str]:
    """So many texts and two edited copies of each, in random order."""
    rng = random.Random(seed)
    chosen = rng.sample([text for text in texts if len(text) > 600], documents)
    copies = [edited(rng, text, rng.uniform(0.01, 0.5)) for text in chosen for _ in range(2)]
    mixed = chosen + copies
    rng.shuffle(mixed)
    return mixed


def exact_pairs(texts: list[str], least: float) -> dict[tuple[int, int], float]:
    """All pairs with at least that Jaccard similarity, by an inverted index of word tuples."""
    sets = []
    for text in texts:
        words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
        sets.append({tuple(words[k : k + SIZE]) for k in range(max(1, len(words) - SIZE + 1))})
    index: dict[tuple[str, ...], list[int]] = {}
    found = {}
    for number, shingles in enumerate(sets):
        shared: Counter[int] = Counter()
        for shingle in shingles:
            before = index.setdefault(shingle, [])
            shared.update(before)
            before.append(number)
        for other, count in shared.items():
            similarity = count / (len(shingles) + len(sets[other]) - count)
            if similarity >= least:
                found[other, number] = similarity
    return found


# --------------------------------------------------------------------------------------------- our answer


def our_clusters(texts: list[str], folder: Path, **options: object) -> np.ndarray:
    """For each text the number of the one that stays in its place."""
    from automodel_cli.config.schema.dedup import DedupConfig
    from automodel_cli.recipes.preprocess import dedup

    source = folder / "in.jsonl"
    write_rows(source, texts)
    job = dedup.open_job(DedupConfig(dataset=str(source), output_dir=str(folder / "out"), **options))
    (folder / "out").mkdir()
    job.begin()
    for stage in job.stages[:-1]:
        for task in range(job.tasks(stage)):
            job.run_task(stage, task, lambda report: None)
    return np.fromfile(folder / "out" / ".dedup" / "clusters" / "parents", dtype="<i8")


def write_rows(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def datasketch_clusters(texts: list[str]) -> np.ndarray:
    """The same with MinHashLSH: every pair that its query finds is one."""
    from datasketch import MinHash, MinHashLSH

    lsh, parents = MinHashLSH(threshold=THRESHOLD, num_perm=128), np.arange(len(texts))

    def root(number: int) -> int:
        while parents[number] != number:
            number = int(parents[number])
        return number

    for number, text in enumerate(texts):
        words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
        found = MinHash(num_perm=128)
        found.update_batch([" ".join(words[k : k + SIZE]).encode() for k in range(max(1, len(words) - SIZE + 1))])
        for other in lsh.query(found):
            low, high = sorted((root(int(other)), root(number)))
            parents[high] = low
        lsh.insert(number, found)
    return np.array([root(number) for number in range(len(texts))])


def show_quality(texts: list[str], folder: Path) -> None:
    mixed = planted(texts, 1500)
    pairs = exact_pairs(mixed, 0.2)
    above = sum(similarity >= THRESHOLD for similarity in pairs.values())
    print(f"{len(mixed):,} documents, {above:,} pairs from a similarity of {THRESHOLD} on")
    ways: dict[str, np.ndarray] = {}
    for name, options in {
        "ours": {"near": THRESHOLD},
        "ours, exact": {"near": THRESHOLD, "verify": "exact"},
        "FineWeb's bands": {"near": THRESHOLD, "bands": 14, "rows": 8},
        "256 hashes": {"near": THRESHOLD, "hashes": 256},
    }.items():
        own = folder / str(len(ways))
        own.mkdir()
        ways[name] = our_clusters(mixed, own, **options)
    ways["datasketch"] = datasketch_clusters(mixed)
    print(f"{'share of pairs in one cluster':32s}" + "".join(f"{name:>17s}" for name in ways))
    for low, high in itertools.pairwise(BINS):
        inside = [pair for pair, similarity in pairs.items() if low <= similarity < high]
        line = f"  similarity {low:.2f} to {min(1, high):.2f} ({len(inside):4d})   "
        for parents in ways.values():
            together = sum(parents[a] == parents[b] for a, b in inside)
            line += f"{together / max(1, len(inside)):17.1%}"
        print(line)
    line = f"{'recall of all pairs above':32s}"
    for parents in ways.values():
        line += f"{sum(parents[a] == parents[b] for (a, b), s in pairs.items() if s >= THRESHOLD) / above:17.2%}"
    print(line)
    for slack in (0.0, 0.05, 0.1):
        line = f"precision from {THRESHOLD - slack:.2f} on          "
        for parents in ways.values():
            line += f"{precision(parents, pairs, THRESHOLD - slack):17.2%}"
        print(line)


def precision(parents: np.ndarray, pairs: dict[tuple[int, int], float], least: float) -> float:
    """The share of documents left out that have an exact similarity of ``least`` to another of their cluster."""
    right = {number for (a, b), similarity in pairs.items() if similarity >= least and parents[a] == parents[b]
             for number in (a, b)}  # fmt: skip
    left_out = np.flatnonzero(parents != np.arange(len(parents))).tolist()
    return sum(number in right for number in left_out) / max(1, len(left_out))


# ------------------------------------------------------------------------------------------ speed and memory


def measured(command: list[str]) -> tuple[float, float, float]:
    """Wall and CPU seconds of a process to its end, and its peak memory in MB."""
    told = subprocess.run(
        [sys.executable, "-S", "-c", MEASURE, *command],
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    wall, cpu, peak = map(float, told.stdout.split()[-3:])
    return wall, cpu, peak


def our_command(source: Path, out: Path, *options: str) -> list[str]:
    command = ["-m", "automodel_cli", "preprocess", "dedup", str(source), "--output-dir", str(out)]
    return [sys.executable, *command, "--overwrite", "--num-workers", "1", *options]


def show_speed(texts: list[str], folder: Path, rounds: int = 3) -> None:
    source = folder / "speed.jsonl"
    write_rows(source, planted(texts, 3500))
    size = source.stat().st_size / 1e6
    commands = {
        "exact copies": our_command(source, folder / "exact"),
        "near-duplicates": our_command(source, folder / "near", "--near", "0.8"),
        "the same, verified exactly": our_command(source, folder / "sure", "--near", "0.8", "--verify", "exact"),
        "near and Gopher's filters": our_command(source, folder / "gopher", "--near", "0.8", "--filters", "gopher"),
        "datasketch": [sys.executable, "-c", DATASKETCH, str(source), "0.8"],
    }
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            found[name].append(measured(command))
    print(f"{size:.1f} MB of rows, whole processes, medians of {rounds}: MB for each second of CPU time; peak memory")
    for name, runs in found.items():
        print(f"  {name:28s}{size / statistics.median(run[1] for run in runs):8.1f} MB/s{runs[0][2]:8.0f} MB")


def show_memory(texts: list[str], folder: Path) -> None:
    print("peak memory of one process, --memory 64M and the default")
    rng = random.Random(0)
    for times in (1, 10, 100):
        source = folder / "memory.jsonl"
        with source.open("w") as handle:
            while handle.tell() < times * 5_000_000:
                text = rng.choice(texts)
                handle.write(json.dumps({"text": edited(rng, text, rng.uniform(0.01, 0.9))}) + "\n")
        for memory in ("64M", "500M"):
            wall, cpu, peak = measured(our_command(source, folder / "memory", "--near", "0.8", "--memory", memory))
            size = source.stat().st_size / 1e6
            print(f"  {size:6.0f} MB  --memory {memory:>4s}: {peak:6.0f} MB, {cpu:6.1f} s of CPU time, {wall:6.1f} s")


def main(argv: list[str]) -> None:
    path, *what = argv
    texts = pq.read_table(path, columns=["text"]).column("text").to_pylist()
    for name, show in {"quality": show_quality, "speed": show_speed, "memory": show_memory}.items():
        if not what or name in what:
            with tempfile.TemporaryDirectory() as folder:
                show(texts, Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
