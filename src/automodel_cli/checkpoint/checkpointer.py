"""Saving a run and taking it up again: what goes into a step folder (docs/formats.md), when, and which steps stay.

The order of a save is in ``save_step``, what may be deleted in ``retention``, what is checked on the way back in
``load_step``. In the background a save is the same, in a thread, from copies, over a process group of its own.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.all_ranks import in_thread, on_rank_zero
from automodel_cli.checkpoint.hf import export as hf_export
from automodel_cli.checkpoint.load_step import Loaded, load_step
from automodel_cli.checkpoint.retention import Retention
from automodel_cli.checkpoint.save_step import StepSave, plain_json, write_step
from automodel_cli.checkpoint.snapshot import Staging, take
from automodel_cli.checkpoint.storage.formats import storage
from automodel_cli.distributed.world import World


class Checkpointer:
    """Writes and reads the step folders of one run."""

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
        self.run_folder = Path(run_folder)
        self.save_format = save_format
        self.is_async = is_async
        self.world = world or World.single()
        self._storage = storage(save_format)
        self._say = (say if self.world.is_main else None) or (lambda line: None)
        self.retention = Retention(self.run_folder, keep_last=keep_last, keep_every=keep_every, say=self._say)
        self._save_behind: Future[None] | None = None
        self._staging = Staging()
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
        average: Mapping[str, torch.Tensor] | None = None,
        then: Callable[[Path], object] | None = None,
    ) -> Path:
        """Write everything under ``step_XXXXXXXX`` and let LATEST (and BEST) name it; all ranks call this.

        A step of the same name (after a rewind) is replaced. ``consolidate`` adds ``hf/``, a folder that
        transformers loads; a model that has no such format is saved without, and says so. With ``is_async``
        this returns when the values are copied (and the save before this one is done); see :meth:`wait`. The line
        that then says it is saved ends with ``remark``. ``proven``: these weights have given a finite loss already,
        on a validation set. ``average`` is that of the weights, by parameter name, where there is one. ``then`` is
        called with the finished step, on rank 0.

        Raises:
            CheckpointError: the disk is full or broken, or another rank failed; earlier steps are untouched. Of a
                save in the background: that one's.
        """
        started = time.perf_counter()
        self.wait()
        target = layout.step_folder(self.run_folder, step)
        snapshot = take(model, optimizer, self.world, what=f"saving {target.name}", average=average)
        manifest = {"format": layout.FORMAT, "step": step, "facts": facts, "metrics": metrics or {}}
        manifest |= {"save_format": self.save_format, "tied": snapshot.tied}
        if self.save_format != "safetensors":  # only torch could read names and shapes from those files
            manifest["tensors"] = snapshot.shapes
        save = StepSave(
            target=target,
            snapshot=snapshot,
            texts={
                "state.json": {"step": step, "state": state, "fast_path": facts.get("fast_path")},
                "loader.json": loader_state,
                "config.yaml": config_yaml,
            },
            manifest=plain_json(manifest),
            tokenizer_folder=tokenizer_folder,
            is_best=is_best,
            consolidate=consolidate and self._has_hf_format(model),
            needed=self.retention.saving(target, proven=proven),
            model=model if self.world.size == 1 and not self.is_async else None,
            then=then,
        )
        if not self.is_async:
            self._write(save)
            return target
        save = replace(save, snapshot=snapshot.staged(self._staging), texts=copy.deepcopy(save.texts))
        waited = time.perf_counter() - started
        self._save_behind = in_thread(
            lambda: self._write_behind(save, started, f"training waited {waited:.2f} s{remark}"), name="save"
        )
        return target

    def prepare(
        self,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer | None,
        average: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Make the page-locked buffers of saves in the background before the first of them: 1.5 GB take 2 s.

        All ranks call this, once the optimizer has its state.
        """
        if self.is_async and self.world.device.type == "cuda":
            take(model, optimizer, self.world, what="preparing saves", average=average).reserve(self._staging)

    def wait(self) -> None:
        """Return when no save is under way any more. All ranks call this at the same point of the run.

        Raises:
            CheckpointError: the save in the background failed.
        """
        if self._save_behind is not None:
            save, self._save_behind = self._save_behind, None
            save.result()

    @property
    def failed(self) -> bool:
        """Whether this rank's save in the background has failed; ``wait``, called by all ranks, raises the reason."""
        save = self._save_behind
        return save is not None and save.done() and save.exception() is not None

    def _has_hf_format(self, model: torch.nn.Module) -> bool:
        if not hf_export.has_format(model):
            self._say(f"{hf_export.why_not(model)}: there will be no hf/")
            return False
        return True

    def _write_behind(self, save: StepSave, started: float, remark: str) -> None:
        self._write(save)
        took = time.perf_counter() - started
        self._say(f"saved {save.target} in {took:.1f} s in the background; {remark}")

    def _write(self, save: StepSave) -> None:
        write_step(
            save,
            self._saving_world,
            self._storage,
            begin=lambda: self.retention.apply(save.needed),  # what only waited for a proof makes room first
            end=lambda: self._published(save),
            say=self._say,
        )

    def _published(self, save: StepSave) -> None:
        self._point_best(save.target.name, save.is_best)
        if save.then is not None:
            save.then(save.target)
        self.retention.protected.discard(save.manifest["step"])
        self.retention.apply(save.needed)

    def _point_best(self, name: str, is_best: bool) -> None:
        """BEST names this step, or stays, or goes when what it named was replaced by something else."""
        if is_best:
            layout.write_pointer(self.run_folder, "BEST", name)
            return
        replaced = layout.step_of(name) in self.retention.protected
        if replaced and layout.read_pointer(self.run_folder, "BEST") == name:
            (self.run_folder / "BEST").unlink()
            self._say(f"BEST named the former {name}, which has just been replaced; it is set anew by the next best")

    # ------------------------------------------------------------------------------------------ proof

    def confirm(self, step: int) -> None:
        """Update ``step`` has had a finite loss: the checkpoint it went on from is proven."""
        self.retention.confirm(step)

    def step_back(self) -> Path | None:
        """Let LATEST name the newest proven checkpoint, which is returned: what follows it led to no numbers.

        All ranks call this.
        """
        self.wait()
        good = self.retention.proven()
        if good is not None and good.parent == self.run_folder and self.world.is_main:
            layout.write_pointer(self.run_folder, "LATEST", good.name)
        return good

    # ------------------------------------------------------------------------------------------ loading

    def load(
        self,
        path: Path | str,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        average: Mapping[str, torch.Tensor] | None = None,
    ) -> Loaded:
        """Go on from a step folder, of this run or another; see :func:`load_step`. All ranks call this.

        Raises:
            CheckpointError: as :func:`load_step`.
        """
        self.wait()
        path = Path(path)
        loaded = load_step(path, self.world, model=model, optimizer=optimizer, average=average)
        if path.parent.resolve() != self.run_folder.resolve():
            self.retention.loaded(path, None)
            return loaded
        steps = on_rank_zero(self.world, lambda: layout.list_steps(self.run_folder), what=f"loading {path}")
        newer = {step for step in steps if step > loaded.step}
        self.retention.loaded(self.run_folder / path.name, newer)
        return loaded


def _with_own_group(world: World) -> World:
    """The same ranks over a group that only the background uses: two threads may not share one."""
    return world if world.size == 1 else replace(world, cpu_group=dist.new_group(backend="gloo"))
