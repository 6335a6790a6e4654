"""The order of a save, on every rank.

1. Rank 0 tidies up and makes ``step_00001000.tmp``.
2. Every rank writes its files into it, each hashed and made durable.
3. When all have, rank 0 adds ``hf/`` and the manifest, renames the folder, and lets LATEST name it.

A process killed anywhere in between leaves the earlier checkpoint as it was; a failure on one rank is one on all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic_core import from_json, to_json

from automodel_cli.checkpoint import layout, publishing
from automodel_cli.checkpoint.all_ranks import all_ranks, on_rank_zero
from automodel_cli.checkpoint.hf import export as hf_export
from automodel_cli.checkpoint.snapshot import Snapshot
from automodel_cli.checkpoint.storage.formats import TensorStorage
from automodel_cli.checkpoint.storage.step_files import StepReader, StepWriter
from automodel_cli.corpus.tokenizers.base import CARRIED_FILES
from automodel_cli.distributed.world import World


@dataclass(frozen=True)
class StepSave:
    """Everything that a save writes, gathered before it is written.

    Attributes:
        texts: by name, what rank 0 writes beside the tensors: text, or JSON.
        needed: the step that must outlive this one until it is proven.
        model: whole and unchanging until the save is done; without it hf/ is made from the files.
        then: called with the finished step on rank 0, before any step is deleted.
    """

    target: Path
    snapshot: Snapshot
    texts: dict[str, Any]
    manifest: dict[str, Any]
    tokenizer_folder: Path | None = None
    is_best: bool = False
    consolidate: bool = False
    needed: int | None = None
    model: torch.nn.Module | None = None
    then: Callable[[Path], object] | None = None


def write_step(
    save: StepSave,
    world: World,
    storage: TensorStorage,
    *,
    begin: Callable[[], object],
    end: Callable[[], object],
    say: layout.Say,
) -> None:
    """Write a whole step; rank 0 calls ``begin`` before there is a new folder, and ``end`` once LATEST names it.

    Raises:
        CheckpointError: the disk is full or broken, or another rank failed; earlier steps are untouched.
    """
    run, what = save.target.parent, f"saving {save.target.name}"
    temporary = save.target.with_name(save.target.name + layout.TEMPORARY)
    writers: list[StepWriter] = []

    def make_folder() -> None:
        with publishing.error_context(temporary):
            publishing.remove_stale(run)
            begin()
            writers.append(StepWriter(temporary))

    def write() -> dict[str, Any]:
        with publishing.error_context(temporary):
            if not world.is_main:
                writers.append(StepWriter(temporary, join=True))
            notes = _write_files(writers[0], save, world, storage)
            return {"records": writers[0].records, "notes": notes}

    def publish() -> None:
        with publishing.error_context(temporary):
            _finish(writers[0], save, storage, written, say)
            publishing.publish_step(temporary, save.target)
            layout.write_pointer(run, "LATEST", save.target.name)
        end()

    with publishing.discarding(temporary) if world.is_main else contextlib.nullcontext():
        on_rank_zero(world, make_folder, what=what)
        written = all_ranks(world, write, what=what)
        on_rank_zero(world, publish, what=what)


def _write_files(writer: StepWriter, save: StepSave, world: World, storage: TensorStorage) -> dict[str, Any]:
    """One rank's tensors; of rank 0 also the documents. What the storage wants to know of every rank."""
    notes: dict[str, Any] = {}
    for folder, shards in save.snapshot.shards.items():
        notes[folder] = storage.save_shards(shards, writer, folder, world=world)
    if world.is_main:
        for name, content in {**save.snapshot.documents, **save.texts}.items():
            write = writer.write_text if isinstance(content, str) else writer.write_json
            write(name, content)
        if save.tokenizer_folder is not None:
            writer.copy_files(save.tokenizer_folder, CARRIED_FILES, "tokenizer")
    return notes


def _finish(
    writer: StepWriter,
    save: StepSave,
    storage: TensorStorage,
    written: list[dict[str, Any]],
    say: layout.Say,
) -> None:
    """Rank 0, when all have written: what is made of everybody's files, and the manifest."""
    for of_rank in written[1:]:
        writer.take_records(of_rank["records"])
    for folder in save.snapshot.shards:
        storage.finish([of_rank["notes"][folder] for of_rank in written], writer, folder)
    if save.consolidate:
        _write_hf(writer, save, say)
    writer.finish(save.manifest)


def _write_hf(writer: StepWriter, save: StepSave, say: layout.Say) -> None:
    """The consolidated copy is an extra: if anything but the disk fails, there is a checkpoint without it."""
    try:
        if save.model is not None:
            weights = hf_export.in_memory(save.model)
            hf_export.write(save.model, weights, writer, "hf/", save.tokenizer_folder, say=say)
        else:
            reader = StepReader(writer.folder, manifest={**save.manifest, "files": writer.records})
            hf_export.write_step(reader, writer, "hf/", save.tokenizer_folder, say=say)
    except OSError:
        raise
    except Exception as error:  # transformers and tokenizers have no common class of errors
        writer.discard("hf")
        say(f"saved without hf/, which failed: {type(error).__name__}: {error}")


def plain_json(value: Any) -> Any:
    """``value`` as it is after a round trip: string keys, lists, no NaN; only then does its hash hold."""
    return from_json(to_json(value, inf_nan_mode="null", fallback=dict))
