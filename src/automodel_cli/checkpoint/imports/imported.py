"""A model of another trainer under our names, and what the readers of such checkpoints share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from automodel_cli.errors import CheckpointError
from automodel_cli.json_files import Count
from automodel_cli.models.families import build_from_config
from automodel_cli.models.interface import CausalLM
from automodel_cli.plain_text import without_controls

Size = Annotated[Count, Field(ge=1)]
Weights = dict[str, Tensor]
_LONGEST = 400  # of a message: names in a file are as long as they like
WHAT = (
    "name nanoGPT's ckpt.pt, or a folder with lit_model.pth and model_config.yaml (litgpt) or "
    "consolidated.pth and params.json (lingua)"
)
NOT_HELD = (
    "our GPT-2 and Llama do not have that; make a Hugging Face folder of it with the trainer's own tools, "
    "which transformers may load"
)


@dataclass(frozen=True)
class Imported:
    """A model of one of our families, its weights under our names, in the logical vocabulary."""

    source: str
    family: str
    arguments: dict[str, Any]
    weights: Weights
    where: Path
    notes: tuple[str, ...] = ()

    def model(self) -> CausalLM:
        """The architecture on the meta device, once every weight is known to be there, in its shape, and no other.

        Raises:
            CheckpointError: one is missing, left over, or of another shape.
            ConfigError: sizes that no such model can have.
        """
        model = build_from_config({"family": self.family, **self.arguments}, is_meta_device=True)
        there = model.hf_tensors()
        shapes = {name: (there[name].rows or one.shape[0], *one.shape[1:]) for name, one in model.named_parameters()}
        problems = [f"the weight {name} is missing" for name in shapes.keys() - self.weights.keys()]
        problems += [f"{name} is not a weight of this model" for name in self.weights.keys() - shapes.keys()]
        problems += [
            f"{name} has shape {tuple(tensor.shape)}, expected {shapes[name]}"
            for name, tensor in self.weights.items()
            if name in shapes and tuple(tensor.shape) != shapes[name]
        ]
        refuse(self.where, sorted(problems))
        return model

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """The types of the weights."""
        return {name: tensor.dtype for name, tensor in self.weights.items()}

    def read(self, name: str) -> Tensor:
        """One weight.

        Raises:
            CheckpointError: it holds NaN or infinity.
        """
        if not self.weights[name].isfinite().all():
            raise CheckpointError(f"{self.where}: {name} holds NaN or infinity", "use a checkpoint from before that")
        return self.weights[name]


def weights_of(stored: Any, where: Path) -> Weights:
    """Names without what torch.compile puts before them -> tensors."""
    found = stored.get("model", stored) if isinstance(stored, dict) else None
    tensors = list(found.values()) if isinstance(found, dict) else []
    if found is None or not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise CheckpointError(f"{where} holds no model", WHAT)
    weights = {str(name).replace("_orig_mod.", ""): tensor for name, tensor in found.items()}
    asked, held = sum(tensor.nbytes for tensor in weights.values()), where.stat().st_size
    if asked > 2 * held:  # a tied head is one storage twice
        raise CheckpointError(f"{where} has {held:,} bytes, its weights {asked:,}: they share storage", NOT_HELD)
    if odd := [name for name, tensor in weights.items() if not tensor.is_floating_point()]:
        raise CheckpointError(
            f"{where}: {without_controls(odd[0][:_LONGEST])} holds whole numbers: quantized weights",
            "use the original weights",
        )
    return weights


def refuse(where: Path, problems: list[str]) -> None:
    """Nothing where there are no problems.

    Raises:
        CheckpointError: naming the first three.
    """
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        shown = without_controls("; ".join(problems[:3])[:_LONGEST])
        raise CheckpointError(f"{where}: {shown}{more}", NOT_HELD)


def layers_of(names: list[str]) -> int:
    """How many layers the names are of: one more than the largest number, as far as there are so many tensors."""
    numbers = {int(found[1]) for name in names if (found := re.match(r"\D*?\.(\d{1,9})\.", name))}
    return min(max(numbers, default=-1) + 1, len(names))


def check_sizes(where: Path, told: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Refuse sizes that a configuration tells and the tensors do not have."""
    differing = {key: value for key, value in found.items() if told.get(key) not in (None, value)}
    refuse(where, [f"{key} is {told[key]!r}, the weights have {value}" for key, value in differing.items()])


def size_of(weights: Weights, name: str, dimension: int, where: Path) -> int:
    """The size of a matrix in one of its two dimensions."""
    tensor = weights.get(name)
    if tensor is None or tensor.dim() != 2:
        raise CheckpointError(f"{where} has no matrix {name}", WHAT)
    return tensor.shape[dimension]


def renamed(weights: Weights, names: Mapping[str, str], where: Path) -> Weights:
    """By ``names``, {theirs: ours} with ``{}`` for the number of a layer."""
    found = {}
    for name, tensor in weights.items():
        number = re.search(r"\.(\d{1,9})\.", name)
        template = name if number is None else name.replace(f".{number[1]}.", ".{}.", 1)
        refuse(where, [f"{name} is not a weight of a Llama"] * (template not in names))
        found[names[template].format(number[1] if number else "")] = tensor
    return found


def llama(source: str, where: Path, weights: Weights, told: Mapping[str, Any]) -> Imported:
    """``told``: keywords of ``build_llama_model`` that no shape tells, and those that one does."""
    embedding, head = weights["embed_tokens.weight"], weights.get("lm_head.weight")
    tied = head is None or head.data_ptr() == embedding.data_ptr()
    if tied:
        weights = {name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}
    return Imported(source, "llama", {**told, "tie_word_embeddings": tied}, weights, where)


def llama_sizes(weights: Weights, where: Path) -> dict[str, int]:
    """The keywords of ``build_llama_model`` that shapes tell; ``weights`` have our names."""
    return {
        "vocab_size": size_of(weights, "embed_tokens.weight", 0, where),
        "hidden_size": size_of(weights, "embed_tokens.weight", 1, where),
        "intermediate_size": size_of(weights, "layers.0.mlp.gate_proj.weight", 0, where),
        "num_hidden_layers": layers_of(list(weights)),
    }
