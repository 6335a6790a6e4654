"""A checkpoint, a run folder or a Hugging Face folder -> model and tokenizer, ready to score or to speak."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from automodel_cli.assembly.model import checkpoint_at
from automodel_cli.checkpoint import claims, hf_format, layout, nested_runs
from automodel_cli.checkpoint.checkpointer import Checkpointer
from automodel_cli.corpus.tokenizer import Tokenizer, load_tokenizer, open_tokenizer
from automodel_cli.errors import AutomodelError, CheckpointError
from automodel_cli.models.build import build_from_config
from automodel_cli.models.interface import CausalLM


@dataclass(frozen=True)
class LoadedModel:
    """A model with its weights, in eval mode, and the tokenizer found with it (None where there is none)."""

    model: CausalLM
    tokenizer: Tokenizer | None
    path: Path
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def separator_id(self) -> int | None:
        """What stood between the documents that the model was trained on; None where its checkpoint does not know."""
        found = (self.facts.get("tokenizer") or {}).get("separator_id")
        return found if found is not None and found < self.model.vocab_size else None


def load_model(
    path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> LoadedModel:
    """Build the model that ``path`` describes and load its weights, hashes checked on the way.

    ``path`` is a checkpoint, a run folder (its LATEST) or a Hugging Face folder. Code is never taken from it:
    a model of somebody's own class has to be evaluated through its own configuration.

    Raises:
        CheckpointError: nothing there that can be loaded, or something damaged.
    """
    folder = checkpoint_at(path)
    if folder is not None:
        facts = layout.read_step_manifest(folder)["facts"]
        claims.refuse_larger_than_stored(facts.get("model", {}), folder)
        model = _build(facts.get("model", {}), folder)
        model.materialise(device, seed=0)
        Checkpointer(folder.parent).load(folder, model=model)
    else:
        folder, facts = Path(path), {}
        if not (folder / "config.json").is_file():
            raise CheckpointError(
                f"{path} is no checkpoint, run folder or Hugging Face folder",
                nested_runs.way_down(folder)
                or "name a run folder, one of its steps, or a folder with config.json and *.safetensors",
            )
        model = hf_format.load_model(folder)
        model.to(device)
    model.to(dtype)
    model.eval()
    return LoadedModel(model, _tokenizer_beside(folder), folder, facts)


def _build(config: Mapping[str, Any], folder: Path) -> CausalLM:
    try:
        if config.get("family") == "hf":  # what its configuration amounts to, transformers knows alone
            empty = build_from_config(dict(config), is_meta_device=True)
            claims.refuse_larger_model(sum(one.numel() for one in empty.parameters()), folder)
        return build_from_config(dict(config))
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
        OverflowError,
        ZeroDivisionError,
    ) as error:
        raise CheckpointError(
            f"{folder} describes a model that cannot be built here: {error}",
            "a model of your own class is loaded through the Python recipe object, not by this command",
        ) from error


def _tokenizer_beside(folder: Path) -> Tokenizer | None:
    """``tokenizer/`` of a checkpoint, or the tokenizer files of a Hugging Face folder."""
    if (folder / "tokenizer").is_dir():
        return load_tokenizer(folder / "tokenizer")
    if (folder / "tokenizer.json").is_file():
        try:
            return open_tokenizer(str(folder))
        except AutomodelError:
            return None
    return None
