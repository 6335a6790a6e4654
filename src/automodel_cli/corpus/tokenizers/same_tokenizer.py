"""Were these ids made by this tokenizer? A corpus and a model that mean different texts by one id train on noise.

Fingerprints are compared first. Where they differ, both may still be one vocabulary in two kinds of files, as GPT-2's
is: tiktoken's ranks and Hugging Face's ``tokenizer.json``. Then what they make of fixed texts decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from automodel_cli.corpus.tokenizer import load_tokenizer
from automodel_cli.corpus.tokenizers.base import Tokenizer
from automodel_cli.corpus.tokenizers.engines import probe_texts
from automodel_cli.errors import DataError


class MadeBy(Protocol):
    """What a manifest says of the tokenizer that made its ids."""

    @property
    def tokenizer(self) -> dict[str, Any]:
        """As ``Tokenizer.describe`` has it."""

    @property
    def tokenizer_folder(self) -> Path | None:
        """Where a copy is."""


def same_ids(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether both make the same ids of every probe.

    Texts that spell a special token are left out: corpora hold them as text, a foreign file may not.
    """
    if one.fingerprint() == other.fingerprint():
        return True
    return one.vocab_size == other.vocab_size and all(
        one.encode(text) == other.encode(text) for text in probe_texts() if "<|" not in text
    )


def extends(longer: Tokenizer, shorter: Tokenizer) -> bool:
    """Whether ``longer`` is ``shorter`` with special tokens added: an id of ``shorter`` means the same to both."""
    ids = longer.special_ids()
    added = sorted(ids.keys() - shorter.special_ids().keys(), key=ids.__getitem__)
    return bool(added) and shorter.with_special(added).fingerprint() == longer.fingerprint()


def made_the_ids(tokenizer: Any, manifest: MadeBy) -> bool:
    """Whether ``tokenizer`` means by an id what the manifest's tokenizer means.

    One that is not ours (transformers', Megatron's) is judged by its number of ids alone.
    """
    described: Mapping[str, Any] = manifest.tokenizer
    if not isinstance(tokenizer, Tokenizer):
        size = len(tokenizer) if hasattr(tokenizer, "__len__") else getattr(tokenizer, "vocab_size", None)
        return not isinstance(size, int) or size == described["vocab_size"]
    if tokenizer.fingerprint() == described["fingerprint"]:
        return True
    folder = manifest.tokenizer_folder
    return folder is not None and folder.is_dir() and same_ids(tokenizer, load_tokenizer(folder))


def refuse_other_tokenizer(tokenizer: Any, manifest: MadeBy, *, data: str) -> None:
    """Check that ``tokenizer`` is the one that made ``data``, or one with the same ids.

    Raises:
        DataError: it is another.
    """
    if made_the_ids(tokenizer, manifest):
        return
    described = manifest.tokenizer
    name = getattr(tokenizer, "name", None) or getattr(tokenizer, "name_or_path", type(tokenizer).__name__)
    found = f" ({tokenizer.fingerprint()})" if isinstance(tokenizer, Tokenizer) else ""
    raise DataError(
        f"{data} was tokenized with {described['name']} ({described['vocab_size']:,} ids, "
        f"{described['fingerprint']}), not with {name}{found}",
        "name the tokenizer that made the data, or leave it out: the data brings its own"
        + (f" in {manifest.tokenizer_folder}" if manifest.tokenizer_folder else ""),
    )
