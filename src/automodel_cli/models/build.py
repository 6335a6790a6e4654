"""A model again from the ``model_config()`` that a checkpoint carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule

from automodel_cli.errors import CheckpointError
from automodel_cli.models import hf
from automodel_cli.models.families import FAMILIES
from automodel_cli.models.interface import CausalLM

# Of these packages are all modules of a model that its configuration describes; liger_kernel computes the same.
KNOWN_PACKAGES = frozenset({"automodel_cli", "torch", "transformers", "liger_kernel"})


def needs_code(model: CausalLM) -> bool:
    """Whether only somebody's own code builds this model: a class of theirs is in it, if only a changed block."""
    known = model.model_config().get("family") in (*FAMILIES, "hf")
    return not (known and packages_of(model) <= KNOWN_PACKAGES)


def packages_of(model: nn.Module) -> set[str]:
    """Where the classes of a model and of all modules in it are from."""
    return {_written_class(module).__module__.partition(".")[0] for module in model.modules()}


def _written_class(module: nn.Module) -> type:
    """Its class as somebody wrote it: FSDP2 makes one of its own for each, in whatever module the call happened."""
    lineage = type(module).__mro__
    return lineage[lineage.index(FSDPModule) + 1] if FSDPModule in lineage else lineage[0]


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
        "it is a model of somebody's own, or another version of automodel wrote it",
    )
