"""A checkpoint, a run folder or a Hugging Face folder -> model and tokenizer, ready to score or to speak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from automodel_cli import device as this_machine
from automodel_cli.assembly.own_model import build_own
from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.hf import bounds as hf_bounds
from automodel_cli.checkpoint.hf import format as hf_format
from automodel_cli.checkpoint.load_step import average_of, load_step
from automodel_cli.checkpoint.storage.step_files import StepReader
from automodel_cli.corpus.tokenizer import Tokenizer, load_tokenizer, open_tokenizer
from automodel_cli.distributed.world import World
from automodel_cli.errors import AutomodelError, CheckpointError, ConfigError
from automodel_cli.files import hash_bytes, hash_file
from automodel_cli.models.interface import CausalLM


@dataclass(frozen=True)
class LoadedModel:
    """A model with its weights, in eval mode, and the tokenizer found with it (None where there is none)."""

    model: CausalLM
    tokenizer: Tokenizer | None
    path: Path
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    averaged: bool = False  # the weights are the average that the checkpoint holds beside the last ones

    @property
    def stage(self) -> str:
        """``mid-training`` for a model that was trained on conversations, else ``pretraining``."""
        return str(self.facts.get("stage", "pretraining"))

    @property
    def separator_id(self) -> int | None:
        """What stood between the documents that the model was trained on; None where its checkpoint does not know."""
        found = (self.facts.get("tokenizer") or {}).get("separator_id")
        return found if found is not None and found < self.model.vocab_size else None

    def reads_with(self, named: str | None) -> tuple[Tokenizer, int | None]:
        """The tokenizer ``named``, else the model's own, and of the latter the id that stands between documents.

        Raises:
            ConfigError: there is none.
            DataError: the one named cannot be opened.
        """
        if named is not None:
            return open_tokenizer(named), None
        if self.tokenizer is None:
            raise ConfigError(f"{self.path} has no tokenizer, so no text can be read", "name one with --tokenizer")
        return self.tokenizer, self.separator_id


def load_model(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    trust: Sequence[str] = (),
    averaged: bool = False,
) -> LoadedModel:
    """Build the model that ``path`` describes and load its weights, hashes checked on the way.

    ``path`` is a checkpoint, a run folder (its LATEST) or a Hugging Face folder. Code is never taken from it; a model
    of somebody's own is built by the file that its configuration names, where ``trust`` names that file too.
    ``averaged``: take the average of the weights that the checkpoint holds.

    Raises:
        CheckpointError: nothing there that can be loaded, something damaged, no average, or code that nobody trusts.
    """
    folder = layout.checkpoint_at(path)
    notes: tuple[str, ...] = ()
    if folder is not None:
        manifest = layout.read_step_manifest(folder)
        facts = manifest["facts"]
        model, notes = _build(folder, manifest, trust)
        model.materialize(device, seed=0)
        load_step(folder, World.single(), model=model, averaged=averaged)
    else:
        refuse_unloadable(path, averaged=averaged)
        folder, facts = Path(path), {}
        model = hf_format.load_model(folder)
        model.to(device)
    model.to(dtype)
    model.eval()
    return LoadedModel(model, _tokenizer_beside(folder), folder, facts, notes, averaged)


def refuse_unloadable(path: str | Path, *, averaged: bool = False) -> None:
    """See that ``load_model`` has something to load, which costs nothing.

    Raises:
        CheckpointError: it has not.
    """
    if (step := layout.checkpoint_at(path)) is not None:
        if averaged:
            average_of(StepReader(step))
        return
    if not (Path(path) / "config.json").is_file():
        raise hf_format.nothing_to_load(Path(path))
    if averaged:
        raise CheckpointError(
            f"{path} is a Hugging Face folder, which holds one set of weights",
            "leave --ema out, or name the checkpoint that it was exported from",
        )


def _build(folder: Path, manifest: Mapping[str, Any], trust: Sequence[str]) -> tuple[CausalLM, tuple[str, ...]]:
    facts = manifest["facts"]
    config = facts.get("model", {})
    if facts.get("code") or config.get("family") == "foreign":
        return build_own(folder, facts, trust)
    return hf_bounds.build_claimed(config, folder, manifest, f"{layout.MANIFEST}: facts.model"), ()


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


def compute_precision(asked: str, loaded: LoadedModel, device: torch.device) -> str:
    """As asked; else fp32 for what was trained in fp32, and what the hardware does best for the rest."""
    best, _ = this_machine.choose_precision(asked, device)
    trained = (loaded.facts.get("precision") or {}).get("compute")
    return "fp32" if asked == "auto" and trained in ("fp32", "float32") else best


def describe_weights(loaded: LoadedModel) -> dict[str, Any]:
    """Which weights were scored, for the results file; ``weights`` is left out for a checkpoint's last ones."""
    return {
        "path": str(loaded.path),
        "step": layout.step_of(loaded.path.name),
        "fingerprint": _fingerprint(loaded.path),
        **({"weights": "ema"} if loaded.averaged else {}),
    }


def _fingerprint(checkpoint: Path) -> str:
    """Identity of the weights: the manifest's own hash, or a hash over the hashes of a Hugging Face folder."""
    if (checkpoint / layout.MANIFEST).is_file():
        return str(layout.read_step_manifest(checkpoint)["self"])
    names = sorted(path for path in checkpoint.iterdir() if path.suffix == ".safetensors")
    names += [path for path in (checkpoint / "config.json", checkpoint / "tokenizer.json") if path.is_file()]
    return hash_bytes("\n".join(f"{path.name} {hash_file(path)}" for path in names).encode())
