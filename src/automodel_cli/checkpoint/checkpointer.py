"""Saving a run and taking it up again: what goes into a step folder, in which order, and what is checked.

    step_00001000/
      model/shard-00001-model-00001-of-00001.safetensors, config.json
      optim/shard-00001-model-00001-of-00001.safetensors, optimizer.json
      state.json        step, the training state, the fast-path choices (a resume reuses them)
      loader.json       position in the data
      config.yaml       the effective configuration
      tokenizer/        a copy, so that the checkpoint can be used alone
      hf/               when consolidated: a folder that transformers loads
      manifest.json     last: size and xxh3 of every file above, facts, metrics, a hash of itself

Order of a save: write all of it into ``step_00001000.tmp`` (each file hashed and made durable), manifest,
rename, LATEST, BEST, retention. A process killed anywhere in between leaves the earlier checkpoint as it was.
Where storage differs (many ranks, saving in the background), only the first of these steps does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from automodel_cli.checkpoint import hf_format, layout, optimizer_state, sharded
from automodel_cli.checkpoint.step_files import StepReader, StepWriter
from automodel_cli.errors import CheckpointError

SAVE_FORMATS = ("safetensors", "torch_save")


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint said, besides the tensors it put into model and optimizer.

    ``changes``: a line for each optimizer setting that differs from the stored one (the run's own wins).
    """

    step: int
    path: Path
    state: dict[str, Any]
    loader_state: dict[str, Any]
    facts: dict[str, Any]
    metrics: dict[str, Any] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)


class Checkpointer:
    """Writes and reads the step folders of one run.

    Retention never touches a step that was there, and newer, when this run loaded its own: only what this
    object wrote or passed by may go.
    """

    def __init__(
        self,
        run_folder: Path | str,
        *,
        keep_last: int | None = None,
        keep_every: int | None = None,
        save_format: str = "safetensors",
        say: layout.Say | None = None,
    ) -> None:
        if keep_last is not None and keep_last < 1:
            raise CheckpointError(f"keep_last is {keep_last}, expected at least 1", "null keeps all")
        self.run_folder = Path(run_folder)
        self.keep_last = keep_last
        self.keep_every = keep_every
        self.save_format = save_format
        self._storage = _storage(save_format)
        self._say = say or (lambda line: None)
        self._protected = set(layout.list_steps(self.run_folder))

    # ------------------------------------------------------------------------------------------ saving

    def save(
        self,
        step: int,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer | None,
        state: Mapping[str, Any],
        loader_state: Mapping[str, Any],
        config_yaml: str,
        facts: Mapping[str, Any],
        tokenizer_folder: Path | None = None,
        metrics: Mapping[str, Any] | None = None,
        is_best: bool = False,
        consolidate: bool = False,
    ) -> Path:
        """Write everything under ``step_XXXXXXXX`` and let LATEST (and BEST) name it.

        A step of the same name (after a rewind) is replaced. ``consolidate`` adds ``hf/``, a folder that
        transformers loads; a model that has no such format is saved without, and says so.

        Raises:
            CheckpointError: the disk is full or broken; the temporary folder is gone, earlier steps are
            untouched.
        """
        target = layout.step_folder(self.run_folder, step)
        temporary = target.with_name(target.name + layout.TEMPORARY)
        with layout.saving(temporary):
            layout.sweep(self.run_folder)
            writer = StepWriter(temporary)
            stored = self._write_tensors(writer, model, optimizer)
            progress = {"step": step, "state": state, "fast_path": facts.get("fast_path")}
            writer.write_json("state.json", progress)
            writer.write_json("loader.json", loader_state)
            writer.write_text("config.yaml", config_yaml)
            if tokenizer_folder is not None:
                writer.copy_folder(tokenizer_folder, "tokenizer")
            if consolidate:
                self._write_hf(writer, model, tokenizer_folder)
            manifest = {"format": layout.FORMAT, "step": step, "facts": facts, "metrics": metrics or {}}
            writer.finish(_plain_json({**manifest, **stored}))
            layout.publish_step(temporary, target)
            layout.write_pointer(self.run_folder, "LATEST", target.name)
        self._point_best(target.name, is_best)
        self._protected.discard(step)
        layout.prune(
            self.run_folder,
            keep_last=self.keep_last,
            keep_every=self.keep_every,
            protected=self._protected,
            say=self._say,
        )
        return target

    def _write_tensors(
        self, writer: StepWriter, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None
    ) -> dict[str, Any]:
        """Write ``model/`` and ``optim/``; what the manifest says of them."""
        tensors, ties = sharded.split_ties(model_tensors(model))
        self._storage.save_tensors(tensors, writer, "model")
        if (model_config := getattr(model, "model_config", None)) is not None:
            writer.write_json("model/config.json", model_config())
        stored = {"model": tensors}
        if optimizer is not None:
            flat = optimizer_state.flatten(optimizer, names_by_id(model))
            self._storage.save_tensors(flat.tensors, writer, "optim")
            writer.write_json("optim/optimizer.json", flat.document)
            stored["optim"] = flat.tensors
        facts: dict[str, Any] = {"save_format": self.save_format, "tied": ties}
        if self._storage is not sharded:  # only torch could read names and shapes from those files
            facts["tensors"] = {name: _shapes(tensors) for name, tensors in stored.items()}
        return facts

    def _write_hf(self, writer: StepWriter, model: torch.nn.Module, tokenizer_folder: Path | None) -> None:
        """The consolidated copy is an extra: if anything but the disk fails, there is a checkpoint without it."""
        if not hf_format.has_format(model):
            self._say(f"{type(model).__name__} has no Hugging Face format: there will be no hf/")
            return
        try:
            hf_format.write_hf(model, writer, "hf", tokenizer_folder, say=self._say)
        except OSError:
            raise
        except Exception as error:  # transformers and tokenizers have no common class of errors
            writer.discard("hf")
            self._say(f"saved without hf/, which failed: {type(error).__name__}: {error}")

    def _point_best(self, name: str, is_best: bool) -> None:
        """BEST names this step, or stays, or goes when what it named was replaced by something else."""
        if is_best:
            layout.write_pointer(self.run_folder, "BEST", name)
            return
        step = layout.step_of(name)
        if step in self._protected and layout.read_pointer(self.run_folder, "BEST") == name:
            (self.run_folder / "BEST").unlink()
            self._say(
                f"BEST named the former {name}, which has just been replaced; it is set anew by the next best"
            )

    # ------------------------------------------------------------------------------------------ loading

    def load(
        self, path: Path | str, *, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None
    ) -> Loaded:
        """Fill ``model`` (and ``optimizer``) from a step folder; every file that is read is checked.

        Without an optimizer the optimizer's files and the consolidated copy are left unread, and weights may
        be cast to the model's type. When this raises, model and optimizer may be half-filled: do not use
        them.

        Raises:
            CheckpointError: a file is missing or damaged (its name is in the message, the newest older
            checkpoint
                in the hint), or the model or optimizer is not the one that was saved.
        """
        reader = StepReader(Path(path))
        skipped = () if optimizer is not None else ("optim/", "hf/")
        for name in reader.names():
            if not name.startswith(("model/", "optim/", *skipped)):
                reader.check(name)
        state = reader.read_json("state.json")
        self._read_model(reader, model, cast=optimizer is None)
        changes = self._read_optimizer(reader, model, optimizer) if optimizer is not None else []
        if Path(path).parent.resolve() == self.run_folder.resolve():
            self._protected = {step for step in layout.list_steps(self.run_folder) if step > state["step"]}
        return Loaded(
            step=state["step"],
            path=Path(path),
            state=state["state"],
            loader_state=reader.read_json("loader.json"),
            facts=reader.manifest["facts"],
            metrics=reader.manifest["metrics"],
            changes=changes,
        )

    def _read_model(self, reader: StepReader, model: torch.nn.Module, *, cast: bool) -> None:
        tensors, tied = model_tensors(model), reader.manifest["tied"]
        _, own_ties = sharded.split_ties(tensors)
        apart = [name for name, source in own_ties.items() if name not in tied and source not in tied]
        if apart:
            raise CheckpointError(
                f"{reader.folder}: {apart[0]!r} and {own_ties[apart[0]]!r} are one tensor in this run, "
                "but were stored as two",
                "set the model's weight tying as it was when the run was started",
            )
        wanted = {name: tensor for name, tensor in tensors.items() if name not in tied}
        _storage_of(reader).load_tensors(reader, "model", wanted, cast=cast)
        for name, source in tied.items():
            if name in tensors and source in wanted and name not in own_ties and source not in own_ties:
                tensors[name].copy_(tensors[source])

    def _read_optimizer(
        self, reader: StepReader, model: torch.nn.Module, optimizer: torch.optim.Optimizer
    ) -> list[str]:
        names, storage = names_by_id(model), _storage_of(reader)
        document = reader.read_json("optim/optimizer.json")
        optimizer_state.check_fits(document, optimizer, names)
        tensors = optimizer_state.targets(storage.scan(reader, "optim"), optimizer, names)
        storage.load_tensors(reader, "optim", tensors)
        return optimizer_state.restore(document, tensors, optimizer, names)


def _storage_of(reader: StepReader) -> Any:
    name = reader.manifest.get("save_format")
    if name not in SAVE_FORMATS:
        raise CheckpointError(
            f"{reader.folder} was saved as {name!r}, expected one of {', '.join(SAVE_FORMATS)}",
            "it was written by a newer version of this program",
        )
    return _storage(name)


def _storage(save_format: str) -> Any:
    """The module that writes and reads named tensors: ``save_tensors``, ``scan``, ``load_tensors``."""
    if save_format == "safetensors":
        return sharded
    if save_format == "torch_save":
        from automodel_cli.checkpoint import torch_save  # torch.distributed.checkpoint: a second to import

        return torch_save
    raise CheckpointError(f"unknown save format {save_format!r}", f"one of {', '.join(SAVE_FORMATS)}")


def model_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and saved buffers by name; the prefix that ``torch.compile`` adds to names is taken away."""
    tensors = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"the model keeps a {type(value).__name__} in {name!r}, which is no tensor",
                "such a module cannot be checkpointed without pickle",
            )
        tensors[name.replace("_orig_mod.", "")] = value.detach()
    return tensors


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {name: [sharded.dtype_name(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()}


def names_by_id(model: torch.nn.Module) -> dict[int, str]:
    """``id(parameter)`` to the name that :func:`model_tensors` gives it."""
    return {id(parameter): name.replace("_orig_mod.", "") for name, parameter in model.named_parameters()}


def _plain_json(value: Any) -> Any:
    """``value`` as it is after a round trip: string keys, lists, no NaN; only then does its hash hold."""

    def finite(item: Any) -> Any:
        if isinstance(item, float) and not math.isfinite(item):
            return None
        if isinstance(item, Mapping):
            return {str(key): finite(inner) for key, inner in item.items()}
        if isinstance(item, list | tuple):
            return [finite(inner) for inner in item]
        return item

    return json.loads(json.dumps(finite(value)))
