"""Hugging Face folders: ours out to one, one into our models. safetensors only; pickles are refused.

    config.json                        model_type, sizes
    model.safetensors                  or model-00001-of-0000N.safetensors with model.safetensors.index.json
    tokenizer.json, tokenizer_config.json, automodel_tokenizer.json, ...

GPT-2 and Llama go through the name and layout mappings of :mod:`automodel_cli.models.gpt2` and ``.llama`` (logical
vocabulary; GPT-2 also transposed matrices). Other transformers models are written and read by transformers itself,
whose names on disk need not be those in memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from safetensors import safe_open

from automodel_cli import files
from automodel_cli.checkpoint import hf_config, hf_hashes, hf_shards, hf_tokenizer, layout, sharded
from automodel_cli.checkpoint.step_files import StepWriter
from automodel_cli.errors import CheckpointError
from automodel_cli.models import gpt2, hf, llama, same_function
from automodel_cli.models.families import FAMILIES, Family, family_of
from automodel_cli.models.initialise import copy_whole
from automodel_cli.models.interface import CausalLM

MAX_FILE_BYTES = 5_000_000_000
INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def has_format(model: torch.nn.Module) -> bool:
    """Whether ``model`` can be written as a Hugging Face folder."""
    return family_of(model) is not None or isinstance(model, hf.HFCausalLM)


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
    with layout.saving(temporary):
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
    ids, place = hf_config.special_ids(tokenizer_folder), join(below, "")
    if (family := family_of(model)) is not None:
        hf_config.write(model.hf_config(), ids, writer, place)
        tensors = FAMILIES[family].to_hf_state(model)
        write_entries({name: Entry.of(tensor) for name, tensor in tensors.items()}, writer, below)
    elif isinstance(model, hf.HFCausalLM):
        model.hf.save_pretrained(writer.folder / below, max_shard_size=MAX_FILE_BYTES)
        writer.adopt(below)
        hf_config.amend(ids, writer, place)
    else:
        raise CheckpointError(
            f"{type(model).__name__} has no Hugging Face format",
            "GPT-2, Llama and the causal language models of transformers have one",
        )
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


def find_folder(name_or_folder: str | Path) -> Path:
    """A local Hugging Face folder, or the cached or downloaded copy of a hub repository (safetensors and JSON only).

    Raises:
        CheckpointError: there is neither.
    """
    folder = Path(name_or_folder)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CheckpointError(
                f"{folder} is neither a checkpoint nor a Hugging Face folder: it has no config.json",
                "name a run folder, one of its steps, or a folder with config.json and *.safetensors",
            )
        return folder
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
        try:
            with safe_open(path, framework="pt") as handle:
                tensors.update({name: handle.get_tensor(name) for name in handle.keys()})  # noqa: SIM118
        except Exception as error:  # the Rust side has an exception class of its own
            raise CheckpointError(f"{path} cannot be read: {error}", "download or make it again") from error
    return read_config(folder), tensors


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json``.

    Raises:
        CheckpointError: missing, damaged, or of quantised weights.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
        model_type = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}", "download or make it again") from error
    if config.get("quantization_config"):
        raise CheckpointError(f"{folder} holds quantised weights ({model_type})", "use the original weights")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights: those the index names, or all there are.

    Raises:
        CheckpointError: there are none, or one is missing.
    """
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{index} is damaged: {error!r}", "download or make it again") from error
        if outside := [name for name in names if Path(name).name != name]:
            raise CheckpointError(f"{index} names a file outside its folder: {outside[0]}", "do not use it")
        paths = [folder / name for name in names]
    else:
        paths = sorted(folder.glob("*.safetensors"))
    if missing := [path for path in paths if not path.is_file()]:
        raise CheckpointError(f"{missing[0]} is missing ({index.name} names it)", "download it again")
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


def load_model(folder: Path | str) -> CausalLM:
    """The model of a Hugging Face folder with its weights; code in the folder is not run.

    Raises:
        CheckpointError: it cannot be read, or its model type is not known to transformers.
    """
    folder = Path(folder)
    config = read_config(folder)
    weight_files(folder)  # refuses pickles before transformers sees the folder
    family = FAMILIES.get(config["model_type"])
    if family is not None and (arguments := _own_arguments(family, config)) is not None:
        model = family.build(**arguments)
        _fill(model, folder)
        return model
    return hf.from_pretrained(str(folder))


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
    config = read_config(folder)
    weight_files(folder)
    if not any_function:
        refuse_other_function(str(folder), same_function.differences_from_hf(config, model))
    if family_of(model) is not None:
        _fill(model, folder)
    elif isinstance(model, hf.HFCausalLM):
        if not hf_shards.load_pieces(_weights_and_buffers(model), weight_files(folder)):
            _copy_state(hf.from_pretrained(str(folder)), model, folder)
    else:
        raise CheckpointError(
            f"{type(model).__name__} cannot take weights from a Hugging Face folder",
            "load them in the model's own builder",
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
    names = model.hf_names()
    targets = {names[name]: parameter for name, parameter in model.named_parameters()}
    if not hf_shards.load_pieces(targets, weight_files(folder), rows=llama.logical_rows(model)):
        raise CheckpointError(
            f"{folder} lacks weights of a Llama with a head, such as {min(targets)}",
            "save it with transformers' LlamaForCausalLM",
        )


def _without_zero_biases(model: gpt2.GPT2, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A GPT-2 without biases is exported with zeros for them, and comes back without."""
    if model.config["bias"]:
        return tensors
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(".bias") or tensor.any()}


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
