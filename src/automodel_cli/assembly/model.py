"""The model section: from a target to a built model with weights in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from automodel_cli import transformers_calls
from automodel_cli.assembly.tokenizer import RunTokenizer
from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.checkpointer import Checkpointer
from automodel_cli.checkpoint.hf import format as hf_format
from automodel_cli.checkpoint.load_step import check_fits
from automodel_cli.config.targets.instantiate import built_arguments, instantiate
from automodel_cli.config.targets.target import Target
from automodel_cli.errors import CheckpointError, ConfigError, DataError
from automodel_cli.models.huggingface import same_function
from automodel_cli.models.init import derive_seed, is_on_meta
from automodel_cli.models.interface import CausalLM
from automodel_cli.sizing.shape import VOCAB_MULTIPLE

# Targets whose weights are read by each rank for itself.
_PRETRAINED = (
    "transformers.AutoModelForCausalLM.from_pretrained",
    "automodel_cli.models.hf.from_pretrained",
)
# How to load that the architecture alone can follow; with others (a revision, ...) transformers loads it all.
_KNOWN_ON_META = {"dtype", "torch_dtype", "attn_implementation", "trust_remote_code"}


def build_model(target: Target, *, seed: int, trust: Sequence[str] = (), on_meta: bool = False) -> CausalLM:
    """Build what ``model:`` names and give it the ``CausalLM`` interface.

    A user's own module draws its initial values in its constructor, so the generator is seeded before it is called.
    ``on_meta``: builders that can are asked to allocate nothing.

    Raises:
        ConfigError: the target is not one that the section allows, or it does not return a module.
    """
    torch.manual_seed(derive_seed(seed, "init"))
    _check_local_folder(target)
    if on_meta and (model := _on_meta(target, trust)) is not None:
        return model
    built = instantiate(target, "model", inject={"is_meta_device": True} if on_meta else None, trust=trust)
    if not isinstance(built, nn.Module):
        raise ConfigError(
            f"model._target_ {target.name} returned {type(built).__name__}, not a torch.nn.Module",
            "name a callable that returns the model",
        )
    return _wrapped(built, pretrained=target.name.endswith(".from_pretrained"))


def _wrapped(module: nn.Module, *, pretrained: bool = False) -> CausalLM:
    if isinstance(module, CausalLM):
        return module
    from automodel_cli.models.hf import wrap  # transformers: seconds

    return wrap(module, pretrained=pretrained)


def _check_local_folder(target: Target) -> None:
    """Of a pretrained model in a folder here: its configuration in proportion to its weights, before it is believed."""
    source, below = (target.arguments.get(key) for key in ("pretrained_model_name_or_path", "subfolder"))
    if target.name.endswith(".from_pretrained") and isinstance(source, str) and Path(source).is_dir():
        hf_format.check_folder(hf_format.find_folder(Path(source) / str(below or "")))


def _on_meta(target: Target, trust: Sequence[str]) -> CausalLM | None:
    """A transformers model without storage, where its target would allocate some; None for other targets."""
    if target.name in _PRETRAINED:
        arguments = built_arguments(target, "model", trust=trust)
        loading = set(arguments) & set(transformers_calls.MODEL_ARGUMENTS)
        if not loading <= _KNOWN_ON_META:
            return None
        from automodel_cli.models.hf import pretrained_on_meta  # transformers: seconds

        return pretrained_on_meta(**arguments)
    if target.name.startswith("transformers.") and target.name.endswith(".from_config"):
        with torch.device("meta"):
            built = instantiate(target, "model", trust=trust)
        return _wrapped(built)
    return None


def check_weights(
    model: CausalLM, tokenizer: RunTokenizer | None, *, init_from: str | None, any_function: bool = False
) -> None:
    """Whether :func:`init_or_load_weights` would find weights that fit, as far as configurations and headers tell.

    Raises:
        CheckpointError: they are not there, or they are another model's.
        DataError: they know the ids of another tokenizer.
    """
    if init_from is None:
        if model.pretrained and is_on_meta(model):
            hf_format.check_fits(model, _pretrained_folder(model), any_function=True)
        return
    check_same_ids(init_from, model, tokenizer)
    found = checkpoint_at(init_from)
    if found is None:
        with _named_init_from(init_from):
            hf_format.check_fits(model, hf_format.find_folder(init_from), any_function=any_function)
        return
    if not any_function:
        _refuse_other_function(found, model)
    check_fits(found, model=model)


@contextlib.contextmanager
def _named_init_from(init_from: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"init_from: the weights of {init_from} do not fit the model: {error}",
            "give model: the shape of those weights (vocab_size, n_positions, n_layer, n_embd, ...)",
        ) from error


def init_or_load_weights(
    model: CausalLM,
    *,
    init_from: str | None,
    seed: int,
    device: torch.device,
    any_function: bool = False,
) -> str:
    """Fill the model with random, pretrained or earlier weights; returns where they are from, in words.

    A model whose own target loaded weights (``from_pretrained``) keeps them. ``init_from`` is a checkpoint, a run
    folder, a Hugging Face folder or a hub name; only weights are taken.
    """
    if model.pretrained and init_from is None:
        if is_on_meta(model):
            return _read_pretrained(model, device)
        model.to(device)
        return "pretrained, from its own target"
    model.materialize(device, seed)
    if init_from is None:
        return f"random, seed {seed}"
    found = checkpoint_at(init_from)
    if found is not None:
        if not any_function:
            _refuse_other_function(found, model)
        Checkpointer(found.parent).load(found, model=model)
        return f"{found}, weights only"
    with _named_init_from(init_from):
        hf_format.load_into(model, hf_format.find_folder(init_from), any_function=any_function)
    return f"{init_from}, weights only"


def _refuse_other_function(checkpoint: Path, model: CausalLM) -> None:
    stored = layout.read_step_manifest(checkpoint)["facts"].get("model")
    if stored is not None:
        hf_format.refuse_other_function(str(checkpoint), same_function.differences(stored, model))


def _read_pretrained(model: CausalLM, device: torch.device) -> str:
    """The weights that the model's target names, each rank its own pieces."""
    folder = _pretrained_folder(model)
    model.to_empty(device=device)
    hf_format.load_into(model, folder, any_function=True)  # the target's own arguments change what it says
    return f"pretrained, {folder}"


def _pretrained_folder(model: CausalLM) -> Path:
    from automodel_cli.models.hf import HFCausalLM

    assert isinstance(model, HFCausalLM)
    return hf_format.find_folder(str(model.hf.config.name_or_path))


def check_same_ids(init_from: str, model: CausalLM, tokenizer: RunTokenizer | None) -> None:
    """Check that an id of the data means to the weights what it means to the data, as far as can be told.

    A checkpoint of ours names its tokenizer. Foreign weights do not: there the vocabulary sizes must agree, up to
    padding. Data without a tokenizer is trusted.

    Raises:
        DataError: characters for GPT-2, say: each id would pick a row that stands for something else.
    """
    if tokenizer is None:
        return
    own = tokenizer.facts()
    found = checkpoint_at(init_from)
    stored = layout.read_step_manifest(found)["facts"].get("tokenizer") if found is not None else None
    if stored is not None:
        same, other = stored["fingerprint"] == own["fingerprint"], stored["name"]
    else:
        same = 0 <= model.vocab_size - own["vocab_size"] <= VOCAB_MULTIPLE
        other = f"a vocabulary of {model.vocab_size:,}"
    if not same:
        raise DataError(
            f"init_from {init_from} was trained with {other}, the data is in ids of {own['name']} "
            f"({own['vocab_size']:,} of them)",
            "make the token files with the tokenizer of those weights: preprocess nanogpt --tokenizer ...",
        )


def checkpoint_at(path: str | Path) -> Path | None:
    """The step folder that ``path`` is or points at (RUN/BEST), or the LATEST of a run folder; else None."""
    folder = layout.followed(path)
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    if layout.is_complete(folder) and layout.step_of(folder.name) is not None:
        return folder
    is_run = folder.is_dir() and ((folder / "LATEST").is_file() or layout.list_steps(folder))
    return layout.resolve(folder, "LATEST") if is_run else None
