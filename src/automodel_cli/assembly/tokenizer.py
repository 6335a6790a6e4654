"""The tokenizer that belongs to a run: the one its data came with, or the one the configuration names."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.targets.target import Target
from automodel_cli.corpus.tokenizer import Tokenizer, load_tokenizer, open_tokenizer
from automodel_cli.corpus.tokenizers.base import CARRIED_FILES
from automodel_cli.corpus.tokenizers.same_tokenizer import MadeBy, refuse_other_tokenizer
from automodel_cli.corpus.tokenizers.token_bytes import TokenBytes
from automodel_cli.data.interface import DataSource, source_of
from automodel_cli.errors import ConfigError, DataError


@dataclass(frozen=True)
class RunTokenizer:
    """A tokenizer and the folder to copy into each checkpoint; ``temporary`` is that folder if it is this run's own.

    ``separator_id`` stands between the documents of the corpus, where its manifest says so.
    """

    tokenizer: Tokenizer
    folder: Path
    temporary: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False)
    separator_id: int | None = None

    def token_bytes(self) -> TokenBytes | None:
        """Bytes of text that each id stands for; None where that cannot be told."""
        return self.tokenizer.text_bytes()

    def facts(self) -> dict[str, Any]:
        """What a checkpoint remembers of it."""
        return {
            "name": self.tokenizer.name,
            "fingerprint": self.tokenizer.fingerprint(),
            "vocab_size": self.tokenizer.vocab_size,
            "eot_id": self.tokenizer.eot_id,
            "bos_id": self.tokenizer.bos_id,
            "separator_id": self.separator_id,
        }


def run_tokenizer(cfg: PretrainConfig, dataset: Any) -> RunTokenizer | None:
    """The tokenizer of the configuration, else of the corpus, else None (token files say nothing of theirs).

    Raises:
        DataError: the configuration names another than the one that made the data.
    """
    source = source_of(dataset)
    manifest = source.manifest
    found = _find(cfg, source, manifest)
    return found and replace(found, separator_id=getattr(manifest, "separator_id", None))


def _find(cfg: PretrainConfig, source: DataSource, manifest: MadeBy | None) -> RunTokenizer | None:
    if cfg.tokenizer is not None:
        tokenizer = open_tokenizer(_tokenizer_name(cfg.tokenizer))
        if manifest is not None:
            refuse_other_tokenizer(tokenizer, manifest, data="the training data")
        return _with_folder(tokenizer, manifest)
    held = source.tokenizer
    if isinstance(held, Tokenizer):  # one that the dataset section names, or that came with its files
        return _with_folder(held, manifest)
    folder = _brought(manifest)
    return None if folder is None else RunTokenizer(load_tokenizer(folder), folder)


def _brought(manifest: MadeBy | None) -> Path | None:
    """The tokenizer's folder beside the data.

    Raises:
        DataError: a file of it is a link, and what it leads to would go into every checkpoint.
    """
    folder = None if manifest is None else manifest.tokenizer_folder
    if folder is None or not folder.is_dir():
        return None
    for path in [folder, *(folder / name for name in sorted(CARRIED_FILES))]:
        if path.is_symlink():
            raise DataError(
                f"{path} is a link, expected a tokenizer that can be copied into checkpoints",
                "copy the data with its links followed (cp -rL), then train on the copy",
            )
    return folder


def _with_folder(tokenizer: Tokenizer, manifest: MadeBy | None) -> RunTokenizer:
    """A tokenizer and a folder of nothing else: the data's copy, or one made for this run.

    Not the folder that it was named by, which may hold a model too.
    """
    folder = _brought(manifest)
    if manifest is not None and folder is not None and manifest.tokenizer["fingerprint"] == tokenizer.fingerprint():
        return RunTokenizer(tokenizer, folder)
    temporary = tempfile.TemporaryDirectory(prefix="automodel-tokenizer-")
    tokenizer.save(temporary.name)
    return RunTokenizer(tokenizer, Path(temporary.name), temporary)


def plain_tokenizer_name(value: Any) -> str | None:
    """The name or folder that ``tokenizer:`` consists of, None where it is more than that.

    For ``from_pretrained`` a folder of that name comes first, as for transformers, even if it is called gpt2.
    """
    if isinstance(value, Target) and list(value.arguments) == ["pretrained_model_name_or_path"]:
        name = value.arguments["pretrained_model_name_or_path"]
        return str(Path(name).absolute()) if isinstance(name, str) and Path(name).is_dir() else name
    return value if isinstance(value, str) else None


def _tokenizer_name(value: Target | str) -> str:
    """The name or folder in ``tokenizer: NAME`` or in a ``..._from_pretrained`` target."""
    if isinstance(value, str):
        return value
    name = value.arguments.get("pretrained_model_name_or_path")
    if not isinstance(name, str):
        raise ConfigError(
            f"tokenizer._target_ {value.name} has no pretrained_model_name_or_path",
            "name a tokenizer: gpt2, a hub id, or a folder",
        )
    return name
