"""A step folder put into a model and an optimizer; every file that is read is checked, on every rank."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from automodel_cli.checkpoint import layout, optimizer_state
from automodel_cli.checkpoint.all_ranks import all_ranks
from automodel_cli.checkpoint.snapshot import (
    model_tensors,
    names_by_id,
    nonfinite_parameters,
    trained_parameters,
    untied,
)
from automodel_cli.checkpoint.storage import formats
from automodel_cli.checkpoint.storage.step_files import StepReader
from automodel_cli.checkpoint.storage.tensor_file import StoredTensor
from automodel_cli.distributed.world import World
from automodel_cli.errors import CheckpointError
from automodel_cli.json_files import Count, FileModel


class StoredState(FileModel):
    """``state.json``."""

    step: Count
    state: dict[str, Any]


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
    config_yaml: bytes = b""


def load_step(
    path: Path,
    world: World,
    *,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    growing: Collection[str] = (),
    average: Mapping[str, torch.Tensor] | None = None,
    averaged: bool = False,
) -> Loaded:
    """Fill ``model`` (and ``optimizer``) from a step folder. All ranks call this.

    Without an optimizer the optimizer's files and the consolidated copy are left unread, and weights may be cast to
    the model's type. When this raises, model and optimizer may be half-filled: do not use them.

    Args:
        growing: tensors of which the checkpoint may hold only the first rows; the others stay as they are.
        average: what is filled with the average of the weights, by parameter name, where the checkpoint holds one.
        averaged: fill the model with that average instead of the last weights.

    Raises:
        CheckpointError: a file is missing or damaged (its name is in the message, the newest older checkpoint in the
            hint), its weights are not finite, or the model or optimizer is not the one that was saved.
    """
    what, found = f"loading {path}", list[tuple[StepReader, Loaded]]()

    def open_and_check() -> None:
        reader = StepReader(path)
        if optimizer is not None:
            _refuse_average(reader)
        skipped = ("model/", "optim/", "ema/", *(("hf/",) if optimizer is None else ()))
        others = [name for name in reader.names() if not name.startswith(skipped)]
        for name in others[world.rank :: world.size]:
            reader.check(name)
        found.append((reader, _documents(reader)))

    def refuse_nonfinite() -> None:
        if odd := nonfinite_parameters(model):
            raise layout.nonfinite_weights(path, odd)

    all_ranks(world, open_and_check, what=what)
    reader, loaded = found[0]
    _read_model(reader, model, world, cast=optimizer is None, growing=growing, averaged=averaged)
    if average is not None and loaded.state.get("ema") is not None:
        formats.load_tensors(reader, "ema", average, world=world)
    all_ranks(world, refuse_nonfinite, what=what)
    return loaded if optimizer is None else replace(loaded, changes=_read_optimizer(reader, model, optimizer, world))


def check_fits(
    path: Path,
    *,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    growing: Collection[str] = (),
    average: bool = False,
) -> Loaded:
    """Whether :func:`load_step` would take ``path``, as far as documents and headers tell; no tensor is read.

    The model is whole, on any device. The optimizer, if any, is spoiled: it gets a state without values. ``average``:
    the run keeps an average of the weights.

    Raises:
        CheckpointError: a file is missing, cut or damaged, or the model or optimizer is not the one that was saved.
    """
    if (trouble := layout.find_problem(path)) is not None:
        raise CheckpointError(trouble, layout.recovery_hint(path))
    reader = StepReader(path)
    if optimizer is not None:
        _refuse_average(reader)
    loaded, tensors = _documents(reader), model_tensors(model)
    _own_ties(reader, tensors, World.single())
    wanted = {name: tensor for name, tensor in tensors.items() if name not in reader.manifest["tied"]}
    stored = formats.scan(reader, "model")
    formats.compare(path / "model", stored, wanted, cast=optimizer is None, growing=growing)
    if average and loaded.state.get("ema") is not None:
        formats.compare(path / "ema", formats.scan(reader, "ema"), trained_parameters(model), cast=True)
    if optimizer is None:
        return loaded
    return replace(loaded, changes=_read_optimizer(reader, model, optimizer, World.single(), with_values=False))


def _refuse_average(reader: StepReader) -> None:
    """Say of an average of checkpoints that no run goes on from it."""
    if reader.manifest.get("average"):
        raise CheckpointError(
            f"{reader.folder} is an average of checkpoints: it holds no optimizer state to go on from",
            f"init_from: {reader.folder} begins a run with its weights, in another checkpoint_dir",
        )


def position_of(path: Path) -> dict[str, Any]:
    """Where a step was in its data, as its loader said.

    Raises:
        CheckpointError: it is damaged.
    """
    if (trouble := layout.find_problem(path)) is not None:
        raise CheckpointError(trouble, layout.recovery_hint(path))
    return StepReader(path).read_json("loader.json")


def _documents(reader: StepReader) -> Loaded:
    """What a step says beside its tensors."""
    state, manifest = reader.read_model("state.json", StoredState), reader.manifest
    if state.step != manifest["step"]:
        raise CheckpointError(
            f"{reader.folder / 'state.json'} is of step {state.step:,}, the manifest of {manifest['step']:,}",
            layout.recovery_hint(reader.folder),
        )
    return Loaded(
        step=state.step,
        path=reader.folder,
        state=state.state,
        loader_state=reader.read_json("loader.json"),
        facts=manifest["facts"],
        metrics=manifest["metrics"],
        config_yaml=reader.read_bytes("config.yaml"),
    )


def _read_model(
    reader: StepReader,
    model: torch.nn.Module,
    world: World,
    *,
    cast: bool,
    growing: Collection[str],
    averaged: bool,
) -> None:
    tensors, tied = model_tensors(model), reader.manifest["tied"]
    own_ties = _own_ties(reader, tensors, world)
    wanted = {name: tensor for name, tensor in tensors.items() if name not in tied}
    formats.load_tensors(reader, "model", wanted, cast=cast, growing=growing, world=world)
    if averaged:
        _read_average(reader, wanted, world)
    for name, source in tied.items():
        if name in tensors and source in wanted and name not in own_ties and source not in own_ties:
            tensors[name].copy_(tensors[source])


def _read_average(reader: StepReader, tensors: Mapping[str, torch.Tensor], world: World) -> None:
    """Put averages in the place of the weights that they are of."""
    stored: list[str] = []

    def look() -> None:
        stored.extend(average_of(reader))

    all_ranks(world, look, what=f"loading {reader.folder}")
    targets = {name: tensor for name, tensor in tensors.items() if name in stored}
    formats.load_tensors(reader, "ema", targets, cast=True, world=world)


def average_of(reader: StepReader) -> dict[str, StoredTensor]:
    """The averaged weights of a step.

    Raises:
        CheckpointError: it holds none.
    """
    if not reader.names("ema"):
        raise CheckpointError(
            f"{reader.folder} holds no averaged weights",
            "leave --ema out; a run keeps an average where its configuration has an ema section",
        )
    return formats.scan(reader, "ema")


def _own_ties(reader: StepReader, tensors: Mapping[str, torch.Tensor], world: World) -> dict[str, str]:
    """Which tensors of this run are one and the same; all of them are in the checkpoint too."""
    tied, own_ties = reader.manifest["tied"], untied(tensors, world)[1]
    apart = [name for name, source in own_ties.items() if name not in tied and source not in tied]
    if apart:
        raise CheckpointError(
            f"{reader.folder}: {apart[0]!r} and {own_ties[apart[0]]!r} are one tensor in this run, "
            "but were stored as two",
            "set the model's weight tying as it was when the run was started",
        )
    return own_ties


def _read_optimizer(
    reader: StepReader,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    world: World,
    *,
    with_values: bool = True,
) -> list[str]:
    """A line for each setting that differs from the stored one."""
    names = names_by_id(model)
    document: dict[str, Any] = {}
    tensors: dict[str, torch.Tensor] = {}

    def prepare() -> None:
        document.update(optimizer_state.read_document(reader))
        optimizer_state.check_fits(document, optimizer, names)
        tensors.update(optimizer_state.targets(formats.scan(reader, "optim"), optimizer, names))

    all_ranks(world, prepare, what=f"loading {reader.folder}")
    if with_values:
        formats.load_tensors(reader, "optim", tensors, world=world)
    where = reader.folder / optimizer_state.DOCUMENT
    return optimizer_state.restore(document, tensors, optimizer, names, where=where)
