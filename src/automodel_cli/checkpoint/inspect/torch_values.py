"""Which tensors of a ``torch_save`` checkpoint hold NaN or infinity: one in memory at a time, read by torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from automodel_cli.checkpoint.storage.step_files import StepReader
from automodel_cli.checkpoint.storage.torch_save import StoredTensors


def odd_tensors(folder: Path) -> tuple[list[dict[str, Any]], int]:
    """A row for each odd tensor of a step, as ``verify`` has them, and how many tensors there are.

    Raises:
        CheckpointError: the files cannot be read.
    """
    reader = StepReader(folder)
    odd: list[dict[str, Any]] = []
    scanned = 0
    for below in ("model", "optim"):
        stored = StoredTensors(reader, below)
        scanned += len(stored.whole)
        for name in stored.whole:
            tensor = stored.read(name)
            nan, infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
            if nan or infinite:
                odd.append({"file": str(folder / below), "tensor": name, "nan": nan, "inf": infinite})
    return odd, scanned
