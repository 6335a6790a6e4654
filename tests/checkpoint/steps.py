"""Step folders, made and damaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from automodel_cli import files
from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.storage import formats
from automodel_cli.checkpoint.storage.local_shards import LocalShard
from automodel_cli.checkpoint.storage.step_files import StepReader, StepWriter
from automodel_cli.distributed.world import World


def make_step(run: Path, step: int, *, suffix: str = "", complete: bool = True) -> Path:
    folder = run / (layout.step_name(step) + suffix)
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{}")
    if complete:
        record = {"name": "state.json", "bytes": 2, "xxh3": files.hash_bytes(b"{}")}
        files.write_manifest(folder / layout.MANIFEST, manifest_of(step, record))
    return folder


def manifest_of(step: int, record: dict) -> dict:
    return {**bare_manifest(), "step": step, "files": [record]}


def bare_manifest(save_format: str = "safetensors") -> dict:
    rest = {"save_format": save_format, "tied": {}, "metrics": {}, "facts": {}}
    return {"format": layout.FORMAT, "step": 1, **rest}


def finish(writer: StepWriter, save_format: str = "safetensors") -> StepReader:
    writer.finish(bare_manifest(save_format))
    return StepReader(writer.folder)


def save_tensors(
    tensors: Mapping[str, torch.Tensor],
    writer: StepWriter,
    *,
    rank: int = 0,
    offsets: Mapping[str, tuple[int, ...]] | None = None,
    save_format: str = "safetensors",
) -> None:
    """What one rank writes below ``model``; where its tensors are not whole, ``offsets`` says where they begin."""
    shards = {}
    for name, tensor in tensors.items():
        begin = (offsets or {}).get(name, (0,) * tensor.dim())
        whole = tuple(map(sum, zip(begin, tensor.shape, strict=True)))
        shards[name] = LocalShard(begin, whole, tensor)
    storage = formats.storage(save_format)
    notes = storage.save_shards(shards, writer, "model", world=replace(World.single(), rank=rank))
    storage.finish([notes], writer, "model")


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
