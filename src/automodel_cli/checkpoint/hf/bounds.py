"""A stranger's configuration against the tensors that are there, before anything is built on its word.

A folder's weights are of a known size; a configuration that asks for more layers, width, experts or labels than they
can be is damaged or hostile, and building it would loop or allocate without end. Numbers that size nothing (positions
that are computed, ids, bases) are let through. So the numbers are compared with the tensors first, then the model is
built without storage and compared again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.inspect.describe import checkpoint_tensors
from automodel_cli.checkpoint.storage.tensor_file import StoredTensor, read_header
from automodel_cli.errors import AutomodelError, CheckpointError
from automodel_cli.models.families import build_from_config, shape_of
from automodel_cli.models.interface import CausalLM
from automodel_cli.plain_text import without_controls
from automodel_cli.sizing.shape import Shape

Shapes = Mapping[str, tuple[int, ...]]

_LAYERS = re.compile(
    r"num_(hidden_|encoder_|decoder_|dense_)?layers|n_layers?|num_nextn_predict_layers|first_k_dense_replace"
)
_NO_SIZE = re.compile(
    r".*(position|_ctx|_token_id|window|theta|base|seq|length|seed|scal|factor|limit|context|max_).*|.*_(id|index)"
)
_MOST_LABELS = 10_000
_AT_LEAST = 4_096  # numbers up to here cost nothing, whatever they count
_SPARE_ELEMENTS = 64 << 20  # padding of the vocabulary, masks and tables that no file holds
_WHAT_TO_DO = "the folder is damaged or not what it says; download or make it again"


def read_shapes(paths: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors in some safetensors files, from their headers.

    Raises:
        CheckpointError: a file cannot be read.
    """
    return {name: info.shape for path in paths for name, info in read_header(path).tensors.items()}


def check_sizes(config: Mapping[str, Any], shapes: Shapes, where: Path | str) -> None:
    """Refuse a configuration whose numbers are out of proportion to the tensors.

    Raises:
        CheckpointError: more layers than tensors, a width that no tensor has, or thousands of labels.
    """
    widest = max((size for shape in shapes.values() for size in shape), default=0)
    for key, value in _numbers(config):
        most = widest
        if key == "num_labels":
            most = _MOST_LABELS
        elif _LAYERS.fullmatch(key):
            most = len(shapes)
        elif _NO_SIZE.fullmatch(key) or abs(value) <= _AT_LEAST:
            continue
        if not -1 <= value <= most:
            raise CheckpointError(
                f"{where}: {without_controls(key)} is {_short(value)}, but the weights are {len(shapes):,} tensors "
                f"of at most {widest:,} rows or columns",
                _WHAT_TO_DO,
            )


def check_total(model: nn.Module, shapes: Shapes, where: Path | str) -> None:
    """Refuse a model (on the meta device) that would take far more memory than the tensors do.

    Raises:
        CheckpointError: it has more than twice their elements.
    """
    there = sum(map(math.prod, shapes.values()))
    asked = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    if asked > 2 * there + _SPARE_ELEMENTS:
        raise CheckpointError(
            f"{where} describes a model of {asked:,} numbers, but the weights are {there:,}", _WHAT_TO_DO
        )


def build_claimed(config: Mapping[str, Any], folder: Path, manifest: Mapping[str, Any], where: str) -> CausalLM:
    """The model of a ``model_config()`` that lies in the step ``folder``, on the meta device.

    Args:
        where: the place of the configuration in the folder, for messages.

    Raises:
        CheckpointError: it asks for more than is there, or is not a configuration of a model that can be built here.
    """
    tensors = _stored(folder, manifest)
    held = sum(tensor.num_elements for tensor in tensors)

    def refuse_more(asked: int) -> None:
        if asked > held:
            raise CheckpointError(
                f"{folder / where} asks for {asked:,} parameters, the files hold {held:,}",
                layout.recovery_hint(folder),
            )

    if config.get("family") == "hf":
        # the model is built from this part alone; "shape" beside it holds counts
        shapes = {tensor.name: tensor.shape for tensor in tensors}
        check_sizes({"config": config.get("config")}, shapes, f"{folder / where}")
    elif (shape := _shape(config, folder, where)) is not None:
        refuse_more(shape.stored_params)
    try:
        model = build_from_config(config, is_meta_device=True)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder} describes a model that cannot be built here: {error}", layout.recovery_hint(folder)
        ) from error
    refuse_more(sum(parameter.numel() for parameter in model.parameters()))
    return model


def _shape(config: Mapping[str, Any], folder: Path, where: str) -> Shape | None:
    try:
        return shape_of(config)
    except (AutomodelError, KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / where} is not a configuration of a model: {error!r}", layout.recovery_hint(folder)
        ) from error


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


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number of a configuration, and the key it is (in a list) below; fractions count nothing."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _numbers(item, str(name))
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item, key)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield key, value


def _short(value: int) -> str:
    return f"{value:,}" if abs(value) < 10**15 else "a number of many digits"
