"""Hugging Face folders, read: into our models or those of transformers. safetensors only; pickles are refused.

    config.json                        model_type, sizes
    model.safetensors                  or model-00001-of-0000N.safetensors with model.safetensors.index.json
    tokenizer.json, tokenizer_config.json, automodel_tokenizer.json, ...

A family of ours says itself how its weights lie there (``CausalLM.hf_tensors``). Names of other transformers models on
disk need not be those in memory: where they are not, transformers reads them. ``export`` writes such folders.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import huggingface_hub
import torch
from pydantic import Field
from safetensors import safe_open

from automodel_cli.checkpoint import nested_runs
from automodel_cli.checkpoint.hf import bounds as hf_bounds
from automodel_cli.checkpoint.imports import trainers as imports
from automodel_cli.checkpoint.storage import formats
from automodel_cli.checkpoint.storage.local_shards import local_shard
from automodel_cli.checkpoint.storage.tensor_file import read_header
from automodel_cli.errors import AutomodelError, CheckpointError
from automodel_cli.json_files import FileModel, read_json, read_model, validated, without_controls
from automodel_cli.models.families import Family, family_reading
from automodel_cli.models.huggingface import same_function
from automodel_cli.models.init import copy_whole
from automodel_cli.models.interface import CausalLM, HFTensor
from automodel_cli.text import first_line

INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def nothing_to_load(path: Path) -> CheckpointError:
    """What is said of a path that is neither a checkpoint nor a Hugging Face folder."""
    if (trainer := imports.trainer_of(path)) is not None:
        return CheckpointError(
            f"{path} is a checkpoint of {trainer}",
            f"automodel import {path} OUT makes a folder that can be used here",
        )
    found = "there is nothing by that name" if not path.exists() else "it has no config.json"
    return CheckpointError(
        f"{path} is not a checkpoint, run folder or Hugging Face folder: {found}",
        nested_runs.way_down(path)
        or "name a run folder, one of its steps, or a folder with config.json and *.safetensors",
    )


def find_folder(name_or_folder: str | Path) -> Path:
    """A local Hugging Face folder, or the cached or downloaded copy of a hub repository (safetensors and JSON only).

    Raises:
        CheckpointError: there is neither.
    """
    folder = Path(name_or_folder)
    if (folder / "config.json").is_file():
        return folder
    if folder.exists():
        raise nothing_to_load(folder)
    try:
        return Path(huggingface_hub.snapshot_download(str(name_or_folder), allow_patterns=["*.safetensors", "*.json"]))
    except (OSError, ValueError, RuntimeError) as error:  # offline, no such repository, not a name at all
        raise CheckpointError(
            f"{name_or_folder} is not a folder here and cannot be downloaded from the Hub: {first_line(error)}",
            "without a network, name a folder with config.json and *.safetensors",
        ) from error


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
        CheckpointError: missing, damaged, or of quantized weights.
    """
    path = folder / "config.json"
    # transformers before 5 wrote Infinity as such
    config = read_json(path, CheckpointError, hint=_ANEW, max_bytes=_MAX_CONFIG_BYTES, allow_nan=True)
    known = validated(config, _ConfigFile, path, CheckpointError, hint=_ANEW)
    if known.quantization_config:
        raise CheckpointError(
            f"{folder} holds quantized weights ({without_controls(known.model_type)})",
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
        what = f"is missing ({index.name} names it)" if index.exists() else "is not a file"
        raise CheckpointError(f"{shown} {what}", "download it again")
    if not paths:
        if pickles := sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES):
            raise CheckpointError(
                f"{folder} has only pickles ({', '.join(pickles[:3])})",
                "pickles can run code and are not read: convert them with transformers' save_pretrained",
            )
        raise CheckpointError(f"{folder} has no *.safetensors", "name a folder with config.json and *.safetensors")
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
        reason = without_controls(f"{type(error).__name__}: {first_line(error)}")
        raise CheckpointError(f"{folder} holds no model that can be built: {reason}", _ANEW) from error


def load_model(folder: Path | str) -> CausalLM:
    """The model of a Hugging Face folder with its weights; code in the folder is not run.

    Raises:
        CheckpointError: it cannot be read, or its model type is not known to transformers.
    """
    folder = Path(folder)
    model, _ = on_meta(folder)
    with _named(folder):
        model.to_empty(device="cpu")
        _fill(model, folder)
        return model


def on_meta(folder: Path) -> tuple[CausalLM, hf_bounds.Shapes]:
    """The model of a Hugging Face folder on the meta device, and the shapes of the tensors there.

    Raises:
        CheckpointError: it cannot be read, or its model type is not known to transformers.
    """
    config, shapes = check_folder(folder)
    family = family_reading(config["model_type"])
    with _named(folder):
        arguments = None if family is None else _own_arguments(family, config)
        if family is not None and arguments is not None:
            model = family.build(arguments, is_meta_device=True)
        else:
            from automodel_cli.models.hf import pretrained_on_meta  # transformers: seconds

            model = pretrained_on_meta(str(folder))
        hf_bounds.check_total(model, shapes, folder)
    return model, shapes


def _own_arguments(family: Family, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Arguments of a builder of ours, or None for a variant that only transformers has."""
    try:
        return family.config.from_hf(config)
    except CheckpointError:
        return None


def load_into(model: CausalLM, folder: Path | str, *, any_function: bool = False, known_ids: int | None = None) -> None:
    """Fill ``model`` with the weights of a Hugging Face folder.

    Args:
        any_function: also where the folder's configuration makes another function of them than ``model`` does.
        known_ids: also where the folder has this many ids, fewer than the model; further rows become zeros.

    Raises:
        CheckpointError: the folder holds another kind of model, another function, or other sizes.
    """
    folder = Path(folder)
    check_fits(model, folder, any_function=any_function, known_ids=known_ids)
    _fill(model, folder, known_ids)


def check_fits(model: CausalLM, folder: Path, *, any_function: bool = False, known_ids: int | None = None) -> None:
    """Whether :func:`load_into` would take ``folder``, as far as headers tell; no tensor is read.

    Left open: biases that are zeros may go into a GPT-2 without, and names that only transformers can map.

    Raises:
        CheckpointError: the folder holds another kind of model, another function, or other sizes.
    """
    config, shapes = check_folder(folder)
    if not model.has_hf_format:
        raise CheckpointError(
            f"this model cannot take weights from a Hugging Face folder: {model.why_no_hf_format}",
            "load them in the model's own builder, or set the model section to what the folder holds",
        )
    if not any_function:
        with _named(folder):
            differences = same_function.differences_from_hf(config, model)
        refuse_other_function(str(folder), differences)
    targets_of(model, shapes, folder, known_ids)


def refuse_other_function(source: str, differences: Sequence[str]) -> None:
    """Say what makes another function of the weights in ``source`` than what they were trained as.

    Raises:
        CheckpointError: there is something.
    """
    if differences:
        raise CheckpointError(
            f"the weights in {source} compute another function: {'; '.join(differences)}",
            "set the model section to the values of the weights, or use them anyway with init_from_any_function: true",
        )


def _fill(model: CausalLM, folder: Path, known_ids: int | None = None) -> None:
    """Fill ``model``, through transformers where a file's names are not those in memory."""
    if load_pieces(model, weight_files(folder), folder, known_ids):
        return
    from automodel_cli.models import hf  # transformers: seconds

    assert isinstance(model, hf.HFCausalLM)
    with _named(folder):
        source, missing = hf.from_pretrained_complete(str(folder))
    if missing:
        raise CheckpointError(f"{folder} lacks {len(missing)} weights of its model, such as {min(missing)}", _ANEW)
    stored, own = source.hf.state_dict(), model.hf.state_dict()
    formats.compare(folder, stored, own, cast=True)
    for name, tensor in stored.items():
        copy_whole(own[name], tensor)


# ---------------------------------------------------------------------------------------------- pieces of tensors


@dataclass(frozen=True)
class Target:
    """A tensor of the model, and how it lies in the file."""

    tensor: torch.Tensor
    there: HFTensor


def targets_of(
    model: CausalLM, shapes: hf_bounds.Shapes, folder: Path, known_ids: int | None = None
) -> dict[str, Target] | None:
    """Name in the file -> what is filled from it; None where only transformers can map the names.

    Raises:
        CheckpointError: a tensor is missing, of another shape, or (of GPT-2) left over.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    targets = {
        _name_in(shapes, there.name, model.hf_prefix): Target(tensors[ours], there)
        for ours, there in model.hf_tensors().items()
    }
    missing = sorted(targets.keys() - shapes.keys())
    if missing and model.hf_config() is None:
        return None
    problems = [f"{name} is missing" for name in missing]
    problems += [f"{name} is not part of the model" for name in _left_over(model, targets, shapes)]
    for name in sorted(targets.keys() & shapes.keys()):
        target, found = targets[name], tuple(shapes[name])
        rows = len(target.tensor) if target.there.rows is None else target.there.rows
        if known_ids is not None and (rows, *found[:1]) == (model.vocab_size, known_ids):
            target = targets[name] = replace(target, there=replace(target.there, rows=known_ids))
        expected = target.there.shape(target.tensor)
        if found != expected:
            problems.append(f"{name} has shape {found}, expected {expected}")
    _refuse_problems(folder, problems)
    return targets


def _name_in(shapes: hf_bounds.Shapes, name: str, prefix: str) -> str:
    return name if name in shapes else name.removeprefix(prefix)


def _left_over(model: CausalLM, targets: Mapping[str, Target], shapes: hf_bounds.Shapes) -> list[str]:
    if model.hf_ignored is None:
        return []
    zeros = {_name_in(shapes, name, model.hf_prefix) for name in model.hf_zeros()}
    others = sorted(shapes.keys() - targets.keys() - zeros)
    return [name for name in others if not model.hf_ignored.fullmatch(name)]


def _refuse_problems(folder: Path, problems: Sequence[str]) -> None:
    if problems:
        raise CheckpointError(
            f"the weights in {folder} do not fit the model: {'; '.join(problems[:5])}",
            "build the model with the sizes in the folder's config.json",
        )


def load_pieces(model: CausalLM, files: Sequence[Path], folder: Path, known_ids: int | None = None) -> bool:
    """Fill ``model`` from safetensors; False, and nothing done, where only transformers can map the names.

    Of a distributed tensor this rank's rows and columns are read, the rest of the file is not. Values are cast.

    Raises:
        CheckpointError: as :func:`targets_of`, or a file cannot be read.
    """
    headers = {path: read_header(path).tensors for path in files}
    shapes = {name: info.shape for tensors in headers.values() for name, info in tensors.items()}
    targets = targets_of(model, shapes, folder, known_ids)
    if targets is None:
        return False
    zeros = {_name_in(shapes, name, model.hf_prefix) for name in model.hf_zeros()}
    for path, names in headers.items():
        with _opened(path) as handle:
            other = [name for name in names.keys() & zeros if handle.get_tensor(name).any()]
            _refuse_problems(folder, [f"{name} is not part of the model" for name in sorted(other)])
            for name in names.keys() & targets.keys():
                _fill_piece(targets[name], handle.get_slice(name))
    return True


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except Exception as error:  # the Rust side has an exception class of its own
        raise CheckpointError(f"{path} cannot be read: {error}", "download or make it again") from error


@torch.no_grad()
def _fill_piece(target: Target, stored: Any) -> None:
    shard = local_shard(target.there.name, target.tensor)
    local, rows = shard.values, target.there.rows
    if rows is not None:
        there = max(min(rows - shard.offsets[0], len(local)), 0)  # rows of this piece that are in the file
        local[there:].zero_()
        local = local[:there]
    if local.numel() == 0:  # fewer rows than ranks: this one has none
        return
    piece = tuple(slice(begin, begin + size) for begin, size in zip(shard.offsets, local.shape, strict=True))
    local.copy_(stored[piece[::-1]].t() if target.there.transposed else stored[piece])
