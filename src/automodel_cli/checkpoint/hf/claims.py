"""A stored configuration says how large the model is: believed when the stored tensors are as large.

Without this a small file could ask for a model of any size: layers are built one by one, tables in one piece. So the
numbers are compared with the tensors first, then the model is built without storage and compared again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.hf import bounds as hf_bounds
from automodel_cli.checkpoint.inspect.describe import checkpoint_tensors
from automodel_cli.checkpoint.storage.tensor_file import StoredTensor
from automodel_cli.errors import AutomodelError, CheckpointError
from automodel_cli.models.families import build_from_config, shape_of
from automodel_cli.models.interface import CausalLM


def build(config: Mapping[str, Any], folder: Path, manifest: Mapping[str, Any], where: str) -> CausalLM:
    """The model of a ``model_config()`` that lies in the step ``folder``, on the meta device.

    Args:
        where: the place of the configuration in the folder, for messages.

    Raises:
        CheckpointError: it asks for more than is there, or is no configuration of a model that can be built here.
    """
    tensors = _stored(folder, manifest)
    held = sum(tensor.num_elements for tensor in tensors)
    _refuse_larger(config, tensors, folder, where)
    try:
        model = build_from_config(config, is_meta_device=True)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder} describes a model that cannot be built here: {error}", layout.recovery_hint(folder)
        ) from error
    asked = sum(parameter.numel() for parameter in model.parameters())
    if asked > held:
        _refuse(asked, held, folder, where)
    return model


def _stored(folder: Path, manifest: Mapping[str, Any]) -> list[StoredTensor]:
    """The stored tensors; those that only the manifest tells of (torch_save) have to fit into the files."""
    tensors = checkpoint_tensors(folder, manifest, "model")
    claimed = sum(tensor.num_bytes for tensor in tensors)
    names = [record["name"] for record in manifest["files"]]
    files = sum(layout.size_of(folder / name) or 0 for name in names if name.startswith("model/"))
    if claimed > files:
        raise CheckpointError(
            f"{folder / layout.MANIFEST} lists {claimed:,} bytes of tensors, the files hold {files:,}",
            layout.recovery_hint(folder),
        )
    return tensors


def _refuse_larger(config: Mapping[str, Any], tensors: list[StoredTensor], folder: Path, where: str) -> None:
    """Raise a CheckpointError where the numbers of ``config`` are larger than the tensors."""
    if config.get("family") == "hf":
        # the model is built from this part alone; "shape" beside it holds counts
        shapes = {tensor.name: tensor.shape for tensor in tensors}
        hf_bounds.check_sizes({"config": config.get("config")}, shapes, f"{folder / where}")
        return
    try:
        shape = shape_of(config)
    except (AutomodelError, KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / where} is no configuration of a model: {error!r}", layout.recovery_hint(folder)
        ) from error
    held = sum(tensor.num_elements for tensor in tensors)
    if shape is not None and shape.stored_params > held:
        _refuse(shape.stored_params, held, folder, where)


def _refuse(asked: int, held: int, folder: Path, where: str) -> None:
    raise CheckpointError(
        f"{folder / where} asks for {asked:,} parameters, the files hold {held:,}",
        layout.recovery_hint(folder),
    )
