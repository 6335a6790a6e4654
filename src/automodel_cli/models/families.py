"""Model families that we build ourselves: a line each. The models themselves are imported when one is built.

A family is two files: its configuration, which imports no torch and is the schema of its YAML arguments, and its model.
Where Hugging Face has the family too it has one name (``family``, ``model_type``) in both worlds, but for ``gpt``.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from automodel_cli.errors import CheckpointError
from automodel_cli.sizing.shape import Shape

if TYPE_CHECKING:
    from automodel_cli.models.interface import CausalLM
    from automodel_cli.models.model_config import ModelConfig


FAMILIES: dict[str, str] = {
    "automodel_cli.models.gpt2.build_gpt2_model": "automodel_cli.models.gpt2_config.GPT2Config",
    "automodel_cli.models.gpt.build_gpt_model": "automodel_cli.models.gpt_config.GPTConfig",
    "automodel_cli.models.llama.build_llama_model": "automodel_cli.models.llama_config.LlamaConfig",
}
"""The builder, which files name as ``_target_`` -> the class of its arguments."""


@dataclass(frozen=True)
class Family:
    """One of them."""

    builder: str  # ``package.module.Name``
    config: type[ModelConfig]  # the class of its configuration

    def build(self, arguments: Mapping[str, Any], *, is_meta_device: bool = False) -> CausalLM:
        """A model without meaningful weights, from the builder's arguments."""
        model: CausalLM = _named(self.builder)(**arguments, is_meta_device=is_meta_device)
        return model


def family_named(name: Any) -> Family | None:
    """The family that checkpoints call ``name``; None where there is none of ours."""
    return next((family for family in _families() if family.config.family == name), None)


def family_reading(model_type: Any) -> Family | None:
    """The family that Hugging Face folders of this ``model_type`` become; None where there is none of ours."""
    return next((family for family in _families() if family.config.reads(model_type)), None)


def _families() -> Iterator[Family]:
    return (Family(builder, _named(config)) for builder, config in FAMILIES.items())


def _named(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def build_from_config(config: Mapping[str, Any], *, is_meta_device: bool = False) -> CausalLM:
    """A model again from the ``model_config()`` that a checkpoint carries, without meaningful weights.

    Raises:
        CheckpointError: the family is not known here, or cannot be rebuilt from JSON (a user's own module).
    """
    arguments = dict(config)
    name = arguments.pop("family", None)
    if family := family_named(name):
        return family.build(arguments, is_meta_device=is_meta_device)
    if name == "hf":
        model: CausalLM = _named("automodel_cli.models.hf.rebuild")(arguments, is_meta_device=is_meta_device)
        return model
    raise CheckpointError(
        f"the model family {name!r} of this checkpoint is not known",
        "it is a user-defined model, or another version of automodel wrote it",
    )


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """The shape of a ``model_config()``, which families that are not in the table carry under ``shape``; else None."""
    arguments = dict(config)
    if family := family_named(arguments.pop("family", None)):
        return family.config(**arguments).shape()
    return Shape(**config["shape"]) if "shape" in config else None
