"""The sources of a mixture: a data set for each name, all with windows of one length and ids of one tokenizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from automodel_cli.corpus.tokenizer import load_tokenizer
from automodel_cli.corpus.tokenizers.same_tokenizer import refuse_other_tokenizer
from automodel_cli.data.arguments import MegatronArguments, MixtureArguments, NanogptArguments
from automodel_cli.data.files.token_dataset import TokenFileDataset
from automodel_cli.data.fim import Fim, open_fim
from automodel_cli.data.megatron_dataset import MegatronPretraining
from automodel_cli.data.mixture.checked import checked
from automodel_cli.data.nanogpt_dataset import NanogptDataset
from automodel_cli.data.position import MOST_SOURCES
from automodel_cli.errors import AutomodelError, ConfigError, DataError

_KINDS: dict[str, tuple[type[TokenFileDataset], type]] = {
    "file_pattern": (NanogptDataset, NanogptArguments),
    "paths": (MegatronPretraining, MegatronArguments),
}
_OF_A_SOURCE = ("weight", "objective_weight", "fim")  # which its data set does not take from here
_OF_THE_MIXTURE = ("seq_len", "seq_length", "splits_to_build")


def open_sources(options: MixtureArguments) -> dict[str, TokenFileDataset]:
    """The data set of each source, by name: neither a file nor JSON keeps the order of its keys for sure.

    Raises:
        ConfigError: no source, arguments of none of the two kinds, or such as the mixture decides.
        DataError: as the data sets have it, or ids of two tokenizers.
    """
    if not 0 < len(options.sources) <= MOST_SOURCES:
        raise ConfigError(f"dataset.sources has {len(options.sources)} sources", f"give it 1 to {MOST_SOURCES} of them")
    found = {name: _open(name, given, options) for name, given in sorted(options.sources.items())}
    _refuse_several_tokenizers(found)
    _refuse_several_labels(found)
    return found


def weights_of(options: MixtureArguments, sources: Mapping[str, TokenFileDataset]) -> dict[str, float]:
    """The weight of each source; where none is given, its number of windows.

    Raises:
        ConfigError: some have one and some have not, or one is no number.
    """
    return _numbers(options, "weight") or {name: float(len(source)) for name, source in sources.items()}


def objective_weights_of(options: MixtureArguments) -> dict[str, float] | None:
    """The objective weight of each source; None where none is given.

    Raises:
        ConfigError: some have one and some have not, or one is no number from 0 on.
    """
    given = _numbers(options, "objective_weight")
    for name, weight in (given or {}).items():
        if not 0 <= weight < math.inf:
            raise ConfigError(f"dataset.sources.{name}.objective_weight is {weight:g}", "give a number, 0 or more")
    return given


def _numbers(options: MixtureArguments, key: str) -> dict[str, float] | None:
    """What each source, by name, has at ``key``; None where none has it."""
    given = {name: source.get(key) for name, source in sorted(options.sources.items())}
    missing = [name for name, number in given.items() if number is None]
    if len(missing) == len(given):
        return None
    if missing:
        raise ConfigError(
            f"dataset.sources.{missing[0]} has no {key}, others have", "give each source one, or none of them"
        )
    for name, number in given.items():
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise ConfigError(f"dataset.sources.{name}.{key} is {number!r}", "give a number, 0 or more")
    return {name: float(number) for name, number in given.items() if number is not None}


def _open(name: str, given: Mapping[str, Any], options: MixtureArguments) -> TokenFileDataset:
    key = f"dataset.sources.{name}"
    kinds = [kind for kind in _KINDS if kind in (given if isinstance(given, Mapping) else ())]
    if len(kinds) != 1:
        raise ConfigError(f"{key} has to have file_pattern (token files) or paths (Megatron files)", "give one of them")
    decided = [argument for argument in _OF_THE_MIXTURE if argument in given]
    if decided:
        raise ConfigError(f"{key}.{decided[0]} is the same for all sources", "set it once: dataset.seq_len")
    kind, arguments = _KINDS[kinds[0]]
    own = {argument: value for argument, value in given.items() if argument not in _OF_A_SOURCE}
    if kind is NanogptDataset:
        own = {"shuffle_files": options.split == "train", "seed": options.seed, **own, "seq_len": options.seq_len}
    else:
        split = {"splits_to_build": options.split, "seq_length": options.seq_len}
        order = "stateless" if options.split == "train" else "file"
        own = {"order": order, "seed": options.seed % 2**32, **own, **split}
        if own["order"] == "megatron":
            raise ConfigError(
                f"{key}.order is megatron, which is an order of a whole run's samples", "leave it out in a mixture"
            )
        if own.get("add_extra_token_to_sequence") is False:
            raise ConfigError(f"{key}.add_extra_token_to_sequence is false", "leave it out in a mixture")
    given_to_it: Any = checked(arguments, own, key)
    try:
        return kind(**vars(given_to_it))
    except AutomodelError as error:
        raise type(error)(f"source {name}: {error.message}", error.hint) from error


def fims_of(options: MixtureArguments, sources: Mapping[str, TokenFileDataset]) -> dict[str, Fim | None]:
    """How rows of each source are rearranged; in training only.

    Raises:
        ConfigError: as ``open_fim`` has it.
    """
    return {
        name: open_fim(
            options.sources[name].get("fim") if options.split == "train" else None,
            f"dataset.sources.{name}.fim",
            manifest=source.manifest,
            separator=getattr(source, "bos_token", None),
            seed=options.seed,
        )
        for name, source in sources.items()
    }


def _refuse_several_tokenizers(sources: Mapping[str, TokenFileDataset]) -> None:
    known = {name: source.manifest for name, source in sources.items() if source.manifest is not None}
    first = next(iter(known.values()), None)
    for name, manifest in known.items():
        if first is None or manifest.tokenizer["fingerprint"] == first.tokenizer["fingerprint"]:
            continue
        folder = first.tokenizer_folder
        if folder is None or not folder.is_dir():
            raise DataError(
                f"source {name} was tokenized with {manifest.tokenizer['name']}, {next(iter(known))} with "
                f"{first.tokenizer['name']}",
                "tokenize all sources with one tokenizer",
            )
        refuse_other_tokenizer(load_tokenizer(folder), manifest, data=f"source {name}")


def _refuse_several_labels(sources: Mapping[str, TokenFileDataset]) -> None:
    """Batches are made of rows of several sources, so all have to mean one thing by documents and labels."""
    rules = {name: source.label_rule for name, source in sources.items()}
    first = next(iter(rules))
    for name, rule in rules.items():
        if rule != rules[first]:
            raise ConfigError(
                f"sources {first} and {name} treat documents differently (intra_document, reset_position_ids, "
                "eod_mask_loss, the token between documents)",
                "give all sources the same settings",
            )
