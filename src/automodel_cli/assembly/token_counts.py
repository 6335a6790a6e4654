"""How many training tokens a configuration's files hold, and how often a run reads them. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from automodel_cli.batch_sizes import BatchSizes
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.corpus.formats.megatron_bin import bin_path, idx_path, inspect_prefix
from automodel_cli.data.arguments import MegatronArguments, MixtureArguments
from automodel_cli.data.files.token_files import open_token_files
from automodel_cli.data.megatron.gpt_index import parse_split
from automodel_cli.data.megatron.paths import read_paths
from automodel_cli.data.mixture.order import MixtureOrder
from automodel_cli.data.mixture.stages import stages_of
from automodel_cli.data.position import MOST_SAMPLES
from automodel_cli.errors import AutomodelError, ConfigError
from automodel_cli.storage.cache.local_view import LocalView
from automodel_cli.storage.cache.settings import use_cache


@dataclass(frozen=True)
class TokenCounts:
    """The training files: tokens and samples of one pass, None where they are not there (``missing`` says why).

    Attributes:
        sources: samples of each source of a mixture, by name; empty: it is no mixture.
    """

    tokens: int | None = None
    samples: int | None = None
    missing: str = ""
    sources: Mapping[str, int] = field(default_factory=dict)


def count_tokens(cfg: PretrainConfig, seq_len: int) -> TokenCounts:
    """Those of the data set, in rows of ``seq_len`` tokens."""
    use_cache(cfg.data_cache.settings)
    given = cfg.dataset.arguments
    mixed = given.get("sources")
    sections = dict(mixed) if isinstance(mixed, Mapping) else {"": given}  # of a mixture, or one data set
    if not all(isinstance(one, Mapping) and one.keys() & {"file_pattern", "paths"} for one in sections.values()):
        return TokenCounts(missing=f"{cfg.dataset.name} is not made of token files")
    try:
        counts = {name: _counted(one, seq_len) for name, one in sections.items()}
    except AutomodelError as error:
        return TokenCounts(missing=error.message)
    samples = {name: number for name, (_, number) in counts.items()}
    in_all = sum(tokens for tokens, _ in counts.values()), sum(samples.values())
    return TokenCounts(*in_all, sources=samples if mixed else {})


def passes_by_source(cfg: PretrainConfig, counts: TokenCounts, steps: int, sizes: BatchSizes) -> dict[str, float]:
    """How often ``steps`` updates read each source of a mixture, by its weights and stages; empty of other data.

    Raises:
        ConfigError: weights or stages that mean nothing.
    """
    samples = sizes.samples(steps)
    if not counts.sources or samples > MOST_SAMPLES:
        return {}
    length = {"global_batch_size": sizes, "max_steps": steps}
    options = MixtureArguments(**{**_known(cfg.dataset.arguments), **length})
    weights = _weights(options.sources, counts.sources)
    read = MixtureOrder(stages_of(options, weights)).given(samples)
    return {name: float(number) / max(1, counts.sources[name]) for name, number in zip(weights, read, strict=True)}


def _weights(sources: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, int]) -> dict[str, float]:
    """Of each source, by name, as the mixture has it: where none is given, its number of windows."""
    given = {name: sources[name].get("weight") for name in sorted(sizes)}
    if all(weight is None for weight in given.values()):
        return {name: float(sizes[name]) for name in given}
    found = {}
    for name, weight in given.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            what = "has no weight, others have" if weight is None else f"has the weight {weight!r}"
            raise ConfigError(f"dataset.sources.{name} {what}", "give each source a number, or none of them any")
        found[name] = float(weight)
    return found


def _known(given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: given[key] for key in ("sources", "seq_len", "stages") if key in given}


def _counted(given: Mapping[str, Any], seq_len: int) -> tuple[int, int]:
    """Tokens and samples of one pass over a data set's files."""
    if "file_pattern" in given:
        found = open_token_files(given["file_pattern"], raw_dtype=given.get("raw_dtype"))
        sizes = [one.num_tokens for one in found.files]
        return sum(sizes), sum((size - 1) // seq_len for size in sizes)
    tokens = _megatron_tokens(given["paths"], given.get("split", MegatronArguments.split))
    return tokens, tokens // seq_len


def _megatron_tokens(paths: Any, split: Any) -> int:
    """Tokens for training; by its share, where files are divided."""
    blend = read_paths(paths, "train", view := LocalView())
    view.fetch(map(idx_path, blend.prefixes))
    tokens = sum(inspect_prefix(prefix, view.object(bin_path(prefix))).num_tokens for prefix in blend.prefixes)
    low, high = (0.0, 1.0) if blend.own_files else parse_split(split)[0] or (0.0, 0.0)
    return round((high - low) * tokens)
