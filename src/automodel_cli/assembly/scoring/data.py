"""What ``eval`` scores: token files of either kind that were named, or what the run itself validated on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from automodel_cli.assembly.data import build_dataset
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.commands import PretrainConfig
from automodel_cli.corpus.documents.globbing import expand
from automodel_cli.corpus.formats.manifest import MANIFEST_NAME, find_manifest, read_corpus_manifest
from automodel_cli.corpus.formats.megatron_bin import idx_path
from automodel_cli.corpus.formats.megatron_check import holds_megatron_files
from automodel_cli.corpus.formats.megatron_manifest import SUFFIX, read_megatron_manifest
from automodel_cli.data.megatron_dataset import MegatronPretraining
from automodel_cli.data.nanogpt_dataset import NanogptDataset
from automodel_cli.errors import AutomodelError, ConfigError
from automodel_cli.json_files import read_yaml

ScoredData = NanogptDataset | MegatronPretraining


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


def trained_documents(trained_as: Mapping[str, Any], wanted: bool | None = None) -> dict[str, Any]:
    """Keywords of ``NanogptDataset`` that keep documents apart as in training, or as ``wanted``; {} for not at all."""
    section = _section(trained_as, "dataset")
    apart = section.get("intra_document") is True if wanted is None else wanted
    bos_token = section.get("bos_token")
    known = {} if bos_token is None else {"bos_token": bos_token}
    return {"intra_document": True, **known} if apart else {}


def trained_raw_dtype(trained_as: Mapping[str, Any], wanted: str | None = None) -> str | None:
    """How files without a header are read: as ``wanted``, else as in training."""
    found = _section(trained_as, "dataset").get("raw_dtype")
    return wanted or (found if isinstance(found, str) else None)


def open_named(
    name: str,
    seq_len: int,
    *,
    held_out: bool = True,
    documents: Mapping[str, Any] | None = None,
    raw_dtype: str | None = None,
) -> ScoredData:
    """All tokens of what a name means, in the order of the files; of a corpus folder with ``held_out`` its validation.

    ``documents``, of ``trained_documents``, is for token files; Megatron's are read as one text.

    Raises:
        DataError: nothing there, or files that are damaged.
    """
    if _names_megatron_files(name):
        return MegatronPretraining(
            {"validation": _prefixes(name)}, seq_len, splits_to_build="validation", order="file"
        )
    files = held_out_files(name) if held_out else name
    return NanogptDataset(files, seq_len, raw_dtype=raw_dtype, **(documents or {}))


def _names_megatron_files(name: str) -> bool:
    """A prefix, one of its files, a folder of them, a manifest of pairs, or a pattern for any of these."""
    path = Path(name)
    if (path / MANIFEST_NAME).is_file():
        return False
    if path.exists() or idx_path(path).exists():
        return holds_megatron_files(path)
    return any(
        found.suffix in (".bin", ".idx")
        and idx_path(found.with_suffix("")).exists()
        and holds_megatron_files(found)
        for pattern in (name, f"{name}.idx")
        for found in expand(pattern)[:2]
    )


def _prefixes(name: str) -> list[str]:
    """``PREFIX.manifest.json`` stands for the pairs that it lists; anything else is the data set's to find."""
    if not name.endswith(SUFFIX):
        return [name]
    manifest = read_megatron_manifest(Path(name))
    return [str(manifest.prefix(pair)) for pair in manifest.pairs]


def held_out_files(name: str) -> str:
    """What an entry of ``data`` means: a corpus folder is its validation split where it has one."""
    folder = Path(name)
    if (folder / MANIFEST_NAME).is_file():
        manifest = read_corpus_manifest(folder)
        files = manifest.token_files("val")
        return str(manifest.path(files[0])) if files else name
    return name


# ------------------------------------------------------------------------- what the run validated on


def validation_sets(
    checkpoint: Path,
    trained_as: Mapping[str, Any],
    seq_len: int,
    *,
    documents: Mapping[str, Any] | None = None,
    raw_dtype: str | None = None,
) -> dict[str, ScoredData]:
    """What the run validated on, else the validation split of the corpus it was trained on.

    Raises:
        ConfigError: neither is known or still there.
    """
    megatron = _megatron_sets(checkpoint, trained_as, seq_len)
    if megatron:
        return megatron
    own = [_section(trained_as, key).get("raw_dtype") for key in _validation_sections(trained_as)]
    stored = next((found for found in own if isinstance(found, str)), raw_dtype)
    return {
        name: open_named(name, seq_len, documents=documents, raw_dtype=stored)
        for name in validation_data(trained_as)
    }


def _megatron_sets(checkpoint: Path, trained_as: Mapping[str, Any], seq_len: int) -> dict[str, ScoredData]:
    """Sets of Megatron files as the run itself had them: the same split, the same samples."""
    sections = {
        name: _section(trained_as, name) for name in trained_as if name.startswith("validation_dataset")
    }
    if not any("paths" in section for section in sections.values()):
        return {}
    cfg = load_config(PretrainConfig, checkpoint / "config.yaml")
    targets = {
        name: target for name, target in cfg.validation_datasets.items() if "paths" in target.arguments
    }
    return {
        name: build_dataset(
            cfg,
            replace(target, arguments={**target.arguments, "seq_length": seq_len}),
            split="validation",
        )
        for name, target in targets.items()
    }


def validation_data(trained_as: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the token files that the run validated on, else of the validation split beside its training files.

    Raises:
        ConfigError: neither is known or still there.
    """
    given = [_section(trained_as, name).get("file_pattern") for name in _validation_sections(trained_as)]
    patterns = [pattern for item in given for pattern in (item if isinstance(item, list) else [item])]
    found = [pattern for pattern in patterns if isinstance(pattern, str) and _is_there(pattern)]
    found = found or _validation_split(_section(trained_as, "dataset").get("file_pattern"))
    if not found:
        raise ConfigError(
            "there is no --data, and the checkpoint names no validation data that is here",
            "name token files: --data path/to/val.bin, or --data PREFIX of a .bin and .idx",
        )
    return tuple(found)


def _validation_sections(trained_as: Mapping[str, Any]) -> list[str]:
    return [key for key in trained_as if key == "validation_dataset" or key.startswith("validation_dataset_")]


def _section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = config.get(key)
    return found if isinstance(found, Mapping) else {}


def _is_there(pattern: str) -> bool:
    return bool(expand(pattern))


def _validation_split(pattern: Any) -> list[str]:
    """The first validation shard beside training files, by their manifest: a first shard stands for its split."""
    if not isinstance(pattern, str):
        return []
    token_file = min(expand(pattern), default=None)
    if token_file is None:
        return []
    is_corpus = (token_file / MANIFEST_NAME).is_file()
    manifest = read_corpus_manifest(token_file) if is_corpus else find_manifest(token_file)
    files = manifest.token_files("val") if manifest is not None else ()
    return [str(manifest.path(file)) for file in files[:1]] if manifest is not None else []
