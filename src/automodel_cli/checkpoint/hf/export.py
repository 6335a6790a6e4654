"""A model as a Hugging Face folder: from memory, from the shards of a step, or from another trainer's checkpoint.

    config.json, generation_config.json
    model.safetensors                  or model-00001-of-0000N.safetensors with model.safetensors.index.json
    tokenizer.json, tokenizer_config.json, automodel_tokenizer.json, ...
    README.md                          a model card, where the caller brings one
    automodel_files.json               hashes of all these

The model gives names and shapes, on the meta device unless it is in memory anyway; each tensor is then read from its
source, brought into the form that it has in such a folder, written, and forgotten. No process group, no device.

Some transformers models are stored otherwise than they are computed (experts in one tensor here, in many there).
Where that is more than other names, transformers has to do it, with the whole model in memory.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from automodel_cli.checkpoint import layout, publishing
from automodel_cli.checkpoint.hf import bounds as hf_bounds
from automodel_cli.checkpoint.hf import config as hf_config
from automodel_cli.checkpoint.hf import hashes as hf_hashes
from automodel_cli.checkpoint.hf import tokenizer as hf_tokenizer
from automodel_cli.checkpoint.hf.format import INDEX
from automodel_cli.checkpoint.load_step import average_of
from automodel_cli.checkpoint.storage import sharded
from automodel_cli.checkpoint.storage.formats import read_tensor, scan
from automodel_cli.checkpoint.storage.step_files import StepReader, StepWriter
from automodel_cli.dtypes import torch_name
from automodel_cli.errors import CheckpointError
from automodel_cli.files import exclusive_lock, fsync_folder, make_folder, publish, temporary_of
from automodel_cli.models.external import KNOWN_PACKAGES, packages_of
from automodel_cli.models.families import family_named
from automodel_cli.models.init import is_on_meta
from automodel_cli.models.interface import CausalLM, HFTensor
from automodel_cli.plain_text import without_controls

MAX_FILE_BYTES = 5_000_000_000
_WITH_CODE = KNOWN_PACKAGES | {"transformers_modules"}  # a repository's own code

# (files checked, files in all, the file that is read)
Progress = Callable[[int, int, str], None]


def has_format(model: torch.nn.Module) -> bool:
    """Whether ``model`` can be written as a Hugging Face folder."""
    return isinstance(model, CausalLM) and model.has_hf_format and packages_of(model) <= _WITH_CODE


def why_not(model: torch.nn.Module) -> str:
    """Why it cannot."""
    known = isinstance(model, CausalLM) and not model.has_hf_format
    return str(model.why_no_hf_format) if known else CausalLM.why_no_hf_format


# ------------------------------------------------------------------------------------------ whole folders


def export(
    checkpoint: Path,
    folder: Path,
    *,
    more: Mapping[str, str] | None = None,
    averaged: bool = False,
    progress: Progress | None = None,
    say: layout.Say | None = None,
) -> Path:
    """Write the model of a step as a folder that transformers loads; it appears when it is whole.

    Every file that is used is compared with its hash first. ``more``: further files, by name. ``averaged``: the average
    of the weights, in their type, instead of the last ones.

    Raises:
        CheckpointError: the folder exists, the checkpoint is damaged, or its model has no such format.
    """
    reader = StepReader(checkpoint)
    used = [*reader.names("model"), *(reader.names("ema") if averaged else ()), *reader.names("tokenizer")]
    for number, name in enumerate(used):
        if progress is not None:
            progress(number, len(used), name)
        reader.check(name)
    tokenizer = checkpoint / "tokenizer"
    with new_folder(folder) as writer:
        for name, text in (more or {}).items():
            writer.write_text(name, text)
        write_step(reader, writer, "", tokenizer if tokenizer.is_dir() else None, averaged=averaged, say=say)
    return folder


def save_hf(model: torch.nn.Module, folder: Path | str, tokenizer_folder: Path | None = None) -> Path:
    """The same for a model in memory.

    Raises:
        CheckpointError: the model has no such format, the folder exists, or the disk is full.
    """
    with new_folder(Path(folder)) as writer:
        write(model, in_memory(model), writer, "", tokenizer_folder)
    return Path(folder)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[StepWriter]:
    """Writes files into a folder that appears when all are there; what a killed export left is cleared first.

    Raises:
        CheckpointError: it exists.
        AutomodelError: another process is writing it, or its parent is not to be written.
    """
    refuse_existing(folder)
    make_folder(folder.parent, "the output")
    temporary = temporary_of(folder)
    lock = temporary.with_name(f"{temporary.name}.lock")
    with exclusive_lock(lock, busy=f"another process is writing {folder}"):
        try:
            with publishing.discarding(temporary), publishing.error_context(temporary):
                yield StepWriter(temporary)
                fsync_folder(temporary)
                publish(temporary, folder)
        finally:
            lock.unlink(missing_ok=True)


def refuse_existing(folder: Path) -> None:
    """Raise a CheckpointError where there is something at ``folder``."""
    if folder.exists():
        raise CheckpointError(f"{folder} exists already", "name a new folder, or move that one away")


# ------------------------------------------------------------------------------- parts of another folder


@dataclass(frozen=True)
class Source:
    """Where the weights of a model are: types by the model's own names, and how to read one, whole."""

    dtypes: Mapping[str, torch.dtype]
    read: Callable[[str], torch.Tensor]


def in_memory(model: torch.nn.Module) -> Source:
    """The tensors of a model itself."""
    state = model.state_dict()
    return Source({name: tensor.dtype for name, tensor in state.items()}, state.__getitem__)


def _of_step(reader: StepReader, *, averaged: bool) -> Source:
    """The tensors of a step, tied ones under each of their names."""
    stored = scan(reader, "model")
    dtypes = {name: sharded.DTYPES[one.dtype] for name, one in stored.items()}
    if averaged:
        averages = average_of(reader)
        if odd := [name for name, one in averages.items() if name not in stored or stored[name].shape != one.shape]:
            raise CheckpointError(f"{reader.folder / 'ema'} holds {odd[0]!r}, which is no average of its model's")
        stored |= averages
    for name, other in reader.manifest["tied"].items():
        if other in stored:
            stored[name], dtypes[name] = stored[other], dtypes[other]
    return Source(dtypes, lambda name: read_tensor(reader, stored[name]).to(dtypes[name]))


def write_step(
    reader: StepReader,
    writer: StepWriter,
    place: str,
    tokenizer_folder: Path | None = None,
    *,
    averaged: bool = False,
    say: layout.Say | None = None,
) -> None:
    """Write the files of such a folder, from those of a step, into ``place`` of a folder that is being written.

    Raises:
        CheckpointError: the model has no such format.
    """
    model, source = model_and_source(reader, averaged=averaged)
    write(model, source, writer, place, tokenizer_folder, say=say)


def model_and_source(reader: StepReader, *, averaged: bool = False) -> tuple[CausalLM, Source]:
    """The model of a step, on the meta device, and where its weights (or their average) are.

    Raises:
        CheckpointError: it is user-defined, or the step lacks one of its tensors, or has no average.
    """
    config = reader.read_json("model/config.json") if "model/config.json" in reader.names() else {}
    code = reader.manifest["facts"].get("code")
    if code or not (config.get("family") == "hf" or family_named(config.get("family"))):
        builder = f", built by {without_controls(code['target'])}," if code else ""
        raise CheckpointError(
            f"{reader.folder}: a user-defined model{builder} has no Hugging Face format",
            f"its weights are safetensors by its own names, in {reader.folder / 'model'}",
        )
    source = _of_step(reader, averaged=averaged)
    model = hf_bounds.build_claimed(config, reader.folder, reader.manifest, "model/config.json")
    if missing := model.state_dict().keys() - source.dtypes.keys():
        raise CheckpointError(
            f"{reader.folder} holds no {min(missing)!r}", "its model/config.json describes another model"
        )
    return model, source


def write(
    model: torch.nn.Module,
    source: Source,
    writer: StepWriter,
    place: str,
    tokenizer_folder: Path | None = None,
    *,
    say: layout.Say | None = None,
) -> None:
    """Write the files of such a folder, from wherever the weights are, into ``place`` (``""``, or ``"hf/"``).

    Raises:
        CheckpointError: the model has no such format.
    """
    if not has_format(model):
        raise CheckpointError(
            why_not(model),
            "GPT-2, Llama and the causal language models of transformers have one",
        )
    assert isinstance(model, CausalLM)
    ids, config = hf_config.special_ids(tokenizer_folder), model.hf_config()
    ends = hf_config.turn_ends(tokenizer_folder)
    if config is not None:
        dtype = max((source.dtypes[name] for name in model.hf_tensors()), key=lambda one: one.itemsize)
        hf_config.write({**config, "dtype": torch_name(dtype)}, ids, writer, place, ends)
        _write_entries(own_entries(model, source), writer, place)
    else:
        _write_transformers(model, source, writer, place)
        hf_config.amend(ids, writer, place, ends)
    if tokenizer_folder is not None:
        for name, content in hf_tokenizer.files_of(tokenizer_folder, say=say):
            writer.write_bytes(place + name, content)
    hf_hashes.write_hashes(writer, place)


# ---------------------------------------------------------------------------------------------- entries


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: its type and shape, and how to get its values when their turn comes."""

    dtype: torch.dtype
    shape: Sequence[int]
    values: Callable[[], torch.Tensor]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _entry(source: Source, ours: str, shape: Sequence[int], there: HFTensor) -> Entry:
    """The weight that is called ``ours`` in its source."""
    return Entry(source.dtypes[ours], shape, lambda: there.values(source.read(ours)))


def entries_of(model: CausalLM, source: Source) -> dict[str, Entry] | None:
    """The tensors of such a folder by their names there; None where transformers has to put them into another form."""
    return own_entries(model, source) if model.hf_config() is not None else transformers_entries(model, source)


def own_entries(model: CausalLM, source: Source) -> dict[str, Entry]:
    """Those of a family of ours."""
    own = model.state_dict()
    entries = {
        there.name: _entry(source, ours, there.shape(own[ours]), there) for ours, there in model.hf_tensors().items()
    }
    for name, zeros in model.hf_zeros().items():
        entries[name] = Entry(zeros.dtype, zeros.shape, partial(torch.zeros_like, zeros, device="cpu"))
    return entries


def transformers_entries(model: CausalLM, source: Source) -> dict[str, Entry] | None:
    """Those of a transformers model, as in :func:`entries_of`."""
    from transformers.core_model_loading import revert_weight_conversion  # seconds, of no use to models of ours
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    from automodel_cli.models.huggingface.model import HFCausalLM

    assert isinstance(model, HFCausalLM)
    state = model.hf.state_dict()
    for name in model.hf._keys_to_ignore_on_save or ():
        state.pop(name, None)
    state = remove_tied_weights_from_state_dict(state, model.hf)
    ours = {id(tensor): f"hf.{name}" for name, tensor in state.items()}
    converted = revert_weight_conversion(model.hf, dict(state))
    if any(id(tensor) not in ours for tensor in converted.values()):
        return None
    return {name: _entry(source, ours[id(tensor)], tensor.shape, HFTensor(name)) for name, tensor in converted.items()}


def _write_transformers(model: CausalLM, source: Source, writer: StepWriter, place: str) -> None:
    from automodel_cli.models.huggingface.model import HFCausalLM

    assert isinstance(model, HFCausalLM)
    folder, entries = writer.folder / place, transformers_entries(model, source)
    if entries is None:
        _fill(model, source)  # whole in memory: transformers puts the tensors into another form
        model.hf.save_pretrained(folder, max_shard_size=MAX_FILE_BYTES)
        writer.adopt(place)
        return
    dtype = next((entry.dtype for entry in entries.values() if entry.dtype.is_floating_point), torch.float32)
    model.hf.config.dtype = torch_name(dtype)
    model.hf.config.architectures = [type(model.hf).__name__]
    model.hf.config.save_pretrained(folder)
    if model.hf.can_generate():
        model.hf.generation_config.save_pretrained(folder)
    writer.adopt(place)
    _write_entries(entries, writer, place)


def _fill(model: CausalLM, source: Source) -> None:
    if is_on_meta(model):
        model.to_empty(device="cpu")
        with torch.no_grad():
            for name, parameter in model.state_dict().items():
                parameter.copy_(source.read(name))


def _write_entries(entries: Mapping[str, Entry], writer: StepWriter, place: str) -> None:
    """Write ``model.safetensors``, or several files with their index; one tensor in memory at a time."""
    parts = list(_split(entries, MAX_FILE_BYTES))
    names = ["model.safetensors"]
    if len(parts) > 1:
        names = [f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors" for i in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        shapes = {tensor: (entry.dtype, tuple(entry.shape)) for tensor, entry in part.items()}
        with writer.open(place + name) as output:
            sharded.write_stream(shapes, partial(_values, part), output, metadata={"format": "pt"})
    if len(parts) > 1:
        places = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
        total = sum(entry.num_bytes for entry in entries.values())
        writer.write_json(place + INDEX, {"metadata": {"total_size": total}, "weight_map": places})


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
