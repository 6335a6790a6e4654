"""What ``eval`` scores: token files of either kind that were named, or what the run itself validated on."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from automodel_cli.assembly.data import build_dataset, declared_by
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.targets.roles import ROLES
from automodel_cli.corpus.documents.globbing import expand
from automodel_cli.corpus.formats.manifest import MANIFEST_NAME, find_manifest, read_corpus_manifest
from automodel_cli.data.interface import DataSource, WindowDataset
from automodel_cli.errors import AutomodelError, ConfigError
from automodel_cli.json_files import read_yaml
from automodel_cli.storage.cache.local_view import LocalView
from automodel_cli.storage.urls import is_remote


def training_config(checkpoint: Path) -> dict[str, Any]:
    """The configuration stored with the checkpoint, as plain values; {} where there is none that can be read."""
    try:
        stored = read_yaml(checkpoint / "config.yaml")
    except AutomodelError:
        return {}
    return stored if isinstance(stored, dict) else {}


def trained_seq_len(trained_as: Mapping[str, Any]) -> int | None:
    """The window length of the training data."""
    section = _section(trained_as, "dataset")
    found = section.get("seq_len", section.get("seq_length"))
    return found if isinstance(found, int) else None


def trained_arguments(
    trained_as: Mapping[str, Any], intra_document: bool | None = None, raw_dtype: str | None = None
) -> dict[str, Any]:
    """How the training data's files are read, as arguments of a data set: as wanted, else as in training.

    ``intra_document`` with its ``bos_token`` where documents are kept apart, ``raw_dtype`` where it is known.
    """
    section = _section(trained_as, "dataset")
    apart = section.get("intra_document") is True if intra_document is None else intra_document
    kept = {"intra_document": True, "bos_token": section.get("bos_token")} if apart else {}
    kept["raw_dtype"] = raw_dtype or _raw_dtype(section)
    return {name: value for name, value in kept.items() if value is not None}


def _raw_dtype(section: Mapping[str, Any]) -> str | None:
    found = section.get("raw_dtype")
    return found if isinstance(found, str) else None


def open_named(
    name: str, seq_len: int, *, held_out: bool = True, trained_as: Mapping[str, Any] | None = None
) -> DataSource:
    """All tokens (or conversations) of what a name means, in the order of the files.

    Of a corpus folder with ``held_out`` that is its validation.
    Each of our kinds of data sets is asked whether the files are of it, the last line of ``roles`` first.

    Args:
        trained_as: of ``trained_arguments``.

    Raises:
        DataError: nothing there, or files that are damaged.
    """
    opened = (
        kind.open_named(name, seq_len, held_out=held_out, trained_as=trained_as or {})
        for kind in map(_class_of, reversed(list(ROLES["dataset"].ours)))
    )
    return next(found for found in opened if found is not None)


def _class_of(name: str) -> type[DataSource]:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


# ------------------------------------------------------------------------- what the run validated on


def validation_sets(
    checkpoint: Path, trained_as: Mapping[str, Any], seq_len: int, *, like: Mapping[str, Any]
) -> dict[str, DataSource]:
    """What the run validated on, else the validation split of the corpus it was trained on.

    Args:
        like: of ``trained_arguments``; the validation set's own ``raw_dtype`` comes first.

    Raises:
        ConfigError: neither is known or still there.
    """
    sections = [_section(trained_as, key) for key in _validation_sections(trained_as)]
    if any("file_pattern" not in section for section in sections):
        found = _sets_of_the_run(checkpoint, seq_len)
        if found:
            return found
    stored = next(filter(None, map(_raw_dtype, sections)), None)
    own = {} if stored is None else {"raw_dtype": stored}
    return {name: open_named(name, seq_len, trained_as={**like, **own}) for name in validation_data(trained_as)}


def _sets_of_the_run(checkpoint: Path, seq_len: int) -> dict[str, DataSource]:
    """Sets that are more than all tokens of some files, as the run had them: the same split, the same samples."""
    cfg = load_config(PretrainConfig, checkpoint / "config.yaml")
    found: dict[str, DataSource] = {}
    for name, target in cfg.validation_datasets.items():
        kind = declared_by(target)
        if issubclass(kind, WindowDataset) and "file_pattern" not in target.arguments:
            target = replace(target, arguments={**target.arguments, kind.seq_len_argument: seq_len})
            found[name] = build_dataset(cfg, target, split="validation")
    return found


def validation_data(trained_as: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the token files that the run validated on, else of the validation split beside its training files.

    Raises:
        ConfigError: neither is known or still there.
    """
    given = [_section(trained_as, name).get("file_pattern") for name in _validation_sections(trained_as)]
    patterns = [pattern for item in given for pattern in (item if isinstance(item, list) else [item])]
    found = [pattern for pattern in patterns if isinstance(pattern, str) and (is_remote(pattern) or expand(pattern))]
    found = found or _validation_split(_section(trained_as, "dataset").get("file_pattern"))
    if not found:
        raise ConfigError(
            "no --data is given, and the checkpoint names no validation data that exists here",
            "name token files: --data path/to/val.bin, or --data PREFIX of a .bin and .idx",
        )
    return tuple(found)


def _validation_sections(trained_as: Mapping[str, Any]) -> list[str]:
    return [key for key in trained_as if key == "validation_dataset" or key.startswith("validation_dataset_")]


def _section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = config.get(key)
    return found if isinstance(found, Mapping) else {}


def _validation_split(pattern: Any) -> list[str]:
    """The first validation shard beside training files, by their manifest: a first shard stands for its split."""
    if not isinstance(pattern, str):
        return []
    view = LocalView()
    token_file = min(expand(view.place(pattern)), default=None)
    if token_file is None:
        return []
    is_corpus = (token_file / MANIFEST_NAME).is_file()
    manifest = read_corpus_manifest(token_file) if is_corpus else find_manifest(token_file)
    files = manifest.token_files("val") if manifest is not None else ()
    return [view.name(manifest.path(file)) for file in files[:1]] if manifest is not None else []
