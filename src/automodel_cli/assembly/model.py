"""The model section: from a target to a built model with weights in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from automodel_cli import transformers_calls
from automodel_cli.checkpoint.hf import format as hf_format
from automodel_cli.config.targets.instantiate import built_arguments, instantiate
from automodel_cli.config.targets.target import Target
from automodel_cli.errors import ConfigError
from automodel_cli.models.init import derive_seed
from automodel_cli.models.interface import CausalLM

# Targets whose weights are read by each rank for itself.
_PRETRAINED = (
    "transformers.AutoModelForCausalLM.from_pretrained",
    "automodel_cli.models.hf.from_pretrained",
)
# How to load that the architecture alone can follow; with others (a revision, ...) transformers loads it all.
_KNOWN_ON_META = {"dtype", "torch_dtype", "attn_implementation", "trust_remote_code"}


def build_model(target: Target, *, seed: int, trust: Sequence[str] = (), on_meta: bool = False) -> CausalLM:
    """Build what ``model:`` names and give it the ``CausalLM`` interface.

    A user's own module draws its initial values in its constructor, so the generator is seeded before it is called.
    ``on_meta``: builders that can are asked to allocate nothing.

    Raises:
        ConfigError: the target is not one that the section allows, or it does not return a module.
    """
    torch.manual_seed(derive_seed(seed, "init"))
    _check_local_folder(target)
    if on_meta and (model := _on_meta(target, trust)) is not None:
        return model
    built = instantiate(target, "model", inject={"is_meta_device": True} if on_meta else None, trust=trust)
    if not isinstance(built, nn.Module):
        raise ConfigError(
            f"model._target_ {target.name} returned {type(built).__name__}, not a torch.nn.Module",
            "name a callable that returns the model",
        )
    return _wrapped(built, pretrained=target.name.endswith(".from_pretrained"))


def _wrapped(module: nn.Module, *, pretrained: bool = False) -> CausalLM:
    if isinstance(module, CausalLM):
        return module
    from automodel_cli.models.hf import wrap  # transformers: seconds

    return wrap(module, pretrained=pretrained)


def _check_local_folder(target: Target) -> None:
    """Of a pretrained model in a folder here: its configuration in proportion to its weights, before it is believed."""
    source, below = (target.arguments.get(key) for key in ("pretrained_model_name_or_path", "subfolder"))
    if target.name.endswith(".from_pretrained") and isinstance(source, str) and Path(source).is_dir():
        hf_format.check_folder(hf_format.find_folder(Path(source) / str(below or "")))


def _on_meta(target: Target, trust: Sequence[str]) -> CausalLM | None:
    """A transformers model without storage, where its target would allocate some; None for other targets."""
    if target.name in _PRETRAINED:
        arguments = built_arguments(target, "model", trust=trust)
        loading = set(arguments) & set(transformers_calls.MODEL_ARGUMENTS)
        if not loading <= _KNOWN_ON_META:
            return None
        from automodel_cli.models.hf import pretrained_on_meta  # transformers: seconds

        return pretrained_on_meta(**arguments)
    if target.name.startswith("transformers.") and target.name.endswith(".from_config"):
        with torch.device("meta"):
            built = instantiate(target, "model", trust=trust)
        return _wrapped(built)
    return None
