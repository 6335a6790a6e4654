"""Shuffling takes the memory it was given, not that of the text: the peak of a whole process, by the kernel's count."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TEXT_BYTES = 100_000_000
MEMORY_BYTES = 8_000_000


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 200 to 4,000 bytes, each with its number."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lengths = np.random.default_rng(0).integers(200, 4000, TEXT_BYTES // 2100)
    with path.open("wb") as out:
        out.writelines(b'{"text": "%d %s"}\n' % (n, b"x" * length) for n, length in enumerate(lengths.tolist()))
    return path


# A small process in between: what is begun by a large one is charged with that one's size before it is itself.
REPORT = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak_bytes(*arguments: str) -> int:
    """Largest resident set of one command."""
    command = [sys.executable, "-m", "automodel_cli", "preprocess", *arguments]
    done = subprocess.run(
        [sys.executable, "-c", REPORT, *command],
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=120,
    )
    return int(done.stdout) * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.skipif(sys.platform == "win32", reason="no resource usage there")
def test_documents_and_tokens(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"text": "one"}\n')
    memory = str(MEMORY_BYTES)
    commands = {
        "documents": ["shuffle", "--num-workers", "1", "--memory", memory, "--dataset"],
        "tokens": [
            "megatron",
            "--shuffle",
            "--workers",
            "1",
            "--shuffle-memory",
            memory,
            "--tokenizer",
            "byte",
        ],
    }
    commands["tokens"] += ["--max-tokens", "40M", "--input"]
    for name, words in commands.items():
        target = "--output-path" if words[0] == "megatron" else "--output-dir"
        least = peak_bytes(*words, str(tmp_path / "one.jsonl"), target, str(tmp_path / f"one {name}"))
        peak = peak_bytes(*words, str(rows), target, str(tmp_path / name))
        assert 0 < peak - least < 5 * MEMORY_BYTES < TEXT_BYTES / 2, (name, least, peak)
