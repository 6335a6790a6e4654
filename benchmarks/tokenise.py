"""Text to token files: speed against the usual loop, scaling to two workers, and memory by input size.

    python benchmarks/tokenise.py [core] [raw] [workers] [memory] [--mb 480] [--rounds 5] [--data FILE.parquet]

Every figure is a ratio of medians measured side by side in one run, whole processes, start-up included:

* ``core``     CPU time (user + system) of ``json`` + ``tiktoken.encode_ordinary`` + numpy over the same file, divided
               by that of ``automodel preprocess nanogpt`` in one process, with each engine. Outputs must be equal.
* ``raw``      CPU time of a plain loop around the fast engine (lines of JSON read and parsed by the parser that we use,
               each text encoded, ids written as uint16, nothing checked) divided by that of ``automodel preprocess
               nanogpt`` with that engine, in one process and, of all processes, in three. Outputs must be equal.
* ``workers``  wall time with one worker divided by that with two: one file, and ten files of which one holds 90 %. With
               the fast engine on six times the text: starting two processes takes as long as encoding 50 MB.
* ``memory``   peak memory of all processes together on ten times the input, divided by that on the input.

The text is real (a parquet file of documents, or Python's own sources) and repeated to size; in every repetition
one word in fifty gets another letter, so that engines which remember words do not see the same ones again.
GPT-2's vocabulary must be cached or reachable (TIKTOKEN_CACHE_DIR).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

SHARED = Path(__file__).resolve().parents[2] / "shared/data"
REFERENCE = """
import json, sys
import numpy as np
import tiktoken
encoding = tiktoken.get_encoding("gpt2")
with open(sys.argv[1], encoding="utf-8") as rows, open(sys.argv[2], "wb") as out:
    for row in rows:
        ids = [encoding.eot_token, *encoding.encode_ordinary(json.loads(row)["text"])]
        out.write(np.array(ids, dtype=np.uint16).tobytes())
"""
RAW = """
import sys
import numpy as np
from pydantic_core import from_json
from automodel_cli.corpus.tokenizer import open_tokenizer
tokenizer = open_tokenizer("gpt2")
tokenizer.use_engine("fast", probe=False)
encode, separator = tokenizer.engine._fast.encode, np.array([tokenizer.eot_id], dtype=np.uint16).tobytes()
with open(sys.argv[1], "rb") as rows, open(sys.argv[2], "wb") as out:
    for row in rows:
        out.write(separator)
        out.write(encode(from_json(row)["text"]).astype(np.uint16).tobytes())
"""
# Pairs of letters that occur in no key and no escape of the rows: sync_context one makes new words, at memory speed.
PAIRS = [b"gk", b"hv", b"lm", b"pw", b"yz", b"gh", b"kl", b"mp", b"vw", b"ly"]


def texts(source: Path | None) -> list[str]:
    """The documents to repeat."""
    if source is not None:
        return pq.read_table(source, columns=["text"]).column("text").to_pylist()
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = [path for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts]
    return [path.read_text("utf-8", errors="ignore") for path in paths]


def changed(text: str, rng: random.Random) -> str:
    """The text with another letter in one word of fifty."""
    words = text.split(" ")
    for k in rng.sample(range(len(words)), len(words) // 50):
        if len(words[k]) > 2:
            place = rng.randrange(len(words[k]))
            words[k] = words[k][:place] + rng.choice("aeiounrstlm") + words[k][place + 1 :]
    return " ".join(words)


def write_rows(path: Path, documents: list[str], size: int, seed: int = 0) -> Path:
    """JSON lines of ``size`` bytes: the documents in random orders, changed from the second time on."""
    rng = random.Random(seed)
    written = repetition = 0
    with path.open("wb") as out:
        while written < size:
            for text in rng.sample(documents, len(documents)):
                body = changed(text, rng) if repetition or seed else text
                written += out.write(json.dumps({"id": written, "text": body}, ensure_ascii=False).encode() + b"\n")
                if written >= size:
                    break
            repetition += 1
    return path


def enlarged(path: Path, times: int) -> Path:
    """Copies of a file in one (up to ten), each with another pair of letters exchanged."""
    large = path.with_name(f"{path.stem}_{times}.jsonl")
    with large.open("wb") as out:
        for pair in PAIRS[:times]:
            table = bytes.maketrans(pair, pair[::-1])
            with path.open("rb") as rows:
                while block := rows.read(8 << 20):
                    out.write(block.translate(table))
    return large


def preprocess(data: Path, out: Path, *, workers: int, engine: str) -> list[str]:
    """The command line of a run that begins from nothing."""
    options = ["--num-workers", str(workers), "--engine", engine, "--overwrite"]
    words = ["preprocess", "nanogpt", "--dataset", str(data), "-o", str(out), *options]
    return [sys.executable, "-m", "automodel_cli", *words]


def cpu_and_wall(command: list[str]) -> tuple[float, float]:
    """Seconds of CPU (with children) and on the clock that ``command`` takes."""
    before, started_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall_s = time.perf_counter() - started_s
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall_s


def descendants(pid: int) -> Iterator[int]:
    """``pid`` and all processes below it."""
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from descendants(int(child))


def peak_mb(command: list[str]) -> float:
    """Most memory that ``command`` and its children held together (proportional set size), looked at often."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = [0]

    def watch() -> None:
        while process.poll() is None:
            total = 0
            for pid in descendants(process.pid):
                try:
                    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                except OSError:
                    continue
                total += next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)
            peak[0] = max(peak[0], total)
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    watcher.join()
    assert code == 0, f"exit code {code}"
    return peak[0] / 1024


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):6.2f} s ({min(values):.2f} .. {max(values):.2f})"


def core(folder: Path, data: Path, rounds: int) -> None:
    """One core: CPU time against the usual loop."""
    print(f"\none process, CPU time on {data.stat().st_size / 1e6:.0f} MB, {rounds} rounds")
    reference = [sys.executable, "-c", REFERENCE, str(data), str(folder / "reference.bin")]
    engines = ("fast", "reference")
    measured: dict[str, list[float]] = {"loop": [], **{engine: [] for engine in engines}}
    for _ in range(rounds):
        measured["loop"].append(cpu_and_wall(reference)[0])
        for engine in engines:
            command = preprocess(data, folder / engine, workers=1, engine=engine)
            measured[engine].append(cpu_and_wall(command)[0])
    expected = (folder / "reference.bin").read_bytes()
    print(f"  json + tiktoken.encode_ordinary + numpy  {spread(measured['loop'])}")
    for engine, target in (("fast", 6.0), ("reference", 0.95)):
        assert (folder / engine / "dataset.bin").read_bytes()[1024:] == expected, "tokens differ"
        ratio = statistics.median(measured["loop"]) / statistics.median(measured[engine])
        print(
            f"  automodel, {engine + ' engine':17s}             {spread(measured[engine])}  {ratio:.2f}x (>= {target})"
        )
    print("  outputs are byte-identical")


def raw(folder: Path, data: Path, rounds: int) -> None:
    """One core: CPU time against the fast engine alone."""
    print(f"\nfast engine, CPU time of all processes on {data.stat().st_size / 1e6:.0f} MB, {rounds} rounds")
    plain = [sys.executable, "-c", RAW, str(data), str(folder / "raw.bin")]
    measured: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for _ in range(rounds):
        measured[0].append(cpu_and_wall(plain)[0])
        for count in (1, 2):
            command = preprocess(data, folder / "fast", workers=count, engine="fast")
            measured[count].append(cpu_and_wall(command)[0])
            assert (folder / "fast/dataset.bin").read_bytes()[1024:] == (folder / "raw.bin").read_bytes()
    print(f"  plain loop around the engine  {spread(measured[0])}")
    for count in (1, 2):
        ratio = statistics.median(measured[0]) / statistics.median(measured[count])
        print(f"  automodel, {count} worker(s)       {spread(measured[count])}  {ratio:.2f}x (>= 0.8)")


def skew(whole: Path) -> Path:
    """A folder with the rows of ``whole`` in ten files, the last of which holds nine tenths."""
    folder = whole.with_suffix("")
    folder.mkdir(exist_ok=True)
    with whole.open("rb") as rows:
        for k in range(9):
            (folder / f"{k}.jsonl").write_bytes(b"".join(rows.readlines(whole.stat().st_size // 90)))
        with (folder / "9.jsonl").open("wb") as last:
            shutil.copyfileobj(rows, last, 8 << 20)
    return folder


def workers(folder: Path, data: Path, rounds: int) -> None:
    """Two workers against one, wall time."""
    for engine, times in (("reference", 1), ("fast", 6)):
        whole = enlarged(data, times)
        skewed = skew(whole)
        for name, source in (("one file", whole), ("ten files, one with 90 %", skewed)):
            measured: dict[int, list[float]] = {1: [], 2: []}
            for _ in range(rounds):
                for count, walls in measured.items():
                    walls.append(cpu_and_wall(preprocess(source, folder / "w", workers=count, engine=engine))[1])
            ratio = statistics.median(measured[1]) / statistics.median(measured[2])
            size = f"{whole.stat().st_size / 1e6:,.0f} MB"
            print(f"\nwall time, {engine} engine, {size} in {name}, {rounds} rounds")
            print(f"  1 worker   {spread(measured[1])}")
            print(f"  2 workers  {spread(measured[2])}  {ratio:.2f}x (>= 1.85)")


def memory(folder: Path, data: Path) -> None:
    """Peak memory on the input and on ten times as much."""
    large = enlarged(data, 10)
    for count in (1, 2):
        small_mb = peak_mb(preprocess(data, folder / "m", workers=count, engine="auto"))
        large_mb = peak_mb(preprocess(large, folder / "m", workers=count, engine="auto"))
        print(f"\npeak memory of all processes, {count} worker(s)")
        print(f"  {data.stat().st_size / 1e6:6,.0f} MB of text: {small_mb:.0f} MB")
        print(
            f"  {large.stat().st_size / 1e6:6,.0f} MB of text: {large_mb:.0f} MB  {large_mb / small_mb:.2f}x (<= 1.10)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="core|raw|workers|memory", help="what to measure (all)")
    parser.add_argument("--mb", type=int, default=480, help="size of the input")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, help="parquet file with a text column")
    arguments = parser.parse_args()
    parts = arguments.parts or ["core", "raw", "workers", "memory"]
    shared = SHARED / "corpus/books.parquet"
    source = arguments.data or (shared if shared.exists() else None)
    if (SHARED / "tokenizers/tiktoken_cache").is_dir():
        os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(SHARED / "tokenizers/tiktoken_cache"))
    with tempfile.TemporaryDirectory(prefix="automodel-bench-") as name:
        folder = Path(name)
        data = write_rows(folder / "rows.jsonl", texts(source), arguments.mb * 10**6)
        if "core" in parts:
            core(folder, data, arguments.rounds)
        if "raw" in parts:
            raw(folder, data, arguments.rounds)
        if "workers" in parts:
            workers(folder, data, arguments.rounds)
        if "memory" in parts:
            memory(folder, data)


if __name__ == "__main__":
    main()
