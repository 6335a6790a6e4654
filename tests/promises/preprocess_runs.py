"""A small corpus made by the command itself, disturbed or not, and what must hold of its folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests import nursery

from automodel_cli.config.schema.preprocess import VerifyConfig
from automodel_cli.corpus.formats.nanogpt_bin import inspect_token_file
from automodel_cli.errors import DataError
from automodel_cli.recipes.preprocess import verify

FAULTS = Path(__file__).with_name("preprocess_faults.py")
OPTIONS = ("--tokenizer", "byte", "--shard-tokens", "900", "--val-fraction", "0.2", "--chunk-size", "1")
VARIANTS = {
    "one process": ("--num-workers", "1"),
    "two workers": ("--num-workers", "2"),
    "shuffle": ("--num-workers", "1", "--shuffle"),
    "raw, exact": ("--num-workers", "2", "--format", "raw", "--max-tokens", "9000"),
}


def write_input(folder: Path) -> Path:
    """120 rows of a few hundred bytes, some of them bad."""
    path = folder / "rows.jsonl"
    rows = [json.dumps({"text": f"row {k} " + "some text é " * (k * 5 % 17)}) for k in range(120)]
    rows[50] = "{broken"
    path.write_text("\n".join(rows) + "\n")
    return path


def preprocess(
    data: Path, out: Path, *options: str, point: str = "none", number: int = 0, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run ``automodel preprocess nanogpt``; with ``point`` the process dies at its ``number``-th call."""
    words = ["preprocess", "nanogpt", "--dataset", str(data), "-o", str(out), *OPTIONS, *options]
    command = [sys.executable, str(FAULTS), point, str(number), *words]
    environment = {**os.environ, "COLUMNS": "200"}
    return nursery.run(command, capture_output=True, text=True, env=environment, timeout=timeout_s)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` with its bytes."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def check_interrupted(folder: Path, whole: dict[str, bytes]) -> None:
    """Whatever stands under its final name is what the undisturbed run has there."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or name.endswith(".tmp") or name.startswith((".shuffle", "progress.json")):
            continue
        assert path.read_bytes() == whole[name], name
        if path.suffix == ".bin":
            inspect_token_file(path)


def check_not_sound(folder: Path) -> None:
    """``verify`` says so where a run did not come to its end."""
    if not folder.is_dir() or any(folder.glob("*manifest.json")):
        return
    try:
        report = verify.run(VerifyConfig(path=str(folder), documents=0), progress=lambda *_: None)
    except DataError:  # nothing there yet
        return
    assert any("of an interrupted run" in problem for problem in report.problems)
