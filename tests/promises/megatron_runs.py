"""Small Megatron files made by the command itself, disturbed or not, and what must hold of their folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests import nursery
from tests.promises.preprocess_runs import content

from automodel_cli.corpus.formats.megatron_bin import inspect_prefix

FAULTS = Path(__file__).with_name("megatron_faults.py")
OPTIONS = ("--tokenizer", "byte", "--append-eod", "--chunk-size", "1")
VARIANTS = {
    "one process": ("--workers", "1"),
    "two workers, two keys": ("--workers", "2", "--json-keys", "text", "title"),
    "shard tokens": ("--workers", "1", "--shard-tokens", "2500", "--skip-empty"),
    "shards, exact": ("--workers", "2", "--shards", "3", "--max-tokens", "9000"),
    "shuffled": ("--workers", "1", "--shuffle", "--shard-tokens", "4000"),
}


def write_input(folder: Path) -> Path:
    """Three files with 120 rows of a few hundred bytes, some of them bad, some empty."""
    target = folder / "in"
    target.mkdir()
    rows = [
        json.dumps({"text": f"row {k} " + "some text é " * (k * 5 % 17), "title": [f"title {k}", ""]})
        for k in range(120)
    ]
    rows[50], rows[61], rows[62] = "{broken", '{"text": "", "title": ""}', '{"text": [], "title": "t"}'
    for k in range(3):
        (target / f"{k}.jsonl").write_text("\n".join(rows[40 * k : 40 * k + 40]) + "\n")
    return target


def preprocess(
    data: Path, out: Path, *options: str, point: str = "none", number: int = 0, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run ``automodel preprocess megatron``; with ``point`` the process dies at its ``number``-th call."""
    words = ["preprocess", "megatron", "--input", str(data), "-o", str(out), *OPTIONS, *options]
    command = [sys.executable, str(FAULTS), point, str(number), *words]
    environment = {**os.environ, "COLUMNS": "200"}
    return nursery.run(command, capture_output=True, text=True, env=environment, timeout=timeout_s)


def check_interrupted(folder: Path, whole: dict[str, bytes]) -> None:
    """Whatever stands under its final name is what the undisturbed run has there; an index has its tokens."""
    for name, data in content(folder).items():
        hidden = (".processed_data.spool", ".processed_data.shuffle")
        if ".tmp" in name or name.startswith(hidden) or name.endswith("progress.json"):
            continue
        assert data == whole[name], name
        if name.endswith(".idx"):
            inspect_prefix(folder / name.removesuffix(".idx"))
