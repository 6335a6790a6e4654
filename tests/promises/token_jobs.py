"""Processes that make the same token files in tasks, killed at any deed, and what must hold of their folder."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests import nursery

SCRIPT = Path(__file__).with_name("token_job_faults.py")
COMMANDS = ("nanogpt", "megatron")


def write_input(folder: Path) -> Path:
    """90 rows of two fields, some of them bad."""
    path = folder / "rows.jsonl"
    rows = [json.dumps({"text": f"row {k} " + "some text é " * (k * 5 % 17), "title": f"title {k}"}) for k in range(90)]
    rows[20] = "{broken"
    path.write_text("\n".join(rows) + "\n")
    return path


def content(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` but locks."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("lock")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def start(command: str, data: Path, out: Path, deed: int = 0, order: int = 0) -> Any:
    """One of the processes; it dies at its ``deed``-th deed."""
    words = [sys.executable, str(SCRIPT), command, str(data), str(out), str(deed), str(order)]
    return nursery.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def end(process: Any) -> tuple[int, str]:
    """Its exit code, and what it said."""
    said = process.stdout.read()
    return process.wait(), said


def check_killed(command: str, data: Path, out: Path, whole: dict[str, bytes], deeds: int, rng: random.Random) -> int:
    """Two processes at a time, most of them killed, until the files are there: how many died. They are ``whole``."""
    killed = 0
    while not any(out.glob("*manifest.json")):
        dying = [rng.randrange(1, deeds // 2) for _ in range(2)] if killed < 4 else [0]
        ends = [end(process) for process in [start(command, data, out, deed, rng.randrange(100)) for deed in dying]]
        killed += sum(code == -signal.SIGKILL for code, _ in ends)
        assert all(code in (0, -signal.SIGKILL) or "the job is finished" in said for code, said in ends), ends
    code, said = end(start(command, data, out))  # a manifest may be there before what was temporary is gone
    assert code == 0, said
    assert content(out) == whole
    return killed
