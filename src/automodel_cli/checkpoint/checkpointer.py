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

Order of a save: every rank writes its files into ``step_00001000.tmp`` (each hashed and made durable); when all
have, rank 0 adds the manifest, renames the folder, and sets LATEST and BEST; then retention. A process killed
anywhere in between leaves the earlier checkpoint as it was, and a failure on one rank is a failure on all.

A checkpoint is *proven* when its weights have given a finite loss since. Only the newest one can be unproven, as no
save follows a loss that is not finite (see ``PretrainRecipe``); until it is proven, the one before it stays.
In the background the same happens in a thread, from copies, over a process group of its own.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from automodel_cli.checkpoint import layout, optimizer_state
from automodel_cli.checkpoint.all_ranks import all_ranks, on_rank_zero
from automodel_cli.checkpoint.async_writer import Background
from automodel_cli.checkpoint.finite import nonfinite_parameters
from automodel_cli.checkpoint.hf import export as hf_export
from automodel_cli.checkpoint.hf import format as hf_format
from automodel_cli.checkpoint.snapshot import Snapshot, Staging, model_tensors, names_by_id, take, untied
from automodel_cli.checkpoint.storage import sharded
from automodel_cli.checkpoint.storage.formats import storage, storage_of
from automodel_cli.checkpoint.storage.step_files import StepReader, StepWriter
from automodel_cli.corpus.tokenizers.base import CARRIED_FILES
from automodel_cli.distributed.world import World
from automodel_cli.errors import CheckpointError
from automodel_cli.json_files import Count, FileModel
from automodel_cli.plain_text import for_shell


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


class Checkpointer:
    """Writes and reads the step folders of one run.

    Retention never touches a step that was there, and newer, when this run loaded its own: only what this
    object wrote or passed by may go. Nor does it touch the newest proven one.
    """

    def __init__(
        self,
        run_folder: Path | str,
        *,
        keep_last: int | None = None,
        keep_every: int | None = None,
        save_format: str = "safetensors",
        is_async: bool = False,
        world: World | None = None,
        say: layout.Say | None = None,
    ) -> None:
        if keep_last is not None and keep_last < 1:
            raise CheckpointError(f"keep_last is {keep_last}, expected at least 1", "null keeps all")
        self.run_folder = Path(run_folder)
        self.keep_last = keep_last
        self.keep_every = keep_every
        self.save_format = save_format
        self.is_async = is_async
        self.world = world or World.single()
        self._storage = storage(save_format)
        self._say = (say if self.world.is_main else None) or (lambda line: None)
        self._protected = set(layout.list_steps(self.run_folder))
        self._newest: Path | None = None  # saved or loaded last
        self._proven: Path | None = None
        self._background, self._staging = Background(), Staging()
        self._saving_world = _with_own_group(self.world) if is_async else self.world

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
        proven: bool = False,
        remark: str = "",
    ) -> Path:
        """Write everything under ``step_XXXXXXXX`` and let LATEST (and BEST) name it; all ranks call this.

        A step of the same name (after a rewind) is replaced. ``consolidate`` adds ``hf/``, a folder that
        transformers loads; a model that has no such format is saved without, and says so. With ``is_async``
        this returns when the values are copied (and the save before this one is done); see :meth:`wait`. The line
        that then says it is saved ends with ``remark``. ``proven``: these weights have given a finite loss already,
        on a validation set.

        Raises:
            CheckpointError: the disk is full or broken, or another rank failed; earlier steps are untouched. Of a
                save in the background: that one's.
        """
        started = time.perf_counter()
        self.wait()
        target = layout.step_folder(self.run_folder, step)
        snapshot = take(model, optimizer, self.world, what=f"saving {target.name}")
        texts = {
            "state.json": {"step": step, "state": state, "fast_path": facts.get("fast_path")},
            "loader.json": loader_state,
            "config.yaml": config_yaml,
        }
        manifest = {"format": layout.FORMAT, "step": step, "facts": facts, "metrics": metrics or {}}
        job = _Job(
            target=target,
            snapshot=snapshot,
            texts=texts,
            manifest=_plain_json({**manifest, **self._stored(snapshot)}),
            tokenizer_folder=tokenizer_folder,
            is_best=is_best,
            consolidate=consolidate and self._has_hf_format(model),
            before=self._course(target, proven),
            model=model if self.world.size == 1 and not self.is_async else None,
        )
        if not self.is_async:
            self._write(job)
            return target
        job = replace(job, snapshot=snapshot.staged(self._staging), texts=copy.deepcopy(texts))
        waited = time.perf_counter() - started
        self._background.start(
            lambda: self._write_behind(job, started, f"training waited {waited:.2f} s{remark}")
        )
        return target

    def prepare(self, *, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        """Make the page-locked buffers of saves in the background before the first of them: 1.5 GB take 2 s.

        All ranks call this, once the optimizer has its state.
        """
        if self.is_async and self.world.device.type == "cuda":
            take(model, optimizer, self.world, what="preparing saves").reserve(self._staging)

    # ------------------------------------------------------------------------------------------ proof

    def _course(self, target: Path, proven: bool) -> Path | None:
        """Note that ``target`` is saved after a finite loss; the checkpoint that must outlive it until it is proven."""
        if self._newest is not None and self._newest != target:
            self._proven = self._newest
        self._newest, before = target, self._proven
        if proven:
            self._proven = target
        return None if proven else before

    def confirm(self, step: int) -> None:
        """Update ``step`` has had a finite loss: the checkpoint it went on from is proven."""
        if self._newest is not None and step > (layout.step_of(self._newest.name) or 0):
            self._proven = self._newest

    def proven(self) -> Path | None:
        """The newest checkpoint of this course of the run that a finite loss has followed, or None."""
        if self._proven is None and self._newest is not None and self._newest.parent == self.run_folder:
            # Saves before the one that was loaded were followed by it, so by a finite loss.
            return layout.newest_good(self.run_folder, before=layout.step_of(self._newest.name))
        return self._proven

    def step_back(self) -> Path | None:
        """Let LATEST name the newest proven checkpoint, which is returned: what follows it led to no numbers.

        All ranks call this.
        """
        self.wait()
        good = self.proven()
        if good is not None and good.parent == self.run_folder and self.world.is_main:
            layout.write_pointer(self.run_folder, "LATEST", good.name)
        return good

    def _stored(self, snapshot: Snapshot) -> dict[str, Any]:
        """What the manifest says of the tensors."""
        facts: dict[str, Any] = {"save_format": self.save_format, "tied": snapshot.tied}
        if self._storage is not sharded:  # only torch could read names and shapes from those files
            facts["tensors"] = snapshot.shapes
        return facts

    def wait(self) -> None:
        """Return when no save is under way any more. All ranks call this at the same point of the run.

        Raises:
            CheckpointError: the save in the background failed.
        """
        self._background.wait()

    @property
    def failed(self) -> bool:
        """Whether this rank's save in the background has failed; ``wait``, called by all ranks, raises the reason."""
        return self._background.failed

    def _write_behind(self, job: _Job, started: float, remark: str) -> None:
        self._write(job)
        took = time.perf_counter() - started
        self._say(f"saved {job.target} in {took:.1f} s in the background; {remark}")

    def _write(self, job: _Job) -> None:
        """The whole of a save, on every rank."""
        world, what = self._saving_world, f"saving {job.target.name}"
        temporary = job.target.with_name(job.target.name + layout.TEMPORARY)
        writers: list[StepWriter] = []

        def begin() -> None:
            with layout.error_context(temporary):
                layout.remove_stale(self.run_folder)
                self._retain(job)  # what only waited for a proof goes before there is another to hold
                writers.append(StepWriter(temporary))

        def write() -> dict[str, Any]:
            with layout.error_context(temporary):
                if not world.is_main:
                    writers.append(_joined(temporary))
                notes = self._write_files(writers[0], job, world)
                return {"records": writers[0].records, "notes": notes}

        def publish() -> None:
            with layout.error_context(temporary):
                self._finish(writers[0], job, written)
                layout.publish_step(temporary, job.target)
                layout.write_pointer(self.run_folder, "LATEST", job.target.name)
            self._point_best(job.target.name, job.is_best)
            self._protected.discard(job.manifest["step"])
            self._retain(job)

        with layout.discarding(temporary) if world.is_main else contextlib.nullcontext():
            on_rank_zero(world, begin, what=what)
            written = all_ranks(world, write, what=what)
            on_rank_zero(world, publish, what=what)

    def _write_files(self, writer: StepWriter, job: _Job, world: World) -> dict[str, Any]:
        """One rank's tensors; of rank 0 also the documents. What the storage wants to know of every rank."""
        notes: dict[str, Any] = {}
        for folder, parts in job.snapshot.parts.items():
            notes[folder] = self._storage.save_parts(parts, writer, folder, world=world)
            for name, document in job.snapshot.documents.items():
                if world.is_main and name.startswith(folder + "/"):
                    writer.write_json(name, document)
        if world.is_main:
            for name, content in job.texts.items():
                write = writer.write_text if isinstance(content, str) else writer.write_json
                write(name, content)
            if job.tokenizer_folder is not None:
                writer.copy_files(job.tokenizer_folder, CARRIED_FILES, "tokenizer")
        return notes

    def _finish(self, writer: StepWriter, job: _Job, written: list[dict[str, Any]]) -> None:
        """Rank 0, when all have written: what is made of everybody's files, and the manifest."""
        for of_rank in written[1:]:
            writer.take_records(of_rank["records"])
        for folder in job.snapshot.parts:
            self._storage.finish([of_rank["notes"][folder] for of_rank in written], writer, folder)
        if job.consolidate:
            self._write_hf(writer, job)
        writer.finish(job.manifest)

    def _has_hf_format(self, model: torch.nn.Module) -> bool:
        if not hf_format.has_format(model):
            self._say("a model of your own has no Hugging Face format: there will be no hf/")
            return False
        return True

    def _write_hf(self, writer: StepWriter, job: _Job) -> None:
        """The consolidated copy is an extra: if anything but the disk fails, there is a checkpoint without it."""
        try:
            if job.model is not None:
                hf_format.write_hf(job.model, writer, "hf", job.tokenizer_folder, say=self._say)
            else:
                reader = StepReader(writer.folder, manifest={**job.manifest, "files": writer.records})
                hf_export.write(reader, writer, "hf", job.tokenizer_folder, say=self._say)
        except OSError:
            raise
        except Exception as error:  # transformers and tokenizers have no common class of errors
            writer.discard("hf")
            self._say(f"saved without hf/, which failed: {type(error).__name__}: {error}")

    def _retain(self, job: _Job) -> None:
        layout.prune(
            self.run_folder,
            keep_last=self.keep_last,
            keep_every=self.keep_every,
            protected=self._protected,
            needed=None if job.before is None else layout.step_of(job.before.name),
            say=self._say,
        )

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
                checkpoint in the hint), its weights are not finite, or the model or optimizer is not the one that
                was saved.
        """
        self.wait()
        path, world = Path(path), self.world
        is_own = path.parent.resolve() == self.run_folder.resolve()
        found: dict[str, Any] = {}

        def open_and_check() -> None:
            reader = found["reader"] = StepReader(path)
            found["state"] = _stored_state(reader)
            skipped = () if optimizer is not None else ("optim/", "hf/")
            others = [name for name in reader.names() if not name.startswith(("model/", "optim/", *skipped))]
            for name in others[world.rank :: world.size]:
                reader.check(name)
            found["loader"] = reader.read_json("loader.json")
            if world.is_main and is_own:
                steps, step = layout.list_steps(self.run_folder), found["state"].step
                found["newer"] = {newer for newer in steps if newer > step}

        all_ranks(world, open_and_check, what=f"loading {path}")
        reader, state = found["reader"], found["state"]
        self._read_model(reader, model, cast=optimizer is None)
        all_ranks(world, lambda: _refuse_nonfinite(path, model), what=f"loading {path}")
        changes = self._read_optimizer(reader, model, optimizer) if optimizer is not None else []
        self._protected = found.get("newer", self._protected)
        self._newest, self._proven = (self.run_folder / path.name if is_own else path), None
        return _loaded(reader, state, found["loader"], changes)

    def _read_model(self, reader: StepReader, model: torch.nn.Module, *, cast: bool) -> None:
        tensors, tied = model_tensors(model), reader.manifest["tied"]
        own_ties = _own_ties(reader, tensors, self.world)
        wanted = {name: tensor for name, tensor in tensors.items() if name not in tied}
        storage_of(reader).load_tensors(reader, "model", wanted, cast=cast, world=self.world)
        for name, source in tied.items():
            if name in tensors and source in wanted and name not in own_ties and source not in own_ties:
                tensors[name].copy_(tensors[source])

    def _read_optimizer(
        self, reader: StepReader, model: torch.nn.Module, optimizer: torch.optim.Optimizer
    ) -> list[str]:
        names, stored = names_by_id(model), storage_of(reader)
        document: dict[str, Any] = {}
        tensors: dict[str, torch.Tensor] = {}

        def prepare() -> None:
            document.update(optimizer_state.read_document(reader))
            tensors.update(_optimizer_targets(reader, document, optimizer, names))

        all_ranks(self.world, prepare, what=f"loading {reader.folder}")
        stored.load_tensors(reader, "optim", tensors, world=self.world)
        where = reader.folder / optimizer_state.DOCUMENT
        return optimizer_state.restore(document, tensors, optimizer, names, where=where)


def check_fits(
    path: Path, *, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> Loaded:
    """Whether :meth:`Checkpointer.load` would take ``path``, as far as documents and headers tell; no tensor is read.

    The model is whole, on any device. The optimizer, if any, is spoiled: it gets a state without values.

    Raises:
        CheckpointError: a file is missing, cut or damaged, or the model or optimizer is not the one that was saved.
    """
    if (trouble := layout.find_problem(path)) is not None:
        raise CheckpointError(trouble, layout.recovery_hint(path))
    reader = StepReader(path)
    state, tensors, stored = _stored_state(reader), model_tensors(model), storage_of(reader)
    _own_ties(reader, tensors, World.single())
    wanted = {name: tensor for name, tensor in tensors.items() if name not in reader.manifest["tied"]}
    sharded.compare(path / "model", stored.scan(reader, "model"), wanted, cast=optimizer is None)
    changes: list[str] = []
    if optimizer is not None:
        names, document = names_by_id(model), optimizer_state.read_document(reader)
        empty = _optimizer_targets(reader, document, optimizer, names)
        where = path / optimizer_state.DOCUMENT
        changes = optimizer_state.restore(document, empty, optimizer, names, where=where)
    return _loaded(reader, state, reader.read_json("loader.json"), changes)


def _loaded(reader: StepReader, state: StoredState, position: dict[str, Any], changes: list[str]) -> Loaded:
    return Loaded(
        step=state.step,
        path=reader.folder,
        state=state.state,
        loader_state=position,
        facts=reader.manifest["facts"],
        metrics=reader.manifest["metrics"],
        changes=changes,
        config_yaml=reader.read_bytes("config.yaml"),
    )


def _stored_state(reader: StepReader) -> StoredState:
    state = reader.read_model("state.json", StoredState)
    if state.step != reader.manifest["step"]:
        raise CheckpointError(
            f"{reader.folder / 'state.json'} is of step {state.step:,}, the manifest of {reader.manifest['step']:,}",
            layout.recovery_hint(reader.folder),
        )
    return state


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


def _optimizer_targets(
    reader: StepReader,
    document: Mapping[str, Any],
    optimizer: torch.optim.Optimizer,
    names: Mapping[int, str],
) -> dict[str, torch.Tensor]:
    """Empty tensors for the stored state, once it is known to be this optimizer's."""
    optimizer_state.check_fits(document, optimizer, names)
    return optimizer_state.targets(storage_of(reader).scan(reader, "optim"), optimizer, names)


@dataclass(frozen=True)
class _Job:
    """Everything that a save writes, gathered before it is written."""

    target: Path
    snapshot: Snapshot
    texts: dict[str, Any]
    manifest: dict[str, Any]
    tokenizer_folder: Path | None
    is_best: bool
    consolidate: bool
    before: Path | None  # the proven checkpoint that stays until this one is proven
    model: (
        torch.nn.Module | None
    )  # whole and unchanging until the save is done; else hf/ is made from the files


def _refuse_nonfinite(path: Path, model: torch.nn.Module) -> None:
    if odd := nonfinite_parameters(model):
        raise CheckpointError(
            f"{path} holds weights that are no numbers: {len(odd)} tensors with NaN or infinity, {odd[0]!r} first",
            f"{layout.recovery_hint(path)}; automodel inspect-ckpt {for_shell(path.parent)} --verify checks all",
        )


def _with_own_group(world: World) -> World:
    """The same ranks over a group that only the background uses: two threads may not share one."""
    return world if world.size == 1 else replace(world, cpu_group=dist.new_group(backend="gloo"))


def _joined(temporary: Path) -> StepWriter:
    """A writer into the folder that rank 0 has made.

    Raises:
        CheckpointError: it is not to be seen from here.
    """
    if not temporary.is_dir():
        raise CheckpointError(
            f"rank 0 made {temporary}, which is not there on {platform.node()}",
            "the run folder must be on a file system that all machines share",
        )
    return StepWriter(temporary, join=True)


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
