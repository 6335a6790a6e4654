"""Fill-in-the-middle: parts of documents change places, so that a model learns to write what is between two texts.

A document, as far as a window holds it, is cut at two places into prefix, middle and suffix, and becomes (PSM)

    <prefix> prefix <suffix> suffix <middle> middle

or, with the same marks and the prefix behind them, so that it stands beside the middle (SPM)

    <prefix> <suffix> suffix <middle> prefix middle

M. Bavarian et al.: Efficient Training of Language Models to Fill in the Middle, 2022, arXiv 2207.14255, sections 3 and
4; SPM is its variant 2. It is done on tokens of a window and keeps its length: the three marks take the place of the
last three tokens of the document's part. Which documents, and where they are cut, is decided by the seed and the
sample's number, so there is no state, and another pass over the data cuts elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from automodel_cli.corpus.tokenizer import load_tokenizer
from automodel_cli.corpus.tokenizers.same_tokenizer import MadeBy
from automodel_cli.data.arguments import FimArguments
from automodel_cli.data.mixture.checked import checked
from automodel_cli.data.permutation import seed_word
from automodel_cli.errors import ConfigError

_ALGORITHM = "fim-tokens/1"  # named in every plan
_MARKS = 3
_SHORTEST = 2 * _MARKS  # tokens of a part that is worth cutting

# Spellings of (prefix, middle, suffix) in tokenizers that have them: Qwen 2.5 and CodeGemma; StarCoder; SantaCoder.
_SPELLINGS = [
    tuple(f"{before}fim{mark}{name}{after}" for name in ("prefix", "middle", "suffix"))
    for before, mark, after in (("<|", "_", "|>"), ("<", "_", ">"), ("<", "-", ">"))
]


@dataclass(frozen=True)
class Fim:
    """How the rows of one source are rearranged."""

    rate: float  # share of documents
    spm_rate: float  # share of those that become SPM
    marks: tuple[int, int, int]  # ids of prefix, middle, suffix
    separator: int  # id between documents
    seed: int

    def plan(self) -> dict[str, Any]:
        """All that decides what becomes of a row, as JSON values."""
        return {"order": _ALGORITHM, **vars(self), "marks": list(self.marks)}

    def rearrange(self, row: np.ndarray, sample: int) -> None:
        """Rearrange the documents of ``row`` (int64 ``[T + 1]``) in place; ``sample`` is its number."""
        random = np.random.Generator(np.random.Philox(key=int(seed_word(self.seed, f"fim/{sample}"))))
        begin = 0
        for end in [*np.flatnonzero(row == self.separator).tolist(), len(row)]:
            part = row[begin:end]
            if len(part) >= _SHORTEST and random.random() < self.rate:
                cuts = np.sort(random.integers(0, len(part) - _MARKS + 1, 2)).tolist()
                part[:] = self._cut(part[:-_MARKS], *cuts, spm=random.random() < self.spm_rate)
            begin = end + 1

    def _cut(self, text: np.ndarray, first: int, second: int, *, spm: bool) -> np.ndarray:
        prefix, middle, suffix = text[:first], text[first:second], text[second:]
        before, between, after = ([mark] for mark in self.marks)
        if spm:
            return np.concatenate([before, after, suffix, between, prefix, middle])
        return np.concatenate([before, prefix, after, suffix, between, middle])


def open_fim(given: Any, key: str, *, manifest: MadeBy | None, separator: int | None, seed: int) -> Fim | None:
    """What a section ``fim`` at ``key`` of a configuration means for data with this manifest; None for null.

    Args:
        separator: the id between documents, where the data set knows it; else the manifest's.

    Raises:
        ConfigError: rates that are none, marks or a separator that nothing names, or that are the same.
    """
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise ConfigError(f"{key} is {given!r}", "give it rate and spm_rate, such as {rate: 0.5, spm_rate: 0.5}")
    options = checked(FimArguments, given, key)
    for name in ("rate", "spm_rate"):
        if not 0 <= getattr(options, name) <= 1:
            raise ConfigError(f"{key}.{name} is {getattr(options, name)}", "it is a share: give a number from 0 to 1")
    between = options.separator if options.separator is not None else separator
    if between is None:
        between = getattr(manifest, "separator_id", None)
    if between is None:
        raise ConfigError(f"{key}: nothing says which token stands between documents", f"give its id: {key}.separator")
    marks = _marks(options, key, manifest)
    if between in marks:
        raise ConfigError(
            f"{key}: id {between} is a mark and stands between documents", "give the marks ids of their own"
        )
    return Fim(options.rate, options.spm_rate, marks, between, seed)


def _marks(options: FimArguments, key: str, manifest: MadeBy | None) -> tuple[int, int, int]:
    names = ("prefix", "middle", "suffix")
    given = [getattr(options, name) for name in names]
    known = {} if all(isinstance(mark, int) for mark in given) else _special_ids(manifest)
    if given == [None] * _MARKS:
        given = list(next((one for one in _SPELLINGS if set(one) <= known.keys()), given))
    found = [mark if isinstance(mark, int) else known.get(mark, -1) for mark in given]
    for name, mark, number in zip(names, given, found, strict=True):
        if number < 0:
            said = "is not given" if mark is None else f"is {mark!r}"
            raise ConfigError(
                f"{key}.{name} {said}, and the data's tokenizer has no such token",
                "give the ids of prefix, middle and suffix; rows of the model that the tokenizer leaves free will do",
            )
    if len(set(found)) < _MARKS:
        raise ConfigError(f"{key}: prefix, middle and suffix are {found}", "give three different ids")
    return found[0], found[1], found[2]


def _special_ids(manifest: MadeBy | None) -> Mapping[str, int]:
    folder = None if manifest is None else manifest.tokenizer_folder
    return load_tokenizer(folder).special_ids() if folder is not None and folder.is_dir() else {}
