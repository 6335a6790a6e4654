"""The architectures of ours that Hugging Face has too: one name (``family``, ``model_type``) in both worlds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from automodel_cli.models import gpt2, llama
from automodel_cli.models.interface import CausalLM


@dataclass(frozen=True)
class Family:
    """How to build one, and what its Hugging Face format is.

    Attributes:
        title: the name in messages.
        kind: the class of its models, which have ``hf_config()`` and ``hf_names()``.
        build: makes a model from keywords.
        config_from_hf: keywords of ``build`` for a ``config.json``; a CheckpointError where there are none.
        to_hf_state, to_hf_tensor: all weights, or one of ours by its name here, as such a folder has them.
    """

    title: str
    kind: type[CausalLM]
    build: Callable[..., CausalLM]
    config_from_hf: Callable[[Mapping[str, Any]], dict[str, Any]]
    to_hf_state: Callable[[Any], dict[str, Tensor]]
    to_hf_tensor: Callable[[Any, str, Tensor], Tensor]


FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        "GPT-2",
        gpt2.GPT2,
        gpt2.build_gpt2_model,
        gpt2.config_from_hf,
        gpt2.to_hf_state,
        gpt2.to_hf_tensor,
    ),
    "llama": Family(
        "Llama",
        llama.Llama,
        llama.build_llama_model,
        llama.config_from_hf,
        llama.to_hf_state,
        llama.to_hf_tensor,
    ),
}


def family_of(model: nn.Module) -> str | None:
    """The family of a model of ours, None of another one."""
    return next((name for name, family in FAMILIES.items() if isinstance(model, family.kind)), None)
