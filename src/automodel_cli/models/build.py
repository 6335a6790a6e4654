"""A model again from the ``model_config()`` that a checkpoint carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from automodel_cli.errors import CheckpointError
from automodel_cli.models import hf
from automodel_cli.models.families import FAMILIES
from automodel_cli.models.interface import CausalLM


def build_from_config(config: Mapping[str, Any], *, is_meta_device: bool = False) -> CausalLM:
    """The architecture that ``config`` describes, without meaningful weights.

    Raises:
        CheckpointError: the family is not known here, or cannot be rebuilt from JSON (a user's own module).
    """
    arguments = dict(config)
    family = arguments.pop("family", None)
    if family in FAMILIES:
        return FAMILIES[family].build(**arguments, is_meta_device=is_meta_device)
    if family == "hf":
        return hf.rebuild(arguments, is_meta_device=is_meta_device)
    raise CheckpointError(
        f"the model family {family!r} of this checkpoint is not known",
        "it is a model of your own, or another version of automodel wrote it: name its builder",
    )
