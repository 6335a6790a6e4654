"""A step folder, by however many ranks it was written, to a Hugging Face folder: one tensor in memory at a time.

The model is built on the meta device, for its names and shapes; each tensor is then read from the shard files,
brought into the form that it has in such a folder, written, and forgotten. No process group, no device.

Some transformers models are stored otherwise than they are computed (experts in one tensor here, in many there).
Where that is more than other names, transformers has to do it, with the whole model in memory.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from automodel_cli.checkpoint import layout, publishing
from automodel_cli.checkpoint.hf import claims
from automodel_cli.checkpoint.hf import config as hf_config
from automodel_cli.checkpoint.hf import format as hf_format
from automodel_cli.checkpoint.hf import hashes as hf_hashes
from automodel_cli.checkpoint.hf.format import Entry
from automodel_cli.checkpoint.imports.trainers import Imported
from automodel_cli.checkpoint.storage.formats import storage_of
from automodel_cli.checkpoint.storage.step_files import StepReader, StepWriter
from automodel_cli.errors import CheckpointError
from automodel_cli.files import TEMP_SUFFIX, fsync_folder, publish
from automodel_cli.json_files import without_controls
from automodel_cli.models import hf
from automodel_cli.models.families import FAMILIES, Family, family_of

# (files checked, files in all, the file that is read)
Progress = Callable[[int, int, str], None]


def has_format(model_config: Mapping[str, Any]) -> bool:
    """Whether a model of this configuration can be written as a Hugging Face folder."""
    return model_config.get("family") in (*FAMILIES, "hf")


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
    model: Any = found.model()
    with _new_folder(folder) as writer:
        dtype = str(max({found.dtype(name) for name in found.weights}, key=lambda one: one.itemsize))
        config = {**model.hf_config(), "dtype": dtype.removeprefix("torch.")}
        hf_config.write(config, hf_config.special_ids(tokenizer_folder), writer, "")
        hf_format.write_entries(_own_entries(model, FAMILIES[found.family], found), writer, "")
        hf_format.write_tokenizer(tokenizer_folder, writer, "", say=say)
        hf_hashes.write_hashes(writer, "")
    return folder


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


def write(
    reader: StepReader,
    writer: StepWriter,
    below: str,
    tokenizer_folder: Path | None = None,
    *,
    say: layout.Say | None = None,
) -> None:
    """Write the files of such a folder below ``below``.

    Raises:
        CheckpointError: the model has no such format.
    """
    config = reader.read_json("model/config.json") if "model/config.json" in reader.names() else {}
    code = reader.manifest["facts"].get("code")
    if code or not has_format(config):
        builder = f", built by {without_controls(code['target'])}," if code else ""
        raise CheckpointError(
            f"{reader.folder}: a model of somebody's own{builder} has no Hugging Face format",
            f"its weights are safetensors by its own names, in {reader.folder / 'model'}",
        )
    source = _Source(reader)
    model: Any = claims.build(config, reader.folder, reader.manifest, "model/config.json")
    ids, place = hf_config.special_ids(tokenizer_folder), hf_format.join(below, "")
    if (family := family_of(model)) is not None:
        hf_config.write(model.hf_config(), ids, writer, place)
        hf_format.write_entries(_own_entries(model, FAMILIES[family], source), writer, below)
    else:
        assert isinstance(model, hf.HFCausalLM)
        _write_transformers(model, source, writer, below)
        hf_config.amend(ids, writer, place)
    hf_format.write_tokenizer(tokenizer_folder, writer, below, say=say)
    hf_hashes.write_hashes(writer, place)


class _Source:
    """The stored tensors of a model, tied ones under each of their names."""

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


def _own_entries(model: Any, family: Family, source: _Source | Imported) -> dict[str, Entry]:
    names = {theirs: ours for ours, theirs in model.hf_names().items()}

    def entry(name: str, shape: torch.Tensor) -> Entry:
        if not shape.is_meta:  # the zeros that stand for biases a model was built without
            return Entry.of(shape)
        ours = names[name]
        return Entry(
            source.dtype(ours), shape.shape, lambda: family.to_hf_tensor(model, ours, source.read(ours))
        )

    return {name: entry(name, shape) for name, shape in family.to_hf_state(model).items()}


def _write_transformers(model: hf.HFCausalLM, source: _Source, writer: StepWriter, below: str) -> None:
    state = model.hf.state_dict()
    for name in model.hf._keys_to_ignore_on_save or ():
        state.pop(name, None)
    state = remove_tied_weights_from_state_dict(state, model.hf)
    ours = {id(tensor): f"hf.{name}" for name, tensor in state.items()}
    converted = revert_weight_conversion(model.hf, dict(state))
    if any(id(tensor) not in ours for tensor in converted.values()):
        _write_whole(model, source, writer, below)
        return
    entries = {name: _plain_entry(ours[id(tensor)], tensor, source) for name, tensor in converted.items()}
    dtype = next((entry.dtype for entry in entries.values() if entry.dtype.is_floating_point), torch.float32)
    model.hf.config.dtype = str(dtype).removeprefix("torch.")
    model.hf.config.architectures = [type(model.hf).__name__]
    model.hf.config.save_pretrained(writer.folder / below)
    if model.hf.can_generate():
        model.hf.generation_config.save_pretrained(writer.folder / below)
    writer.adopt(below)
    hf_format.write_entries(entries, writer, below)


def _plain_entry(name: str, shape: torch.Tensor, source: _Source) -> Entry:
    return Entry(source.dtype(name), shape.shape, lambda: source.read(name))


def _write_whole(model: hf.HFCausalLM, source: _Source, writer: StepWriter, below: str) -> None:
    """With the whole model in memory: transformers puts its tensors into another form."""
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.state_dict().items():
            parameter.copy_(source.read(name))
    model.hf.save_pretrained(writer.folder / below, max_shard_size=hf_format.MAX_FILE_BYTES)
    writer.adopt(below)
