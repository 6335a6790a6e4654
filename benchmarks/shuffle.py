"""Shuffling 400 MB of documents with 50 MB of memory, against a plain script that holds it all, and coreutils `shuf`.

Whole processes, interleaved, medians of wall time, CPU time and peak memory. Ours writes every byte twice and makes its
output durable; the others hold the file in memory and leave the writing to the kernel. Then the same documents with
other memory and workers have to give the same bytes. Target: 200 MB/s.
Run: ``python benchmarks/shuffle.py [RUNS [MEGABYTES [BYTES_A_DOCUMENT]]]``.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from automodel_cli.files import hash_file

TARGET_MB_S = 200
PLAIN = """
import random, sys
with open(sys.argv[1], "rb") as source:
    lines = source.readlines()
random.seed(42)
random.shuffle(lines)
with open(sys.argv[2], "wb") as target:
    target.writelines(lines)
"""


@dataclass(frozen=True)
class Measured:
    """One process, to its end."""

    wall_s: float
    cpu_s: float
    peak_mb: float


def write_documents(path: Path, size: int, mean: int) -> int:
    """Lines of JSON with words of a skewed vocabulary; lengths are log-normal, as those of web pages."""
    import numpy as np  # only in the process that writes

    rng = np.random.default_rng(0)
    words = np.array(["".join(map(chr, rng.integers(97, 123, rng.integers(2, 10)))) for _ in range(5000)])
    text = " ".join(words[rng.zipf(1.3, 1_000_000) % 5000])
    written = count = 0
    with path.open("w") as handle:
        while written < size:
            length = min(len(text) // 2, max(10, int(rng.lognormal(np.log(mean) - 0.5, 1.0))))
            start = int(rng.integers(0, len(text) - length))
            written += handle.write(f'{{"id": "{count:032x}", "text": "{text[start : start + length]}"}}\n')
            count += 1
    return count


def measure(command: list[str]) -> Measured:
    """Run a command that has to succeed. Its peak counts from that of this process, which therefore stays small."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    wall_s = time.perf_counter() - started
    return Measured(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000)


def ours(source: Path, out: Path, memory: str, workers: int = 1) -> list[str]:
    """Our command."""
    program = str(Path(sys.executable).with_name("automodel"))
    words = [program, "preprocess", "shuffle", "--dataset", str(source), "-o", str(out), "--overwrite"]
    return [*words, "--memory", memory, "--num-workers", str(workers)]


def commands(folder: Path, source: Path) -> dict[str, list[str]]:
    """Everything that is compared, by name."""
    found = {
        "automodel, 50 MB": ours(source, folder / "ours", "50M"),
        "readlines, shuffle, writelines": [sys.executable, "-c", PLAIN, str(source), str(folder / "plain")],
    }
    if shuf := shutil.which("shuf"):
        found["shuf (coreutils)"] = [shuf, "-o", str(folder / "shuf"), str(source)]
    one = folder / "one.jsonl"
    one.write_text('{"text": ""}\n')
    return found | {"automodel, one document": ours(one, folder / "one", "50M")}


def main(runs: int, megabytes: int, mean: int) -> None:
    """Print medians, ratios, and whether the bytes are the same for other memory and workers."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "documents.jsonl"
        words = [sys.executable, __file__, "write", str(source), str(megabytes * 10**6), str(mean)]
        count = int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
        size_mb = source.stat().st_size / 1e6
        subjects = commands(folder, source)
        found: dict[str, list[Measured]] = {subject: [] for subject in subjects}
        for _ in range(runs):
            for subject, command in subjects.items():
                found[subject].append(measure(command))
        print(f"{size_mb:,.0f} MB, {count:,} documents, medians of {runs} runs of whole processes")
        show(found, size_mb)
        same = same_bytes(folder, source)
        print(f"  same bytes for 50 and 500 MB of memory, 1 and 2 workers: {'yes' if same else 'NO'}")


def show(found: dict[str, list[Measured]], size_mb: float) -> None:
    """A line for each subject, then the ratios."""
    medians = {
        subject: Measured(*(statistics.median(column) for column in zip(*map(astuple, runs), strict=True)))
        for subject, runs in found.items()
    }
    for subject, m in medians.items():
        rate = f"{size_mb / m.wall_s:6,.0f} MB/s, {size_mb / m.cpu_s:6,.0f} MB per CPU second"
        rate = "" if "one document" in subject else rate
        print(f"  {subject:32s} {m.wall_s:6.2f} s wall {m.cpu_s:6.2f} s CPU {m.peak_mb:7,.0f} MB peak  {rate}")
    mine, start = medians["automodel, 50 MB"], medians["automodel, one document"]
    for subject, m in medians.items():
        if not subject.startswith("automodel"):
            print(
                f"  against {subject}: {m.wall_s / mine.wall_s:.2f} times as fast, "
                f"{mine.peak_mb / m.peak_mb:.2f} of its memory"
            )
    rate = size_mb / (mine.wall_s - start.wall_s)
    print(f"  without program start: {rate:,.0f} MB/s (target {TARGET_MB_S}), of which in CPU time: "
          f"{size_mb / (mine.cpu_s - start.cpu_s):,.0f} MB/s")  # fmt: skip


def astuple(measured: Measured) -> tuple[float, float, float]:
    """The numbers of one run."""
    return measured.wall_s, measured.cpu_s, measured.peak_mb


def same_bytes(folder: Path, source: Path) -> bool:
    """Whether memory and workers leave the result as it is."""
    hashes = set()
    for memory, workers in (("50M", 1), ("500M", 1), ("50M", 2), ("500M", 2)):
        measure(ours(source, folder / "same", memory, workers))
        hashes.add(hash_file(folder / "same" / "documents.chunk.00000.jsonl"))
    return len(hashes) == 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        print(write_documents(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
        sys.exit()
    numbers = [int(word) for word in sys.argv[1:]]
    main(*(numbers + [3, 400, 3000][len(numbers) :]))
