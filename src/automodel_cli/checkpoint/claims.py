"""A stored configuration says how large the model is: believed when the stored tensors are as large. No torch.

Without this a small file could ask for a model of any size: layers are built one by one, tables in one piece.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from automodel_cli import sizing
from automodel_cli.checkpoint import hf_bounds, layout
from automodel_cli.checkpoint.describe import checkpoint_tensors
from automodel_cli.errors import CheckpointError


def refuse_larger_than_stored(config: Mapping[str, Any], folder: Path) -> None:
    """Compare a ``model_config`` with the tensors of the step ``folder``, by their headers.

    Raises:
        CheckpointError: it asks for more than is there, or is no configuration.
    """
    tensors = checkpoint_tensors(folder, layout.read_step_manifest(folder), "model")
    held = sum(tensor.num_elements for tensor in tensors)
    where = f"{folder / layout.MANIFEST}: facts.model"
    if config.get("family") == "hf":
        # the model is built from this part alone; "shape" beside it holds counts
        shapes = {tensor.name: tensor.shape for tensor in tensors}
        hf_bounds.check_sizes({"config": config.get("config")}, shapes, where)
        return
    try:
        shape = sizing.shape_of(config)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        raise CheckpointError(
            f"{where} is no configuration of a model: {error!r}", layout.way_back(folder)
        ) from error
    if shape is not None and shape.stored_params > held:
        raise CheckpointError(
            f"{where} asks for {shape.stored_params:,} parameters, the files hold {held:,}",
            layout.way_back(folder),
        )


def refuse_larger_model(num_elements: int, folder: Path) -> None:
    """Compare a model that was built without storage with the tensors of the step ``folder``.

    Raises:
        CheckpointError: it has more elements than are there.
    """
    tensors = checkpoint_tensors(folder, layout.read_step_manifest(folder), "model")
    held = sum(tensor.num_elements for tensor in tensors)
    if num_elements > held:
        raise CheckpointError(
            f"{folder / layout.MANIFEST} describes a model of {num_elements:,} parameters, the files hold {held:,}",
            layout.way_back(folder),
        )
