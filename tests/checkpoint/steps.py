"""Step folders without tensors, made and damaged."""

from __future__ import annotations

from pathlib import Path

from automodel_cli import files
from automodel_cli.checkpoint import layout


def make_step(run: Path, step: int, *, suffix: str = "", complete: bool = True) -> Path:
    folder = run / (layout.step_name(step) + suffix)
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{}")
    if complete:
        record = {"name": "state.json", "bytes": 2, "xxh3": files.hash_bytes(b"{}")}
        files.write_manifest(folder / layout.MANIFEST, manifest_of(step, record))
    return folder


def manifest_of(step: int, record: dict) -> dict:
    rest = {"save_format": "safetensors", "tied": {}, "metrics": {}, "facts": {}}
    return {"format": layout.FORMAT, "step": step, "files": [record], **rest}


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
