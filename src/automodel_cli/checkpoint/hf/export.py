"""A model as a Hugging Face folder: from memory, from the shards of a step, or from another trainer's checkpoint.

    config.json, generation_config.json
    model.safetensors                  or model-00001-of-0000N.safetensors with model.safetensors.index.json
    tokenizer.json, tokenizer_config.json, automodel_tokenizer.json, ...
    automodel_files.json               hashes of all these

The model gives names and shapes, on the meta device unless it is in memory anyway; each tensor is then read from its
source, brought into the form that it has in such a folder, written, and forgotten. No process group, no device.

Some transformers models are stored otherwise than they are computed (experts in one tensor here, in many there).
Where that is more than other names, transformers has to do it, with the whole model in memory.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from automodel_cli.checkpoint import layout, publishing
from automodel_cli.checkpoint.hf import claims
from automodel_cli.checkpoint.hf import config as hf_config
from automodel_cli.checkpoint.hf import hashes as hf_hashes
from automodel_cli.checkpoint.hf import tokenizer as hf_tokenizer
from automodel_cli.checkpoint.hf.format import INDEX
from automodel_cli.checkpoint.imports.trainers import Imported
from automodel_cli.checkpoint.storage import sharded
from automodel_cli.checkpoint.storage.formats import storage_of
from automodel_cli.checkpoint.storage.step_files import StepReader, StepWriter
from automodel_cli.errors import CheckpointError
from automodel_cli.files import TEMP_SUFFIX, fsync_folder, publish
from automodel_cli.json_files import without_controls
from automodel_cli.models.external import KNOWN_PACKAGES, packages_of
from automodel_cli.models.families import family_named
from automodel_cli.models.hf import HFCausalLM
from automodel_cli.models.init import is_on_meta
from automodel_cli.models.interface import CausalLM, HFTensor

MAX_FILE_BYTES = 5_000_000_000
_WITH_CODE = KNOWN_PACKAGES | {"transformers_modules"}  # a repository's own code

# (files checked, files in all, the file that is read)
Progress = Callable[[int, int, str], None]


class Source(Protocol):
    """Where the weights of a model are, by its own names."""

    def dtype(self, name: str) -> torch.dtype:
        """The type of a weight."""

    def read(self, name: str) -> torch.Tensor:
        """One weight, whole."""


def has_format(model: torch.nn.Module) -> bool:
    """Whether ``model`` can be written as a Hugging Face folder."""
    return isinstance(model, CausalLM) and model.has_hf_format and packages_of(model) <= _WITH_CODE


# ------------------------------------------------------------------------------------------ whole folders


def export(
    checkpoint: Path, folder: Path, *, progress: Progress | None = None, say: layout.Say | None = None
) -> Path:
    """Write the model of a step as a folder that transformers loads; it appears when it is whole.

    Every file that is used is compared with its hash first.

    Raises:
        CheckpointError: the folder exists, the checkpoint is damaged, or its model has no such format.
    """
    reader = StepReader(checkpoint)
    used = [*reader.names("model"), *reader.names("tokenizer")]
    for number, name in enumerate(used):
        if progress is not None:
            progress(number, len(used), name)
        reader.check(name)
    tokenizer = checkpoint / "tokenizer"
    with _new_folder(folder) as writer:
        write(reader, writer, "", tokenizer if tokenizer.is_dir() else None, say=say)
    return folder


def export_imported(
    found: Imported, folder: Path, tokenizer_folder: Path | None = None, *, say: layout.Say | None = None
) -> Path:
    """The same for the checkpoint of another trainer.

    Raises:
        CheckpointError: the folder exists, or the weights are not those of the model.
    """
    model = found.model()
    with _new_folder(folder) as writer:
        write_model(model, found, writer, "", tokenizer_folder, say=say)
    return folder


def save_hf(model: torch.nn.Module, folder: Path | str, tokenizer_folder: Path | None = None) -> Path:
    """The same for a model in memory.

    Raises:
        CheckpointError: the model has no such format, the folder exists, or the disk is full.
    """
    with _new_folder(Path(folder)) as writer:
        write_hf(model, writer, "", tokenizer_folder)
    return Path(folder)


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[StepWriter]:
    """Writes files into a folder that appears when all are there.

    Raises:
        CheckpointError: it exists.
    """
    refuse_existing(folder)
    # with the process in its name: another export may be writing to the same folder
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}{TEMP_SUFFIX}")
    with publishing.saving(temporary):
        yield (writer := StepWriter(temporary))
        fsync_folder(writer.folder)
        publish(temporary, folder)


def refuse_existing(folder: Path) -> None:
    """Raise a CheckpointError where there is something at ``folder``."""
    if folder.exists():
        raise CheckpointError(f"{folder} exists already", "name a new folder, or move that one away")


# ------------------------------------------------------------------------------- parts of another folder


def write(
    reader: StepReader,
    writer: StepWriter,
    below: str,
    tokenizer_folder: Path | None = None,
    *,
    say: layout.Say | None = None,
) -> None:
    """Write the files of such a folder, from those of a step, below ``below`` of a folder that is being written.

    Raises:
        CheckpointError: the model has no such format.
    """
    config = reader.read_json("model/config.json") if "model/config.json" in reader.names() else {}
    code = reader.manifest["facts"].get("code")
    if code or not (config.get("family") == "hf" or family_named(config.get("family"))):
        builder = f", built by {without_controls(code['target'])}," if code else ""
        raise CheckpointError(
            f"{reader.folder}: a user-defined model{builder} has no Hugging Face format",
            f"its weights are safetensors by its own names, in {reader.folder / 'model'}",
        )
    source = _StoredWeights(reader)
    model = claims.build(config, reader.folder, reader.manifest, "model/config.json")
    write_model(model, source, writer, below, tokenizer_folder, say=say)


def write_hf(
    model: torch.nn.Module,
    writer: StepWriter,
    below: str,
    tokenizer_folder: Path | None = None,
    *,
    say: layout.Say | None = None,
) -> None:
    """The same from a model in memory.

    Raises:
        CheckpointError: the model has no such format.
    """
    if not isinstance(model, CausalLM):
        raise _no_format()
    write_model(model, _WeightsInMemory(model), writer, below, tokenizer_folder, say=say)


def write_model(
    model: CausalLM,
    source: Source,
    writer: StepWriter,
    below: str,
    tokenizer_folder: Path | None = None,
    *,
    say: layout.Say | None = None,
) -> None:
    """The same from wherever the weights are.

    Raises:
        CheckpointError: the model has no such format.
    """
    if not has_format(model):
        raise _no_format()
    ids, place = hf_config.special_ids(tokenizer_folder), _join(below, "")
    config = model.hf_config()
    if config is not None:
        dtype = max((source.dtype(name) for name in model.hf_tensors()), key=lambda one: one.itemsize)
        hf_config.write({**config, "dtype": _spelled(dtype)}, ids, writer, place)
        write_entries(_own_entries(model, source), writer, below)
    else:
        assert isinstance(model, HFCausalLM)
        _write_transformers(model, source, writer, below)
        hf_config.amend(ids, writer, place)
    if tokenizer_folder is not None:
        for name, content in hf_tokenizer.files_of(tokenizer_folder, say=say):
            writer.write_bytes(place + name, content)
    hf_hashes.write_hashes(writer, place)


def _no_format() -> CheckpointError:
    return CheckpointError(
        "a model of your own has no Hugging Face format",
        "GPT-2, Llama and the causal language models of transformers have one",
    )


def _spelled(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _join(below: str, name: str) -> str:
    return f"{below}/{name}" if below else name


# ---------------------------------------------------------------------------------------------- sources


class _WeightsInMemory:
    """The tensors of a model itself."""

    def __init__(self, model: CausalLM) -> None:
        self._state = model.state_dict()

    def dtype(self, name: str) -> torch.dtype:
        return self._state[name].dtype

    def read(self, name: str) -> torch.Tensor:
        return self._state[name]


class _StoredWeights:
    """The tensors of a step, tied ones under each of their names."""

    def __init__(self, reader: StepReader) -> None:
        self._stored = storage_of(reader).StoredTensors(reader, "model")
        self._tied = reader.manifest["tied"]
        self._folder = reader.folder

    def dtype(self, name: str) -> torch.dtype:
        return self._stored.whole[self._name(name)].dtype

    def read(self, name: str) -> torch.Tensor:
        return self._stored.read(self._name(name))

    def _name(self, name: str) -> str:
        stored = self._tied.get(name, name)
        if stored not in self._stored.whole:
            raise CheckpointError(
                f"{self._folder} holds no {name!r}", "its model/config.json describes another model"
            )
        return stored


# ---------------------------------------------------------------------------------------------- entries


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: its type and shape, and how to get its values when their turn comes."""

    dtype: torch.dtype
    shape: Sequence[int]
    values: Callable[[], torch.Tensor]

    @classmethod
    def of(cls, source: Source, ours: str, shape: Sequence[int], there: HFTensor) -> Entry:
        """The weight that is called ``ours`` in its source."""
        return cls(source.dtype(ours), shape, lambda: there.values(source.read(ours)))

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _own_entries(model: CausalLM, source: Source) -> dict[str, Entry]:
    own = model.state_dict()
    entries = {
        there.name: Entry.of(source, ours, there.shape(own[ours]), there)
        for ours, there in model.hf_tensors().items()
    }
    for name, zeros in model.hf_zeros().items():
        entries[name] = Entry(zeros.dtype, zeros.shape, partial(torch.zeros_like, zeros, device="cpu"))
    return entries


def _write_transformers(model: HFCausalLM, source: Source, writer: StepWriter, below: str) -> None:
    state = model.hf.state_dict()
    for name in model.hf._keys_to_ignore_on_save or ():
        state.pop(name, None)
    state = remove_tied_weights_from_state_dict(state, model.hf)
    ours = {id(tensor): f"hf.{name}" for name, tensor in state.items()}
    converted = revert_weight_conversion(model.hf, dict(state))
    if any(id(tensor) not in ours for tensor in converted.values()):
        _write_whole(model, source, writer, below)
        return
    entries = {
        name: Entry.of(source, ours[id(tensor)], tensor.shape, HFTensor(name))
        for name, tensor in converted.items()
    }
    dtype = next((entry.dtype for entry in entries.values() if entry.dtype.is_floating_point), torch.float32)
    model.hf.config.dtype = _spelled(dtype)
    model.hf.config.architectures = [type(model.hf).__name__]
    model.hf.config.save_pretrained(writer.folder / below)
    if model.hf.can_generate():
        model.hf.generation_config.save_pretrained(writer.folder / below)
    writer.adopt(below)
    write_entries(entries, writer, below)


def _write_whole(model: HFCausalLM, source: Source, writer: StepWriter, below: str) -> None:
    """With the whole model in memory: transformers puts its tensors into another form."""
    if is_on_meta(model):
        model.to_empty(device="cpu")
        with torch.no_grad():
            for name, parameter in model.state_dict().items():
                parameter.copy_(source.read(name))
    model.hf.save_pretrained(writer.folder / below, max_shard_size=MAX_FILE_BYTES)
    writer.adopt(below)


def write_entries(entries: Mapping[str, Entry], writer: StepWriter, below: str) -> None:
    """Write ``model.safetensors``, or several files with their index; one tensor in memory at a time."""
    parts = list(_split(entries, MAX_FILE_BYTES))
    names = ["model.safetensors"]
    if len(parts) > 1:
        names = [f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors" for i in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        shapes = {tensor: (entry.dtype, tuple(entry.shape)) for tensor, entry in part.items()}
        with writer.open(_join(below, name)) as output:
            sharded.write_stream(shapes, partial(_values, part), output, metadata={"format": "pt"})
    if len(parts) > 1:
        places = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
        total = sum(entry.num_bytes for entry in entries.values())
        writer.write_json(_join(below, INDEX), {"metadata": {"total_size": total}, "weight_map": places})


def _values(part: Mapping[str, Entry], name: str) -> torch.Tensor:
    return part[name].values()


def _split(entries: Mapping[str, Entry], limit: int) -> Iterator[dict[str, Entry]]:
    """Cut into files of at most ``limit`` bytes, in order; a larger tensor has a file of its own."""
    part: dict[str, Entry] = {}
    for name, entry in entries.items():
        if part and sum(other.num_bytes for other in part.values()) + entry.num_bytes > limit:
            yield part
            part = {}
        part[name] = entry
    yield part
