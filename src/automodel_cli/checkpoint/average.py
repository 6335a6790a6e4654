"""One checkpoint from several of one model: the weighted mean of their weights, read and written tensor by tensor.

    OUT/LATEST                  names the step
    OUT/step_00001000/model/    the means; the step is the highest of those averaged
        state.json, loader.json, config.yaml, tokenizer/    as in that step, without counters
        manifest.json           as of any step, with ``average``: step, fingerprint and weight of each

Sums are taken in fp64 and stored in the type of the weights. Tensors that are no parameters (masks, counters) are those
of the highest step. There is no optimizer state: init_from takes such a checkpoint, a resume refuses it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.hf.export import new_folder
from automodel_cli.checkpoint.storage import sharded
from automodel_cli.checkpoint.storage.formats import read_tensor, scan
from automodel_cli.checkpoint.storage.step_files import StepReader, StepWriter
from automodel_cli.checkpoint.storage.tensor_file import StoredTensor, sharding_metadata
from automodel_cli.corpus.tokenizers.base import CARRIED_FILES
from automodel_cli.errors import CheckpointError

_SLAB = 1 << 20  # elements that are fp64 at a time beside the sum

# (tensors done, tensors in all, the one that is computed)
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Part:
    """A checkpoint that goes into an average."""

    reader: StepReader
    weight: float
    tensors: dict[str, StoredTensor]

    @classmethod
    def open(cls, folder: Path, weight: float) -> Part:
        """A step folder; every file that will be used is compared with its hash.

        Raises:
            CheckpointError: it is damaged.
        """
        reader = StepReader(folder)
        for name in (*reader.names("model"), *reader.names("tokenizer")):
            reader.check(name)
        return cls(reader, weight, scan(reader, "model"))

    @property
    def step(self) -> int:
        """Updates that it has had."""
        return int(self.reader.manifest["step"])


def write_average(parts: Sequence[Part], folder: Path, *, progress: Progress | None = None) -> Path:
    """Write the average of ``parts`` as a run folder of one step, which is returned; it appears when it is whole.

    Raises:
        CheckpointError: the folder exists, the parts hold different tensors, or a weight is not finite.
    """
    for part in parts[1:]:
        _refuse_other_tensors(parts[0], part)
    newest = max(parts, key=lambda part: part.step)
    name = layout.step_name(newest.step)
    num_bytes = sum(one.num_bytes for one in newest.tensors.values())
    layout.refuse_full_disk(folder.parent, num_bytes)
    with new_folder(folder) as outer:
        writer = StepWriter(outer.folder / name)
        _write_tensors(parts, newest, writer, progress)
        _write_documents(newest, writer)
        manifest = {key: newest.reader.manifest[key] for key in ("format", "step", "tied", "facts")}
        manifest |= {"save_format": "safetensors", "metrics": {}, "average": _provenance(parts)}
        writer.finish(manifest)
        layout.write_pointer(outer.folder, "LATEST", name)
    return folder / name


def _provenance(parts: Sequence[Part]) -> list[dict[str, object]]:
    return [{"step": part.step, "fingerprint": part.reader.manifest["self"], "weight": part.weight} for part in parts]


def _refuse_other_tensors(one: Part, other: Part) -> None:
    ours, theirs = ({name: (t.dtype, list(t.shape)) for name, t in part.tensors.items()} for part in (one, other))
    tied = one.reader.manifest["tied"], other.reader.manifest["tied"]
    if ours == theirs and tied[0] == tied[1]:
        return
    odd = next((name for name in sorted(ours | theirs) if ours.get(name) != theirs.get(name)), "the tied weights")
    found = [" ".join(map(str, held[odd])) if odd in held else "not there" for held in (ours, theirs)]
    raise CheckpointError(
        f"{one.reader.folder} and {other.reader.folder} differ in {odd!r}: {found[0]}, {found[1]}",
        "average checkpoints of one model",
    )


def _write_tensors(parts: Sequence[Part], newest: Part, writer: StepWriter, progress: Progress | None) -> None:
    tensors = newest.tensors
    parameters = newest.reader.manifest["facts"].get("param_roles") or tensors
    shapes = {name: (sharded.DTYPES[one.dtype], one.shape) for name, one in tensors.items()}
    done = 0

    def values(name: str) -> torch.Tensor:
        nonlocal done
        if progress is not None:
            progress(done, len(shapes), name)
        done += 1
        if name in parameters and shapes[name][0].is_floating_point:
            return mean_of(parts, name)
        return read_tensor(newest.reader, tensors[name])

    metadata = sharding_metadata({name: (0,) * len(one.shape) for name, one in tensors.items()})
    with writer.open(f"model/{sharded.shard_name()}") as output:
        sharded.write_stream(shapes, values, output, metadata=metadata)


def mean_of(parts: Sequence[Part], name: str) -> torch.Tensor:
    """The weighted mean of one parameter, summed in fp64, in the type that it is stored in.

    Raises:
        CheckpointError: it is not finite in one of them.
    """
    stored = parts[0].tensors[name]
    total = torch.zeros(stored.num_elements, dtype=torch.float64)
    for part in parts:
        _add(total, part, name)
    total /= sum(part.weight for part in parts)
    return total.to(sharded.DTYPES[stored.dtype]).reshape(stored.shape)


def _add(total: torch.Tensor, part: Part, name: str) -> None:
    """Add one checkpoint's weighted values; they are forgotten before the next ones are read."""
    values = read_tensor(part.reader, part.tensors[name]).reshape(-1)
    for sums, slab in zip(total.split(_SLAB), values.split(_SLAB), strict=True):
        wide = slab.double()
        if not wide.isfinite().all():
            raise layout.nonfinite_weights(part.reader.folder, [name])
        sums.add_(wide, alpha=part.weight)


def _write_documents(newest: Part, writer: StepWriter) -> None:
    """What a checkpoint has beside its tensors. Counters are left out: they are for going on."""
    reader = newest.reader
    state = reader.read_json("state.json")
    writer.write_json("state.json", {**state, "state": {}})
    for name in ("loader.json", "config.yaml", "model/config.json"):
        if name in reader.names():
            writer.write_bytes(name, reader.read_bytes(name))
    if (reader.folder / "tokenizer").is_dir():
        writer.copy_files(reader.folder / "tokenizer", CARRIED_FILES, "tokenizer")
