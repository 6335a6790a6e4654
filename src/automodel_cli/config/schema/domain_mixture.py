"""Section `domain_mixture` of NeMo AutoModel's files, and validation sets that are named after a mixture's sources."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import field_validator

from automodel_cli.config.schema.base import NotNegative, Positive, Section
from automodel_cli.config.targets.target import Target

WEIGHTED = "weighted"
_MEGATRON, _NANOGPT = "MegatronPretraining", "NanogptDataset"
_NAMES_OF_MEGATRON = (_MEGATRON, f"{_MEGATRON}Config")  # the second in NeMo's newer files
_OF_TRAINING = ("weight", "objective_weight", "fim", "file_pattern", "paths", "shuffle_files", "seed", "order")


class Domain(Section):
    """One domain: a prefix of `dataset.paths`."""

    name: str
    """Name in the log."""
    sampling_weight: Positive
    """Its share of the rows, whatever the weights add up to."""
    objective_weight: NotNegative
    """Its share in what is trained for, whatever the weights add up to: its tokens count `objective / sampling`."""
    path: str
    """Its prefix, the same as at its place in `dataset.paths`."""


class DomainMixtureConfig(Section):
    """Megatron files sampled by one set of weights and trained for another (importance weights). For token files:
    `weight` and `objective_weight` of the sources of a `Mixture`."""

    domains: tuple[Domain, ...]
    """Two or more domains, in the order of `dataset.paths`."""

    @field_validator("domains")
    @classmethod
    def _tell_apart(cls, domains: tuple[Domain, ...]) -> tuple[Domain, ...]:
        names = [domain.name for domain in domains]
        if len(domains) < 2:
            raise ValueError(f"expected two or more domains, found {len(domains)}")
        if len(set(names)) < len(names):
            raise ValueError("two domains have one name")
        if WEIGHTED in names:
            raise ValueError(f"{WEIGHTED!r} is the name of the mean over domains; give the domain another one")
        if not any(domain.objective_weight for domain in domains):
            raise ValueError("all objective weights are 0; give one domain more")
        return domains

    def check(self, dataset: Target) -> None:
        """Check that the domains are the files of ``dataset``.

        Raises:
            ValueError: it reads no Megatron files, or others, in another order or by other weights.
        """
        if dataset.name.rpartition(".")[2] not in _NAMES_OF_MEGATRON:
            raise ValueError(
                f"domain_mixture is for {_MEGATRON}; give the sources of a Mixture a weight and an objective_weight"
            )
        prefixes, weights = _entries(_of_train(dataset.arguments.get("paths")))
        wanted = [domain.path for domain in self.domains]
        if prefixes != wanted:
            raise ValueError(
                f"the paths of domain_mixture ({', '.join(wanted)}) have to be those of dataset.paths "
                f"({', '.join(prefixes)}), in their order"
            )
        own = [domain.sampling_weight for domain in self.domains]
        given = weights or own
        total = sum(given)
        if not total > 0 or any(not math.isclose(a / sum(own), b / total) for a, b in zip(own, given, strict=True)):
            raise ValueError("dataset.paths has other weights than domain_mixture; leave them out there")

    def apply(self, dataset: Target) -> dict[str, Any]:
        """The arguments of ``dataset`` with the weights and names of the domains."""
        given = dataset.arguments["paths"]
        blend = [item for domain in self.domains for item in (domain.sampling_weight, domain.path)]
        paths = {**given, _train_key(given): blend} if isinstance(given, Mapping) else blend
        domains = [{"name": domain.name, "objective_weight": domain.objective_weight} for domain in self.domains]
        return {**dataset.arguments, "paths": paths, "domains": domains}


def _train_key(paths: Mapping[str, Any]) -> str:
    return next((key for key in paths if key in ("train", "training")), "train")


def _of_train(paths: Any) -> list[Any]:
    found = paths.get(_train_key(paths)) if isinstance(paths, Mapping) else paths
    return list(found) if isinstance(found, Sequence) and not isinstance(found, str) else [found]


def _entries(items: list[Any]) -> tuple[list[str], list[float] | None]:
    """The prefixes of a list, and their weights where these stand before them."""
    try:
        weights = [float(item) for item in items[::2]]
    except (TypeError, ValueError):
        return [str(item) for item in items], None
    return [str(item) for item in items[1::2]], weights if len(items) % 2 == 0 else None


def held_out(dataset: Target, name: str, path: str | Sequence[str]) -> Target:
    """The validation set of a source of the mixture ``dataset``: ``path``, read as the source is.

    Raises:
        ValueError: there is no such source.
    """
    sources = dataset.arguments.get("sources")
    source = sources.get(name) if isinstance(sources, Mapping) else None
    if not isinstance(source, Mapping):
        known = f"; they are {', '.join(map(str, sources))}" if isinstance(sources, Mapping) else ""
        raise ValueError(f"validation_sources.{name}: dataset.sources has no {name}{known}")
    path, seq_len = path if isinstance(path, str) else list(path), dataset.arguments.get("seq_len")
    like = {key: value for key, value in source.items() if key not in _OF_TRAINING}
    if "paths" in source:
        own = path == source["paths"]  # then the validation split of these files, else all of those
        more = {"paths": path if own else {"validation": path}, "seq_length": seq_len, "order": "file"}
        return Target.parse({"_target_": _MEGATRON, **like, **more, "splits_to_build": "validation"})
    return Target.parse({"_target_": _NANOGPT, **like, "file_pattern": path, "seq_len": seq_len})
