"""Is a checkpoint what was written, and are its values numbers? Every hash again, every tensor looked at; no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.hf.hashes import HASHES, read_hashes
from automodel_cli.checkpoint.inspect.describe import SUFFIX, kind_of, weight_files
from automodel_cli.checkpoint.inspect.tensor_values import nonfinite
from automodel_cli.checkpoint.storage.step_files import StepReader
from automodel_cli.checkpoint.storage.tensor_file import gather
from automodel_cli.errors import CheckpointError

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
    manifest, problems = _listed(path, kind)
    reader = StepReader(path if path.is_dir() else path.parent, manifest=manifest)
    names = reader.names()
    for number, name in enumerate(names):
        if progress is not None:
            progress(number, len(names), name)
        try:
            reader.check(name)
        except CheckpointError as error:
            problems.append(error.message)
    if not names and kind != "checkpoint":
        names = [item.name for item in weight_files(path)]
    weights = [reader.folder / name for name in names if name.endswith(SUFFIX)]
    odd, scanned = _odd_values((weight for weight in weights if weight.is_file()), problems)
    uncovered = _uncovered(path, names, manifests=kind == "checkpoint" or bool(manifest["files"]))
    if manifest.get("save_format") == "torch_save" and not problems:
        more, number, missing = _odd_in_torch_save(reader)
        odd, scanned, uncovered = odd + more, scanned + number, uncovered + missing
    return {
        "path": str(path),
        "ok": not problems and not odd,
        "files": len(names),
        "bytes_hashed": sum(record["bytes"] for record in manifest["files"]),
        "tensors_scanned": scanned,
        "problems": problems,
        "nonfinite": odd,
        "not_covered": uncovered,
    }


def _listed(path: Path, kind: str) -> tuple[dict[str, Any], list[str]]:
    """The manifest of a step or an export, and what is wrong with it; of a damaged one nothing is believed."""
    try:
        if kind == "checkpoint":
            return layout.read_step_manifest(path), []
        return {"files": (read_hashes(path) if kind == "hf" else None) or []}, []
    except CheckpointError as error:
        return {"files": []}, [error.message]


def _uncovered(path: Path, names: list[str], *, manifests: bool) -> list[str]:
    """What no hash is kept of."""
    if not manifests:
        return [f"{len(names)} files: there are no hashes of them; headers and values were looked at"]
    below = {file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir()}
    return sorted(below - {layout.MANIFEST, HASHES, *names}) if names else []


def refuse_nonfinite(folder: Path) -> None:
    """Check that the stored weights of a step are numbers.

    Raises:
        CheckpointError: they are not.
    """
    reader = StepReader(folder)
    odd = _odd_values((folder / name for name in reader.names("model") if name.endswith(SUFFIX)), [])[0]
    if reader.manifest["save_format"] == "torch_save":
        odd = [row for row in _odd_in_torch_save(reader)[0] if row["file"].endswith("/model")]
    roles = reader.manifest["facts"].get("param_roles", {})
    if names := [row["tensor"] for row in odd if row["tensor"] in roles]:  # not masks of -inf
        raise layout.nonfinite_weights(folder, names)


def _odd_values(paths: Iterable[Path], problems: list[str]) -> tuple[list[dict[str, Any]], int]:
    """Shards with NaN or infinity, and how many tensors there are (shards of one are one)."""
    odd, scanned = [], set()
    for path in paths:
        try:
            tensors = gather([path])
        except CheckpointError as error:
            problems.append(error.message)
            continue
        for tensor in tensors:
            scanned.add((path.parent, tensor.name))
            odd += _row(path, tensor.name, *nonfinite(tensor))
    return odd, len(scanned)


def _odd_in_torch_save(reader: StepReader) -> tuple[list[dict[str, Any]], int, list[str]]:
    """As ``_odd_values`` for ``torch_save``, which torch alone can read; without it, what nobody has looked at."""
    try:
        # torch: a second to import, and not everywhere
        from automodel_cli.checkpoint.storage import formats
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        return [], 0, ["the values of the tensors: torch is needed to read this format"]
    odd: list[dict[str, Any]] = []
    scanned = 0
    for below in ("model", "optim", *(("ema",) if reader.names("ema") else ())):
        for name, stored in formats.scan(reader, below).items():
            tensor = formats.read_tensor(reader, stored)
            odd += _row(reader.folder / below, name, int(tensor.isnan().sum()), int(tensor.isinf().sum()))
            scanned += 1
    return odd, scanned, []


def _row(file: Path, tensor: str, nan: int, infinite: int) -> list[dict[str, Any]]:
    return [{"file": str(file), "tensor": tensor, "nan": nan, "inf": infinite}] if nan or infinite else []
