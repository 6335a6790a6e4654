"""Weights that a run begins with: drawn from its seed, those of another run, or a Hugging Face folder's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from automodel_cli.assembly.tokenizer import RunTokenizer
from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.hf import format as hf_format
from automodel_cli.checkpoint.load_step import check_fits, load_step
from automodel_cli.checkpoint.new_rows import fill_new_rows, vocabulary_tables
from automodel_cli.corpus.tokenizer import Tokenizer, load_tokenizer
from automodel_cli.corpus.tokenizers.same_tokenizer import extends
from automodel_cli.distributed.world import World
from automodel_cli.errors import CheckpointError, DataError
from automodel_cli.models.huggingface import same_function
from automodel_cli.models.init import is_on_meta
from automodel_cli.models.interface import CausalLM
from automodel_cli.sizing.shape import VOCAB_MULTIPLE


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
    known, found = known_ids(init_from, model, tokenizer), layout.checkpoint_at(init_from)
    if found is None:
        with _named_init_from(init_from):
            folder = hf_format.find_folder(init_from)
            hf_format.check_fits(model, folder, any_function=any_function, known_ids=known)
        return
    if not any_function:
        _refuse_other_function(found, model)
    check_fits(found, model=model, growing=_growing(model, known))


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
    known: int | None = None,
    world: World | None = None,
) -> str:
    """Fill the model with random, pretrained or earlier weights; returns where they are from, in words.

    A model whose own target loaded weights (``from_pretrained``) keeps them. ``init_from`` is a checkpoint, a run
    folder, a Hugging Face folder or a hub name; only weights are taken. ``known``: how many ids they have, where that
    is fewer than the model (:func:`known_ids`); the rows of new ids begin as the mean of theirs. All ranks call this.
    """
    if model.pretrained and init_from is None:
        if is_on_meta(model):
            return _read_pretrained(model, device)
        model.to(device)
        return "pretrained, from its own target"
    model.materialize(device, seed)
    if init_from is None:
        return f"random, seed {seed}"
    found = layout.checkpoint_at(init_from)
    if found is not None:
        if not any_function:
            _refuse_other_function(found, model)
        load_step(found, World.single(), model=model, growing=_growing(model, known))
    else:
        with _named_init_from(init_from):
            folder = hf_format.find_folder(init_from)
            hf_format.load_into(model, folder, any_function=any_function, known_ids=known)
    said = f"{found or init_from}, weights only"
    if known is None:
        return said
    fill_new_rows(model, known, world or World.single(device))
    return f"{said}; ids from {known:,} on are new"


def _growing(model: CausalLM, known: int | None) -> list[str]:
    return [] if known is None else list(vocabulary_tables(model))


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
    from automodel_cli.models.huggingface.model import HFCausalLM

    assert isinstance(model, HFCausalLM)
    return hf_format.find_folder(str(model.hf.config.name_or_path))


def known_ids(init_from: str | None, model: CausalLM, tokenizer: RunTokenizer | None) -> int | None:
    """How many ids the weights know, where the data's tokenizer has special tokens beyond those; None: all of them.

    An id of the data has to mean to the weights what it means to the data. A checkpoint of ours has its tokenizer with
    it. Of foreign weights only the size of the vocabulary is known: it must agree, up to padding. Data without a
    tokenizer is trusted.

    Raises:
        DataError: characters for GPT-2, say: each id would pick a row that stands for something else.
    """
    if tokenizer is None or init_from is None:
        return None
    own, found = tokenizer.tokenizer, layout.checkpoint_at(init_from)
    stored = layout.read_step_manifest(found)["facts"].get("tokenizer") if found is not None else None
    if found is not None and stored is not None:
        if stored["fingerprint"] == own.fingerprint():
            return None
        before, other = _extended(found / "tokenizer", own), stored["name"]
    else:
        before = None if found is not None else _special_from(_ids_of_folder(init_from), own)
        if before is None and 0 <= model.vocab_size - own.vocab_size <= VOCAB_MULTIPLE:
            return None
        other = f"a vocabulary of {model.vocab_size:,}"
    if before is None:
        raise DataError(
            f"init_from {init_from} was trained with {other}, the data is in ids of {own.name} "
            f"({own.vocab_size:,} of them)",
            "make the token files with the tokenizer of those weights: preprocess nanogpt --tokenizer ...",
        )
    return before


def _extended(folder: Path, own: Tokenizer) -> int | None:
    """Ids of the tokenizer in ``folder``, where ``own`` is the same with special tokens added."""
    if not folder.is_dir():
        return None
    before = load_tokenizer(folder)
    return before.vocab_size if extends(own, before) else None


def _special_from(ids: int | None, own: Tokenizer) -> int | None:
    """``ids`` of foreign weights, where all that ``own`` has beyond them are special tokens."""
    if ids is None or ids >= own.vocab_size:
        return None
    return ids if set(range(ids, own.vocab_size)) <= set(own.special_ids().values()) else None


def _ids_of_folder(init_from: str) -> int | None:
    config: dict[str, Any] = hf_format.read_config(hf_format.find_folder(init_from))
    found = config.get("vocab_size")
    return found if isinstance(found, int) else None
