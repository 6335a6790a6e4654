"""Hugging Face folders: ours out to one, one into our models. safetensors only; pickles are refused.

    config.json                        model_type, sizes
    model.safetensors                  or model-00001-of-0000N.safetensors with model.safetensors.index.json
    tokenizer.json, tokenizer_config.json, automodel_tokenizer.json, ...

GPT-2 and Llama go through the name and layout mappings of :mod:`automodel_cli.models.gpt2` and ``.llama`` (logical
vocabulary; GPT-2 also transposed matrices). Other transformers models are written and read by transformers itself,
whose names on disk need not be those in memory.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import huggingface_hub
import torch
from pydantic import Field
from safetensors import safe_open

from automodel_cli import files
from automodel_cli.checkpoint import layout, nested_runs, publishing
from automodel_cli.checkpoint.hf import bounds as hf_bounds
from automodel_cli.checkpoint.hf import config as hf_config
from automodel_cli.checkpoint.hf import hashes as hf_hashes
from automodel_cli.checkpoint.hf import shards as hf_shards
from automodel_cli.checkpoint.hf import tokenizer as hf_tokenizer
from automodel_cli.checkpoint.imports import trainers as imports
from automodel_cli.checkpoint.storage import sharded
from automodel_cli.checkpoint.storage.step_files import StepWriter
from automodel_cli.checkpoint.storage.tensor_file import read_header
from automodel_cli.errors import AutomodelError, CheckpointError
from automodel_cli.json_files import FileModel, read_json, read_model, validated, without_controls
from automodel_cli.models import gpt2, hf, llama
from automodel_cli.models.build import KNOWN_PACKAGES, packages_of
from automodel_cli.models.families import FAMILIES, Family, family_of
from automodel_cli.models.huggingface import same_function
from automodel_cli.models.huggingface.pretrained import pretrained_on_meta
from automodel_cli.models.init import copy_whole
from automodel_cli.models.interface import CausalLM

MAX_FILE_BYTES = 5_000_000_000
INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def has_format(model: torch.nn.Module) -> bool:
    """Whether ``model`` can be written as a Hugging Face folder."""
    known = family_of(model) is not None or isinstance(model, hf.HFCausalLM)
    return known and not packages_of(model) - KNOWN_PACKAGES - {
        "transformers_modules"
    }  # a repository's own code


# ---------------------------------------------------------------------------------------------- out


def save_hf(model: CausalLM, folder: Path | str, tokenizer_folder: Path | None = None) -> Path:
    """Write ``model`` as a folder that ``transformers`` loads; ``folder`` appears when it is whole.

    Raises:
        CheckpointError: the model has no such format, the folder exists, or the disk is full.
    """
    target = Path(folder)
    if target.exists():
        raise CheckpointError(f"{target} exists already", "name a new folder, or move that one away")
    temporary = target.with_name(target.name + files.TEMP_SUFFIX)
    with publishing.saving(temporary):
        writer = StepWriter(temporary)
        write_hf(model, writer, "", tokenizer_folder)
        files.fsync_folder(temporary)
        files.publish(temporary, target)
    return target


def write_hf(
    model: Any,
    writer: StepWriter,
    below: str,
    tokenizer_folder: Path | None = None,
    *,
    say: layout.Say | None = None,
) -> None:
    """Write the files of such a folder below ``below`` of a folder that is being written.

    Raises:
        CheckpointError: the model has no such format.
    """
    if not has_format(model):
        raise CheckpointError(
            "a model of your own has no Hugging Face format",
            "GPT-2, Llama and the causal language models of transformers have one",
        )
    ids, place = hf_config.special_ids(tokenizer_folder), join(below, "")
    if (family := family_of(model)) is not None:
        hf_config.write(model.hf_config(), ids, writer, place)
        tensors = FAMILIES[family].to_hf_state(model)
        write_entries({name: Entry.of(tensor) for name, tensor in tensors.items()}, writer, below)
    else:
        model.hf.save_pretrained(writer.folder / below, max_shard_size=MAX_FILE_BYTES)
        writer.adopt(below)
        hf_config.amend(ids, writer, place)
    write_tokenizer(tokenizer_folder, writer, below, say=say)
    hf_hashes.write_hashes(writer, place)


def write_tokenizer(
    folder: Path | None, writer: StepWriter, below: str, *, say: layout.Say | None = None
) -> None:
    """Put the files of a tokenizer beside the weights."""
    if folder is not None:
        for name, content in hf_tokenizer.files_of(folder, say=say):
            writer.write_bytes(join(below, name), content)


def join(below: str, name: str) -> str:
    """``name`` below a folder, or as it is."""
    return f"{below}/{name}" if below else name


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: its type and shape, and how to get its values when their turn comes."""

    dtype: torch.dtype
    shape: Sequence[int]
    values: Callable[[], torch.Tensor]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Entry:
        """A tensor that is there already."""
        return cls(tensor.dtype, tensor.shape, lambda: tensor)

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_entries(entries: Mapping[str, Entry], writer: StepWriter, below: str) -> None:
    """Write ``model.safetensors``, or several files with their index; one tensor in memory at a time."""
    parts = list(_split(entries, MAX_FILE_BYTES))
    names = ["model.safetensors"]
    if len(parts) > 1:
        names = [f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors" for i in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        shapes = {tensor: (entry.dtype, tuple(entry.shape)) for tensor, entry in part.items()}
        with writer.open(join(below, name)) as output:
            sharded.write_stream(shapes, _values_of(part), output, metadata={"format": "pt"})
    if len(parts) > 1:
        places = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
        total = sum(entry.num_bytes for entry in entries.values())
        writer.write_json(join(below, INDEX), {"metadata": {"total_size": total}, "weight_map": places})


def _values_of(part: Mapping[str, Entry]) -> Callable[[str], torch.Tensor]:
    return lambda name: part[name].values()


def _split(entries: Mapping[str, Entry], limit: int) -> Iterator[dict[str, Entry]]:
    """Cut into files of at most ``limit`` bytes, in order; a larger tensor has a file of its own."""
    part: dict[str, Entry] = {}
    for name, entry in entries.items():
        if part and sum(other.num_bytes for other in part.values()) + entry.num_bytes > limit:
            yield part
            part = {}
        part[name] = entry
    yield part


# ---------------------------------------------------------------------------------------------- in


def nothing_to_load(path: Path) -> CheckpointError:
    """What is said of a path that is neither a checkpoint nor a Hugging Face folder."""
    if (trainer := imports.trainer_of(path)) is not None:
        return CheckpointError(
            f"{path} is a checkpoint of {trainer}",
            f"automodel import {path} OUT makes a folder that can be used here",
        )
    found = "there is nothing by that name" if not path.exists() else "it has no config.json"
    return CheckpointError(
        f"{path} is no checkpoint, run folder or Hugging Face folder: {found}",
        nested_runs.way_down(path)
        or "name a run folder, one of its steps, or a folder with config.json and *.safetensors",
    )


def find_folder(name_or_folder: str | Path) -> Path:
    """A local Hugging Face folder, or the cached or downloaded copy of a hub repository (safetensors and JSON only).

    Raises:
        CheckpointError: there is neither.
    """
    folder = Path(name_or_folder)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise nothing_to_load(folder)
        return folder
    if folder.exists():
        raise nothing_to_load(folder)
    try:
        return Path(
            huggingface_hub.snapshot_download(str(name_or_folder), allow_patterns=["*.safetensors", "*.json"])
        )
    except (OSError, ValueError, RuntimeError) as error:  # offline, no such repository, not a name at all
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{name_or_folder} is no folder here and cannot be had from the hub: {reason}",
            "without a network, name a folder with config.json and *.safetensors",
        ) from error


def load_hf(folder: Path | str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """``config.json`` and all tensors of a Hugging Face folder, by their names in it.

    Raises:
        CheckpointError: files are missing or unreadable, or the weights are only there as pickles.
    """
    folder = Path(folder)
    tensors: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        read_header(path)  # says what is wrong before the library does
        try:
            with safe_open(path, framework="pt") as handle:
                tensors.update({name: handle.get_tensor(name) for name in handle.keys()})  # noqa: SIM118
        except Exception as error:  # the Rust side has an exception class of its own
            raise CheckpointError(f"{path} cannot be read: {error}", _ANEW) from error
    return read_config(folder), tensors


class _ConfigFile(FileModel):
    """What every ``config.json`` holds; the rest is its family's."""

    model_type: Annotated[str, Field(min_length=1, max_length=128)]
    quantization_config: Any = None


class _WeightIndex(FileModel):
    """``model.safetensors.index.json``: which file holds each tensor."""

    weight_map: dict[str, str]


_ANEW = "download or make it again"
_MAX_CONFIG_BYTES = 16 << 20


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json``.

    Raises:
        CheckpointError: missing, damaged, or of quantised weights.
    """
    path = folder / "config.json"
    # transformers before 5 wrote Infinity as such
    config = read_json(path, CheckpointError, hint=_ANEW, max_bytes=_MAX_CONFIG_BYTES, allow_nan=True)
    known = validated(config, _ConfigFile, path, CheckpointError, hint=_ANEW)
    if known.quantization_config:
        raise CheckpointError(
            f"{folder} holds quantised weights ({without_controls(known.model_type)})",
            "use the original weights",
        )
    return dict(config)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights: those the index names, or all there are.

    Raises:
        CheckpointError: there are none, or one is missing.
    """
    index = folder / INDEX
    if index.exists():
        places = read_model(index, _WeightIndex, CheckpointError, hint=_ANEW).weight_map
        names = sorted(set(places.values()))
        if outside := [name for name in names if Path(name).name != name]:
            named = without_controls(outside[0][:80])
            raise CheckpointError(f"{index} names a file outside its folder: {named}", "do not use it")
        paths = [folder / name for name in names]
    else:
        paths = sorted(folder.glob("*.safetensors"))
    if missing := [path for path in paths if not path.is_file()]:
        shown = without_controls(str(missing[0]))
        raise CheckpointError(f"{shown} is missing ({index.name} names it)", "download it again")
    if not paths:
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        found = f"only pickles ({', '.join(pickles[:3])})" if pickles else "no *.safetensors"
        raise CheckpointError(
            f"{folder} has {found}",
            "pickles can run code and are not read: convert them with transformers' save_pretrained"
            if pickles
            else "name a folder with config.json and *.safetensors",
        )
    return paths


def check_folder(folder: Path) -> tuple[dict[str, Any], hf_bounds.Shapes]:
    """``config.json`` and the shapes of the tensors, once they are known to be in proportion to each other.

    Raises:
        CheckpointError: a file is missing or damaged, or the configuration asks for more than is there.
    """
    config, shapes = read_config(folder), hf_bounds.read_shapes(weight_files(folder))
    hf_bounds.check_sizes(config, shapes, folder / "config.json")
    return config, shapes


@contextlib.contextmanager
def _named(folder: Path) -> Iterator[None]:
    """What transformers and torch make of an odd configuration, as one CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except AutomodelError as error:
        raise CheckpointError(error.message, error.hint) from error
    except Exception as error:  # of many libraries, with classes of their own
        lines = str(error).strip().splitlines() or [""]
        reason = without_controls(f"{type(error).__name__}: {lines[0][:200]}")
        raise CheckpointError(f"{folder} holds no model that can be built: {reason}", _ANEW) from error


def load_model(folder: Path | str) -> CausalLM:
    """The model of a Hugging Face folder with its weights; code in the folder is not run.

    Raises:
        CheckpointError: it cannot be read, or its model type is not known to transformers.
    """
    folder = Path(folder)
    config, shapes = check_folder(folder)
    family = FAMILIES.get(config["model_type"])
    with _named(folder):
        if family is not None and (arguments := _own_arguments(family, config)) is not None:
            model = family.build(**arguments, is_meta_device=True)
            hf_bounds.check_total(model, shapes, folder)
            model.to_empty(device="cpu")
            _fill(model, folder)
            return model
        theirs = pretrained_on_meta(str(folder))
        hf_bounds.check_total(theirs, shapes, folder)
        theirs.to_empty(device="cpu")
        _fill_transformers(theirs, folder)
        return theirs


def _own_arguments(family: Family, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Keywords of a builder of ours, or None for a variant that only transformers has."""
    try:
        return family.config_from_hf(config)
    except CheckpointError:
        return None


def load_into(model: CausalLM, folder: Path | str, *, any_function: bool = False) -> None:
    """Fill ``model`` with the weights of a Hugging Face folder.

    ``any_function``: also where the folder's configuration makes another function of them than ``model`` does.

    Raises:
        CheckpointError: the folder holds another kind of model, another function, or other sizes.
    """
    folder = Path(folder)
    check_fits(model, folder, any_function=any_function)
    if family_of(model) is not None:
        _fill(model, folder)
    elif isinstance(model, hf.HFCausalLM):
        _fill_transformers(model, folder)


def check_fits(model: CausalLM, folder: Path, *, any_function: bool = False) -> None:
    """Whether :func:`load_into` would take ``folder``, as far as headers tell; no tensor is read.

    Left open: biases that are zeros may go into a GPT-2 without, and names that only transformers can map.

    Raises:
        CheckpointError: the folder holds another kind of model, another function, or other sizes.
    """
    config, shapes = check_folder(folder)
    if not any_function:
        with _named(folder):
            differences = same_function.differences_from_hf(config, model)
        refuse_other_function(str(folder), differences)
    if isinstance(model, gpt2.GPT2):
        kept = {
            name: tuple(shape) for name, shape in shapes.items() if model.config["bias"] or not _is_bias(name)
        }
        gpt2.check_hf_shapes(model, kept)
    elif isinstance(model, llama.Llama):
        if not hf_shards.check_pieces(_llama_targets(model), shapes, folder, rows=llama.logical_rows(model)):
            raise _without_head(folder, model)
    elif isinstance(model, hf.HFCausalLM):
        hf_shards.check_pieces(_weights_and_buffers(model), shapes, folder)
    else:
        raise CheckpointError(
            "a model of your own cannot take weights from a Hugging Face folder",
            "load them in the model's own builder",
        )


def _is_bias(name: str) -> bool:
    return name.endswith(".bias")


def _llama_targets(model: llama.Llama) -> dict[str, torch.Tensor]:
    names = model.hf_names()
    return {names[name]: parameter for name, parameter in model.named_parameters()}


def _without_head(folder: Path, model: llama.Llama) -> CheckpointError:
    return CheckpointError(
        f"{folder} lacks weights of a Llama with a head, such as {min(_llama_targets(model))}",
        "save it with transformers' LlamaForCausalLM",
    )


def refuse_other_function(source: str, differences: Sequence[str]) -> None:
    """Say what makes another function of the weights in ``source`` than what they were trained as.

    Raises:
        CheckpointError: there is something.
    """
    if differences:
        raise CheckpointError(
            f"the weights in {source} are of another function: {'; '.join(differences)}",
            "give the model section the values of the weights, or take them nevertheless with "
            "init_from_any_function: true",
        )


def _fill(model: CausalLM, folder: Path) -> None:
    """Fill a model of ours with the weights of a folder of its own kind."""
    if isinstance(model, gpt2.GPT2):
        gpt2.from_hf_state(model, _without_zero_biases(model, load_hf(folder)[1]))
        return
    assert isinstance(model, llama.Llama)
    targets = _llama_targets(model)
    if not hf_shards.load_pieces(targets, weight_files(folder), rows=llama.logical_rows(model)):
        raise _without_head(folder, model)


def _fill_transformers(model: hf.HFCausalLM, folder: Path) -> None:
    """Fill a model of transformers, through transformers where a file's names are not those in memory."""
    files_of = weight_files(folder)
    if not hf_shards.load_pieces(_weights_and_buffers(model), files_of):
        with _named(folder):
            source, missing = hf.from_pretrained_complete(str(folder))
        if missing:
            raise CheckpointError(
                f"{folder} lacks {len(missing)} weights of its model, such as {min(missing)}", _ANEW
            )
        _copy_state(source, model, folder)


def _without_zero_biases(model: gpt2.GPT2, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A GPT-2 without biases is exported with zeros for them, and comes back without."""
    if model.config["bias"]:
        return tensors
    return {name: tensor for name, tensor in tensors.items() if not _is_bias(name) or tensor.any()}


def _copy_state(source: hf.HFCausalLM, model: hf.HFCausalLM, folder: Path) -> None:
    stored, own = source.hf.state_dict(), model.hf.state_dict()
    sharded.compare_names(folder, stored, own)
    for name, tensor in stored.items():
        whole = sharded.WholeTensor(tensor.dtype, tuple(tensor.shape))
        sharded.compare_tensor(folder, name, whole, own[name], cast=True)
        copy_whole(own[name], tensor)


def _weights_and_buffers(model: hf.HFCausalLM) -> dict[str, torch.Tensor]:
    """What a file of this model holds, by transformers' names; of tied weights the first name."""
    ties = {name for name, _ in model.hf.named_parameters(remove_duplicate=False)}
    parameters = dict(model.hf.named_parameters())
    buffers = {name: tensor for name, tensor in model.hf.state_dict().items() if name not in ties}
    return {**parameters, **buffers}
