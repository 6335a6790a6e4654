"""A stranger's ``config.json`` against the tensors that are there, before anything is built on its word.

A folder's weights are of a known size; a configuration that asks for more layers, width, experts or labels than they
can be is damaged or hostile, and building it would loop or allocate without end. Numbers that size nothing (positions
that are computed, ids, bases) are let through.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automodel_cli.checkpoint.storage.tensor_file import read_header
from automodel_cli.errors import CheckpointError
from automodel_cli.json_files import without_controls

if TYPE_CHECKING:
    from torch import nn

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
