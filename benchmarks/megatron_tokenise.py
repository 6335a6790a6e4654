"""JSONL to Megatron's .bin and .idx on one core: `automodel preprocess megatron` against a loop in NeMo's style.

    python benchmarks/megatron_tokenise.py [--mb 20] [--large-mb 200] [--rounds 3] [--data FILE.parquet]

The reference is what Megatron's and NeMo AutoModel's tools do for one worker, without their processes and pipes: a
Hugging Face tokenizer called for each document, ids as a list of ints, a builder that turns each document into an
array, writes it and appends to Python lists, and an index made of these lists at the end. Both sides are pinned to one
core, start-up counts, and the files must be identical.

* whole: wall and CPU time of both processes on ``--mb`` of JSON lines; target 10x
* steady: bytes a second beyond that, from the difference to ``--large-mb``; target 30x

The text is real (a parquet file of documents, or Python's own sources), repeated to size with one word in fifty
changed. GPT-2's vocabulary is taken from ``--tokenizer`` for the reference and by its name for ours.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tokenise import SHARED, cpu_and_wall, spread, texts, write_rows  # a sibling script

REFERENCE = '''
import json, struct, sys
import numpy as np
from transformers import AutoTokenizer

class Builder:
    """Documents to a .bin, their lengths in lists until the index is written."""
    def __init__(self, path, dtype):
        self.file, self.dtype = open(path, "wb"), dtype
        self.lengths, self.documents = [], [0]
    def add_document(self, ids, lengths):
        array = np.array(ids, dtype=self.dtype)
        self.file.write(array.tobytes(order="C"))
        self.lengths.extend(lengths)
        self.documents.append(len(self.lengths))
    def finalize(self, path):
        self.file.close()
        pointers, end = [], 0
        for length in self.lengths:
            pointers.append(end)
            end += length * np.dtype(self.dtype).itemsize
        with open(path, "wb") as index:
            index.write(b"MMIDIDX\\x00\\x00" + struct.pack("<QB", 1, 8))
            index.write(struct.pack("<QQ", len(self.lengths), len(self.documents)))
            index.write(np.array(self.lengths, dtype=np.int32).tobytes())
            index.write(np.array(pointers, dtype=np.int64).tobytes())
            index.write(np.array(self.documents, dtype=np.int64).tobytes())

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
builder = Builder(sys.argv[3] + ".bin", np.uint16)
with open(sys.argv[2], encoding="utf-8") as rows:
    for row in rows:
        ids = tokenizer(json.loads(row)["text"]).input_ids
        if ids:
            ids.append(tokenizer.eos_token_id)
            builder.add_document(ids, [len(ids)])
builder.finalize(sys.argv[3] + ".idx")
'''


def ours(data: Path, out: Path, engine: str) -> list[str]:
    """The command line of a run that begins from nothing."""
    words = ["preprocess", "megatron", "--input", str(data), "--append-eod", "--workers", "1"]
    words += ["--pretrained-model-name-or-path", "openai-community/gpt2", "--engine", engine]
    return [sys.executable, "-m", "automodel_cli", *words, "--output-path", str(out), "--overwrite"]


def measure(folder: Path, data: Path, tokenizer: str, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """(CPU, wall) seconds of each side, in turn; the outputs are compared."""
    theirs = [sys.executable, "-c", REFERENCE, tokenizer, str(data), str(folder / "reference")]
    found: dict[str, list[tuple[float, float]]] = {"loop": [], "fast": [], "reference": []}
    for _ in range(rounds):
        found["loop"].append(cpu_and_wall(theirs))
        for engine in ("fast", "reference"):
            found[engine].append(cpu_and_wall(ours(data, folder / engine, engine)))
    for suffix in (".bin", ".idx"):
        expected = (folder / f"reference{suffix}").read_bytes()
        for engine in ("fast", "reference"):
            assert (folder / engine / f"processed_data_0_text_document{suffix}").read_bytes() == expected
    return found


def report(
    small: dict[str, list[tuple[float, float]]],
    large: dict[str, list[tuple[float, float]]],
    mb: float,
    large_mb: float,
) -> None:
    names = {
        "loop": "Hugging Face loop",
        "fast": "automodel, fast engine",
        "reference": "automodel, tiktoken",
    }

    def middle(values: list[tuple[float, float]], column: int) -> float:
        return statistics.median(value[column] for value in values)

    def steady(side: str, column: int) -> float:
        return (large_mb - mb) / (middle(large[side], column) - middle(small[side], column))

    print(f"\nwhole process, {mb:.0f} MB, one core (target 10x)")
    for side, name in names.items():
        ratios = [middle(small["loop"], column) / middle(small[side], column) for column in (0, 1)]
        print(
            f"  {name:24s} CPU {spread([cpu for cpu, _ in small[side]])}  {ratios[0]:5.1f}x"
            f"   wall {spread([wall for _, wall in small[side]])}  {ratios[1]:5.1f}x"
        )
    print(f"\nsteady state, from {mb:.0f} to {large_mb:.0f} MB (target 30x)")
    for side, name in names.items():
        rates = [steady(side, column) for column in (0, 1)]
        ratios = [rates[column] / steady("loop", column) for column in (0, 1)]
        print(
            f"  {name:24s} {rates[0]:6.1f} MB per CPU second  {ratios[0]:5.1f}x"
            f"   {rates[1]:6.1f} MB per second  {ratios[1]:5.1f}x"
        )
    print("\n.bin and .idx of all three are byte-identical")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=20, help="size of the small input")
    parser.add_argument("--large-mb", type=float, default=200, help="size of the large one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, help="parquet file with a text column")
    parser.add_argument("--tokenizer", help="GPT-2's Hugging Face name or folder, for the reference")
    arguments = parser.parse_args()
    shared = SHARED / "corpus/books.parquet"
    source = arguments.data or (shared if shared.exists() else None)
    local = SHARED / "tokenizers/gpt2"
    tokenizer = arguments.tokenizer or (str(local) if local.is_dir() else "openai-community/gpt2")
    if (SHARED / "tokenizers/tiktoken_cache").is_dir():
        os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(SHARED / "tokenizers/tiktoken_cache"))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory(prefix="automodel-bench-") as name:
        folder, documents = Path(name), texts(source)
        small = write_rows(folder / "small.jsonl", documents, int(arguments.mb * 1e6))
        large = write_rows(folder / "large.jsonl", documents, int(arguments.large_mb * 1e6))
        subprocess.run(ours(small, folder / "warm", "fast"), check=True, stdout=subprocess.DEVNULL)
        measured = measure(folder, small, tokenizer, arguments.rounds)
        measured_large = measure(folder, large, tokenizer, max(1, arguments.rounds // 3))
        report(measured, measured_large, small.stat().st_size / 1e6, large.stat().st_size / 1e6)


if __name__ == "__main__":
    main()
