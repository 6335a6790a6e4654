"""What every kind of score needs of the model: in which dtype, and which weights they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from automodel_cli import device as this_machine
from automodel_cli.assembly.checkpoint import LoadedModel
from automodel_cli.checkpoint import layout
from automodel_cli.files import hash_bytes, hash_file


def compute_precision(asked: str, loaded: LoadedModel, device: torch.device) -> str:
    """As asked; else fp32 for what was trained in fp32, and what the hardware does best for the rest."""
    best, _ = this_machine.choose_precision(asked, device)
    trained = (loaded.facts.get("precision") or {}).get("compute")
    return "fp32" if asked == "auto" and trained in ("fp32", "float32") else best


def describe_checkpoint(loaded: LoadedModel) -> dict[str, Any]:
    """Which weights were scored, for the results file."""
    return {
        "path": str(loaded.path),
        "step": layout.step_of(loaded.path.name),
        "fingerprint": _fingerprint(loaded.path),
    }


def _fingerprint(checkpoint: Path) -> str:
    """Identity of the weights: the manifest's own hash, or a hash over the hashes of a Hugging Face folder."""
    if (checkpoint / layout.MANIFEST).is_file():
        return str(layout.read_step_manifest(checkpoint)["self"])
    names = sorted(path for path in checkpoint.iterdir() if path.suffix == ".safetensors")
    names += [path for path in (checkpoint / "config.json", checkpoint / "tokenizer.json") if path.is_file()]
    return hash_bytes("\n".join(f"{path.name} {hash_file(path)}" for path in names).encode())
