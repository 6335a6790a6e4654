"""Is a checkpoint what was written, and are its values numbers? Every hash again, every tensor looked at; no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from automodel_cli import files
from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.hf.hashes import HASHES, read_hashes
from automodel_cli.checkpoint.inspect.describe import SUFFIX, gather, kind_of, weight_files
from automodel_cli.checkpoint.inspect.tensor_values import nonfinite
from automodel_cli.errors import CheckpointError
from automodel_cli.plain_text import for_shell

# (files done, files in all, the file being read)
Progress = Callable[[int, int, str], None]


def verify(path: Path | str, *, progress: Progress | None = None) -> dict[str, Any]:
    """Hash every file of a checkpoint again and look for NaN and infinity in every tensor.

    An exported Hugging Face folder has a list of hashes; anybody's folder and a single file have none: of those headers
    and values are checked, and that there is nothing to compare them with is said.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind == "run":
        raise CheckpointError(f"{path} is a run folder", "name one of its steps")
    problems: list[str] = []
    records, save_format = [], ""
    if kind == "checkpoint":
        try:
            manifest = layout.read_step_manifest(path)
            records, save_format = manifest["files"], manifest["save_format"]
        except CheckpointError as error:
            problems.append(error.message)
        names = [record["name"] for record in records]
    elif kind == "hf" and (found := _exported(path, problems)) is not None:
        records, names = found, [record["name"] for record in found]
    else:
        names = [item.name for item in weight_files(path)]
    root = path if path.is_dir() else path.parent
    hashed = 0
    for number, record in enumerate(records):
        if progress is not None:
            progress(number, len(names), record["name"])
        trouble = _hash_problem(root / record["name"], record)
        problems += [trouble] if trouble else []
        hashed += record["bytes"]
    weights = [root / name for name in names if name.endswith(SUFFIX)]
    odd, scanned = _odd_values([weight for weight in weights if weight.is_file()], problems)
    uncovered = _uncovered(path, names, manifests=kind == "checkpoint" or bool(records))
    if save_format == "torch_save" and not problems:
        more, number, missing = _odd_in_torch_save(path)
        odd, scanned, uncovered = odd + more, scanned + number, uncovered + missing
    return {
        "path": str(path),
        "ok": not problems and not odd,
        "files": len(names),
        "bytes_hashed": hashed,
        "tensors_scanned": scanned,
        "problems": problems,
        "nonfinite": odd,
        "not_covered": uncovered,
    }


def _exported(folder: Path, problems: list[str]) -> list[dict[str, Any]] | None:
    """The files that an export lists; of a damaged list nothing is believed."""
    try:
        return read_hashes(folder)
    except CheckpointError as error:
        problems.append(error.message)
        return None


def _uncovered(path: Path, names: list[str], *, manifests: bool) -> list[str]:
    """What no hash is kept of."""
    if not manifests:
        return [f"{len(names)} files: there are no hashes of them; headers and values were looked at"]
    below = {file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir()}
    return sorted(below - {layout.MANIFEST, HASHES, *names}) if names else []


def _odd_in_torch_save(folder: Path) -> tuple[list[dict[str, Any]], int, list[str]]:
    """As ``_odd_values`` for ``torch_save``, which torch alone can read; without it, what nobody has looked at."""
    try:
        # torch: a second to import, and not everywhere
        from automodel_cli.checkpoint.inspect.torch_values import odd_tensors
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        return [], 0, ["the values of the tensors: torch is needed to read this format"]
    return *odd_tensors(folder), []


def refuse_nonfinite(folder: Path) -> None:
    """Check that the stored weights of a step are numbers.

    Raises:
        CheckpointError: they are not.
    """
    manifest = layout.read_step_manifest(folder)
    names = [record["name"] for record in manifest["files"]]
    shards = [folder / name for name in names if name.startswith("model/") and name.endswith(SUFFIX)]
    odd = _odd_values(shards, [])[0]
    if manifest["save_format"] == "torch_save":
        odd = [row for row in _odd_in_torch_save(folder)[0] if row["file"].endswith("/model")]
    roles = manifest["facts"].get("param_roles", {})
    odd = [row for row in odd if row["tensor"] in roles]  # not masks of -inf
    if odd:
        raise CheckpointError(
            f"{folder} holds weights that are not finite: {len(odd)} tensors with NaN or infinity, "
            f"{odd[0]['tensor']!r} first",
            f"{layout.recovery_hint(folder)}; automodel inspect-ckpt {for_shell(folder.parent)} --verify checks all",
        )


def _hash_problem(path: Path, record: Mapping[str, Any]) -> str | None:
    size = layout.size_of(path)
    if size is None:
        return f"{path} is missing, or no regular file"
    if size != record["bytes"]:
        return f"{path} has {size:,} bytes, the manifest says {record['bytes']:,}"
    try:
        found = files.hash_file(path)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    if found == record["xxh3"]:
        return None
    return f"{path} is damaged: hash {found}, the manifest says {record['xxh3']}"


def _odd_values(paths: list[Path], problems: list[str]) -> tuple[list[dict[str, Any]], int]:
    """Shards with NaN or infinity, and how many tensors there are (shards of one are one)."""
    odd, scanned = [], set()
    for path in paths:
        try:
            tensors = gather([path])
        except CheckpointError as error:
            problems.append(error.message)
            continue
        for tensor in tensors:
            nan, infinite = nonfinite(tensor)
            scanned.add((path.parent, tensor.name))
            if nan or infinite:
                odd.append({"file": str(path), "tensor": tensor.name, "nan": nan, "inf": infinite})
    return odd, len(scanned)
