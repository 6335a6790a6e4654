"""A small shuffle made by the command itself, disturbed or not, and what must hold of its folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests import nursery

FAULTS = Path(__file__).with_name("shuffle_faults.py")
OPTIONS = ("--val-documents", "20", "--chunks", "3", "--memory", "9000")
VARIANTS = {
    "one process": ("--num-workers", "1"),
    "two workers": ("--num-workers", "2"),
    "no duplicates": ("--num-workers", "1", "--dedup"),
    "no duplicates, two workers": ("--num-workers", "2", "--dedup", "--memory", "20000"),
}


def write_input(folder: Path) -> Path:
    """300 rows in two files, some of them bad, some with the same text."""
    (folder / "in").mkdir()
    for name, count in (("a", 200), ("b", 100)):
        rows = [json.dumps({"id": k, "text": f"row {k % 90} " + "some text é " * (k * 5 % 17)}) for k in range(count)]
        rows[50] = "{broken"
        (folder / "in" / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    return folder / "in"


def shuffle(
    data: Path, out: Path, *options: str, point: str = "none", number: int = 0, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run ``automodel preprocess shuffle``; with ``point`` the process dies at its ``number``-th call."""
    words = ["preprocess", "shuffle", "--dataset", str(data), "-o", str(out), *OPTIONS, *options]
    command = [sys.executable, str(FAULTS), point, str(number), *words]
    environment = {**os.environ, "COLUMNS": "200"}
    return nursery.run(command, capture_output=True, text=True, env=environment, timeout=timeout_s)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` with its bytes."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def check_interrupted(folder: Path, whole: dict[str, bytes]) -> None:
    """Whatever stands under its final name is what the undisturbed run has there, and the manifest is the last."""
    found = content(folder)
    final = {n: d for n, d in found.items() if not n.endswith(".tmp") and not n.startswith(".shuffle/")}
    assert all(data == whole[name] for name, data in final.items()), sorted(final)
    if "manifest.json" in final:
        assert final == whole
    else:
        assert (folder / ".shuffle").exists() or set(final) <= {".lock"}  # the next run knows it for ours
