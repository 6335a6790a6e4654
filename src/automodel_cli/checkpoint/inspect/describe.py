"""What a run, a checkpoint, a Hugging Face folder or a safetensors file is: read-only, without torch, no pickle.

Everything comes from names, manifests, JSON and the headers of safetensors files; no tensor is read. Results
are plain dictionaries (JSON), so that a table and ``--json`` show the same facts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from automodel_cli.checkpoint import layout, lineage, nested_runs
from automodel_cli.checkpoint.storage.tensor_file import StoredTensor, gather, read_header
from automodel_cli.errors import CheckpointError
from automodel_cli.json_files import read_json

SUFFIX = ".safetensors"
_WHAT = "name a run folder, a step of one, a Hugging Face folder or a .safetensors file"
# Facts that have a key of their own in a description.
_SHOWN_FACTS = [
    "stage",
    "model",
    "data",
    "tokenizer",
    "optimizer",
    "schedule",
    "precision",
    "batch",
    "fast_path",
    "versions",
    "lineage",
]
_LEFT = {
    layout.TEMPORARY: "a save that was not finished",
    layout.REPLACED: "an earlier step of that name; its successor was not finished",
    layout.DELETED: "a checkpoint on its way out",
}
_ROLE_MARKS = {
    "position": ("wpe", "position_embed", "embed_position", "pos_emb"),
    "embedding": ("wte", "embed_tokens", "tok_embeddings", "word_embeddings", "embed_in", "embedding"),
    "head": ("lm_head", "embed_out", "output.weight", "head.weight"),
    "norm": ("norm", "ln_", ".ln", "layernorm"),
}


def kind_of(path: Path) -> str:
    """``run``, ``checkpoint``, ``hf`` or ``safetensors``.

    Raises:
        CheckpointError: it is none of them.
    """
    if path.is_file() and path.suffix == SUFFIX:
        return "safetensors"
    if path.is_file():
        raise CheckpointError(f"{path} is not a safetensors file", _WHAT)
    if not path.is_dir():
        raise CheckpointError(f"there is no {path}", _WHAT)
    stem = path.name.partition(".")[0]
    if (layout.is_complete(path) and _is_checkpoint_manifest(path)) or layout.step_of(stem) is not None:
        return "checkpoint"
    if (path / "LATEST").is_file() or layout.list_steps(path, complete=False) or _leftovers(path):
        return "run"
    if (path / "config.json").is_file() or next(path.glob(f"*{SUFFIX}"), None) is not None:
        return "hf"
    raise CheckpointError(f"{path} holds no checkpoint", nested_runs.way_down(path) or _WHAT)


def _is_checkpoint_manifest(path: Path) -> bool:
    """A corpus has a manifest.json too; a damaged one counts, so that the damage is named."""
    try:
        content = read_json(path / layout.MANIFEST, CheckpointError)
    except CheckpointError:
        return (path / "model").is_dir()
    return isinstance(content, dict) and str(content.get("format", "")).startswith("automodel-checkpoint/")


def describe(path: Path, *, now: float | None = None) -> dict[str, Any]:
    """Describe whatever ``path`` is; the key ``kind`` says what that was."""
    kind = kind_of(path)
    if kind == "run":
        return describe_run(path, now=now)
    if kind == "checkpoint":
        return describe_checkpoint(path, now=now)
    return _describe_safetensors(path) if kind == "safetensors" else _describe_hf(path)


# ------------------------------------------------------------------------------------------ a run


def describe_run(run: Path | str, *, now: float | None = None) -> dict[str, Any]:
    """All steps of a run, newest last, with what a quick look tells of each."""
    run = Path(run)
    marks, notes = _marks(run)
    notes += [f"{path.name}: {_LEFT[path.suffix]}" for path in _leftovers(run)]
    steps = [_step_row(layout.step_folder(run, s), marks, now) for s in layout.list_steps(run, complete=False)]
    present = {row["name"] for row in steps if row["complete"]}
    lost = {pointer: name for pointer, name in marks.items() if name not in present}
    notes += [f"{pointer} names {name}, which is not a complete checkpoint here" for pointer, name in lost.items()]
    notes += nested_runs.notes(run)
    notes += _origin(run)
    pointers = {"latest": marks.get("LATEST"), "best": marks.get("BEST")}
    return {"kind": "run", "path": str(run), "steps": steps, **pointers, "notes": notes}


def _origin(run: Path) -> list[str]:
    """Where a branch comes from."""
    try:
        branch = lineage.read(run)
    except CheckpointError as error:
        return [error.message]
    if branch is None:
        return []
    parent = Path(os.path.normpath(lineage.parent_folder(run, branch.parent)))
    gone = "" if parent.is_dir() else ", which is not there any more"
    return [f"a branch of {parent} at step {branch.parent.step:,}{gone}: {branch.change}; --tree shows all branches"]


def _leftovers(run: Path) -> list[Path]:
    return [path for path in sorted(run.glob("step_*.*")) if path.is_dir() and path.suffix in _LEFT]


def _marks(run: Path) -> tuple[dict[str, str], list[str]]:
    """What LATEST and BEST name, and what is wrong with them."""
    marks, notes = {}, []
    for pointer in layout.POINTERS:
        try:
            if (name := layout.read_pointer(run, pointer)) is not None:
                marks[pointer] = name
        except CheckpointError as error:
            notes.append(error.message)
    return marks, notes


def _step_row(folder: Path, marks: Mapping[str, str], now: float | None) -> dict[str, Any]:
    trouble = layout.find_problem(folder)
    metrics = {} if trouble else layout.read_step_manifest(folder)["metrics"]
    return {
        "step": layout.step_of(folder.name),
        "name": folder.name,
        "loss": metrics.get("loss"),
        "val_loss": validation_losses(metrics),
        "bytes": folder_bytes(folder),
        "age_s": _age(folder, now),
        "complete": trouble is None,
        "problem": trouble,
        "marks": [pointer for pointer, name in marks.items() if name == folder.name],
    }


def validation_losses(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Validation losses by the name of their set; a single one without name is ``default``."""
    found = metrics.get("val_loss")
    if isinstance(found, Mapping):
        return dict(found)
    return {} if found is None else {"default": found}


def folder_bytes(folder: Path) -> int:
    """Size of all files below ``folder``."""
    return sum(layout.size_of(path) or 0 for path in folder.rglob("*"))


def _age(folder: Path, now: float | None) -> float:
    """Seconds since the checkpoint was finished (or begun, where it never was)."""
    marker = folder / layout.MANIFEST
    moment = (marker if marker.is_file() else folder).stat().st_mtime
    return max(0.0, (time.time() if now is None else now) - moment)


# ------------------------------------------------------------------------------------------ a checkpoint


def describe_checkpoint(folder: Path | str, *, now: float | None = None) -> dict[str, Any]:
    """Everything that manifest, JSON files and headers tell of one step.

    Raises:
        CheckpointError: it is incomplete, or its manifest or a header is damaged.
    """
    folder = Path(folder)
    manifest = layout.read_step_manifest(folder)
    facts = manifest["facts"]
    tensors = checkpoint_tensors(folder, manifest, "model")
    optimizer = checkpoint_tensors(folder, manifest, "optim")
    averages = checkpoint_tensors(folder, manifest, "ema")
    marks, notes = _marks(folder.parent)
    return {
        "kind": "checkpoint",
        "path": str(folder),
        "step": manifest["step"],
        "bytes": sum(record["bytes"] for record in manifest["files"]),
        "age_s": _age(folder, now),
        "problem": layout.find_problem(folder),
        "marks": [pointer for pointer, name in marks.items() if name == folder.name],
        "notes": notes,
        "save_format": manifest["save_format"],
        "loss": manifest["metrics"].get("loss"),
        "val_loss": validation_losses(manifest["metrics"]),
        "tied": manifest["tied"],
        **{key: facts.get(key) for key in _SHOWN_FACTS},
        **_counted(tensors, facts.get("param_roles") or {}, _vocab_size(facts.get("model") or {})),
        "optimizer_tensors": {"count": len(optimizer), "bytes": sum(one.num_bytes for one in optimizer)},
        "ema_tensors": {"count": len(averages), "bytes": sum(one.num_bytes for one in averages)},
        "average": manifest.get("average", []),
        "files": manifest["files"],
        "fingerprint": manifest["self"],
    }


def checkpoint_tensors(folder: Path, manifest: Mapping[str, Any], below: str) -> list[StoredTensor]:
    """What a step stores below ``model``, ``optim`` or ``ema``: from headers, or for torch_save the manifest."""
    names = [record["name"] for record in manifest["files"]]
    paths = [folder / name for name in names if name.startswith(below + "/") and name.endswith(SUFFIX)]
    if not paths:
        listed = manifest.get("tensors", {}).get(below, {})
        return [StoredTensor(name, dtype, tuple(shape), ()) for name, (dtype, shape) in listed.items()]
    return gather(paths)


def _counted(tensors: list[StoredTensor], roles: Mapping[str, str], vocab_size: int | None) -> dict[str, Any]:
    """The tensors as rows, and the number of parameters by role with padding rows of the vocabulary left out."""
    by_role: dict[str, int] = {}
    rows = []
    padding = 0
    for tensor in tensors:
        role = roles.get(tensor.name, "buffer") if roles else guess_role(tensor.name, len(tensor.shape))
        number = tensor.num_elements
        if vocab_size and role in ("embedding", "head") and tensor.shape and tensor.shape[0] > vocab_size:
            number = number // tensor.shape[0] * vocab_size
            padding += tensor.num_elements - number
        by_role[role] = by_role.get(role, 0) + number
        rows.append({**tensor.as_dict(), "bytes": tensor.num_bytes, "role": role})
    total = sum(number for role, number in by_role.items() if role != "buffer")
    return {"tensors": rows, "parameters": {"total": total, "by_role": by_role, "padding": padding}}


def _vocab_size(model: Mapping[str, Any]) -> int | None:
    inner = model.get("config")
    found = model.get("vocab_size") or (inner.get("vocab_size") if isinstance(inner, Mapping) else None)
    return found if isinstance(found, int) and found > 0 else None


def guess_role(name: str, dimensions: int) -> str:
    """What a parameter of an unknown model is probably for, by its name."""
    for role, marks in _ROLE_MARKS.items():
        if any(mark in name.lower() for mark in marks):
            return role
    if name.endswith("bias"):
        return "bias"
    return "matrix" if dimensions >= 2 else "other"


# ------------------------------------------------------------------------------------------ anybody's files


def weight_files(path: Path) -> list[Path]:
    """The safetensors file itself, or those of a folder."""
    return [path] if path.is_file() else sorted(path.glob(f"*{SUFFIX}"))


def _describe_safetensors(path: Path) -> dict[str, Any]:
    """One safetensors file."""
    return {
        "kind": "safetensors",
        "path": str(path),
        "bytes": path.stat().st_size,
        "metadata": read_header(path).metadata,
        **_counted(gather([path]), {}, None),
    }


def _describe_hf(folder: Path) -> dict[str, Any]:
    """A Hugging Face folder: configuration, tokenizer and the tensors of all its safetensors files."""
    config = _json_or_none(folder / "config.json") or {}
    tokenizer = _json_or_none(folder / "tokenizer_config.json")
    if tokenizer is not None:
        tokenizer = {key: tokenizer.get(key) for key in ("tokenizer_class", "eos_token", "bos_token")}
    weights = weight_files(folder)
    return {
        "kind": "hf",
        "path": str(folder),
        "bytes": folder_bytes(folder),
        "model": config,
        "tokenizer": tokenizer,
        "weight_files": [path.name for path in weights],
        "not_read": sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth")),
        **_counted(gather(weights), {}, _vocab_size(config)),
    }


def _json_or_none(path: Path) -> dict[str, Any] | None:
    try:
        content = read_json(path, CheckpointError)
    except CheckpointError:
        return None
    return content if isinstance(content, dict) else None
