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
from pathlib import Path
from typing import Annotated, Any

import huggingface_hub
from pydantic import Field

from automodel_cli.checkpoint import nested_runs
from automodel_cli.checkpoint.hf import bounds as hf_bounds
from automodel_cli.checkpoint.hf import shards as hf_shards
from automodel_cli.checkpoint.imports import trainers as imports
from automodel_cli.checkpoint.storage import sharded
from automodel_cli.errors import AutomodelError, CheckpointError
from automodel_cli.json_files import FileModel, read_json, read_model, validated, without_controls
from automodel_cli.models import hf
from automodel_cli.models.families import Family, family_named
from automodel_cli.models.hf import pretrained_on_meta
from automodel_cli.models.huggingface import same_function
from automodel_cli.models.init import copy_whole
from automodel_cli.models.interface import CausalLM

INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


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
    family = family_named(config["model_type"])
    with _named(folder):
        arguments = None if family is None else _own_arguments(family, config)
        if family is not None and arguments is not None:
            model = family.build(arguments, is_meta_device=True)
        else:
            model = pretrained_on_meta(str(folder))
        hf_bounds.check_total(model, shapes, folder)
        model.to_empty(device="cpu")
        _fill(model, folder)
        return model


def _own_arguments(family: Family, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Arguments of a builder of ours, or None for a variant that only transformers has."""
    try:
        return family.config.from_hf(config)
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
    _fill(model, folder)


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
    if not model.has_hf_format:
        raise CheckpointError(
            "a model of your own cannot take weights from a Hugging Face folder",
            "load them in the model's own builder",
        )
    hf_shards.targets_of(model, shapes, folder)


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
    """Fill ``model``, through transformers where a file's names are not those in memory."""
    if hf_shards.load_pieces(model, weight_files(folder), folder):
        return
    assert isinstance(model, hf.HFCausalLM)
    with _named(folder):
        source, missing = hf.from_pretrained_complete(str(folder))
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} weights of its model, such as {min(missing)}", _ANEW
        )
    stored, own = source.hf.state_dict(), model.hf.state_dict()
    sharded.compare_names(folder, stored, own)
    for name, tensor in stored.items():
        whole = sharded.WholeTensor(tensor.dtype, tuple(tensor.shape))
        sharded.compare_tensor(folder, name, whole, own[name], cast=True)
        copy_whole(own[name], tensor)
