"""The tokenizer that belongs to a run: the one its data came with, or the one the configuration names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from automodel_cli.config.schema import PretrainConfig
from automodel_cli.config.target import Target
from automodel_cli.corpus.tokenizer import Tokenizer, load_tokenizer, open_tokenizer
from automodel_cli.errors import ConfigError


@dataclass(frozen=True)
class RunTokenizer:
    """A tokenizer and the folder to copy into each checkpoint (None where it has none on disk)."""

    tokenizer: Tokenizer
    folder: Path | None

    def token_bytes(self) -> np.ndarray:
        """Bytes of text each id stands for, int32 ``[vocab_size]``."""
        return self.tokenizer.token_bytes()

    def facts(self) -> dict[str, Any]:
        """What a checkpoint remembers of it."""
        return {
            "name": self.tokenizer.name,
            "fingerprint": self.tokenizer.fingerprint(),
            "vocab_size": self.tokenizer.vocab_size,
            "eot_id": self.tokenizer.eot_id,
            "bos_id": self.tokenizer.bos_id,
        }


def run_tokenizer(cfg: PretrainConfig, dataset: Any) -> RunTokenizer | None:
    """The tokenizer of the configuration, else of the corpus, else None (token files say nothing of theirs)."""
    if cfg.tokenizer is not None:
        name = _tokenizer_name(cfg.tokenizer)
        folder = Path(name) if Path(name).is_dir() else None
        return RunTokenizer(open_tokenizer(name), folder)
    held = getattr(dataset, "tokenizer", None)
    if isinstance(held, Tokenizer):  # one that the dataset section names
        named = plain_tokenizer_name(cfg.dataset.arguments.get("tokenizer"))
        return RunTokenizer(held, Path(named) if named and Path(named).is_dir() else None)
    manifest = getattr(dataset, "manifest", None)
    folder = manifest.tokenizer_folder if manifest is not None else None
    if folder is None or not folder.is_dir():
        return None
    return RunTokenizer(load_tokenizer(folder), folder)


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
