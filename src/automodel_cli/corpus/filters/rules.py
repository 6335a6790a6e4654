"""Which documents are left out: limits for the numbers of ``measures``, and languages. Off unless asked for.

A document is left out by the first rule that it breaks, in the order of ``FilterRules``' fields: cheap ones first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from automodel_cli.corpus.filters.language import language_of
from automodel_cli.corpus.filters.measures import Measures

TOP_SIZES = (2, 3, 4)
DUPLICATE_SIZES = (5, 6, 7, 8, 9, 10)


@dataclass(frozen=True)
class Verdict:
    """Why a document is left out: the rule, its number from 1, and what was measured."""

    rule: str
    number: int
    found: str


@dataclass(frozen=True)
class _Rule:
    name: str
    find: Callable[[Measures], str | None]
    """What is wrong with a text, in words; None if nothing is."""


@dataclass(frozen=True, kw_only=True)
class FilterRules:
    """The limits; None (or no language): not asked for.

    ``min_*`` is the least that stays, ``max_*`` the most; shares are from 0 to 1. ``max_top_ngrams`` has a limit for
    each of ``TOP_SIZES``, ``max_duplicate_ngrams`` for each of ``DUPLICATE_SIZES``.
    """

    min_characters: int | None = None
    max_characters: int | None = None
    min_words: int | None = None
    max_words: int | None = None
    min_word_length: float | None = None
    max_word_length: float | None = None
    max_symbol_ratio: float | None = None
    max_bullet_lines: float | None = None
    max_ellipsis_lines: float | None = None
    min_alphabetic_words: float | None = None
    min_stop_words: int | None = None
    max_duplicate_lines: float | None = None
    max_duplicate_line_characters: float | None = None
    max_duplicate_paragraphs: float | None = None
    max_duplicate_paragraph_characters: float | None = None
    max_top_ngrams: tuple[float, ...] | None = None
    max_duplicate_ngrams: tuple[float, ...] | None = None
    languages: tuple[str, ...] | None = None
    min_language_score: float = 0.0

    def asked(self) -> dict[str, Any]:
        """The limits that there are, in order."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def contradiction(self) -> str | None:
        """Two limits between which no text fits, in words."""
        limits = self.asked()
        for name, least in limits.items():
            most = limits.get(name.replace("min_", "max_", 1))
            if name.startswith("min_") and most is not None and least > most:
                return f"{name} ({least:,}) is more than {name.replace('min_', 'max_', 1)} ({most:,})"
        return None

    @property
    def names(self) -> tuple[str, ...]:
        """The rules that were asked for, in the order in which they are tried."""
        return tuple(rule.name for rule in _rules(self))

    def judge(self, text: str) -> Verdict | None:
        """The first rule that ``text`` breaks."""
        measures = Measures(text)
        for number, rule in enumerate(_rules(self), start=1):
            if (found := rule.find(measures)) is not None:
                return Verdict(rule.name, number, found)
        return None


@functools.lru_cache(maxsize=8)  # kept beside the limits, which are pickled
def _rules(limits: FilterRules) -> tuple[_Rule, ...]:
    rules: list[_Rule] = []
    for name, limit in limits.asked().items():
        if name != "min_language_score":
            rules += _rules_of(name, limit, limits.min_language_score)
    return tuple(rules)


_MEASURES: dict[str, Callable[[Measures], float]] = {
    "characters": lambda text: text.characters,
    "words": lambda text: text.word_count,
    "word_length": lambda text: text.mean_word_length,
    "symbol_ratio": lambda text: text.symbol_ratio,
    "bullet_lines": lambda text: text.bullet_lines,
    "ellipsis_lines": lambda text: text.ellipsis_lines,
    "alphabetic_words": lambda text: text.alphabetic_words,
    "stop_words": lambda text: text.stop_words,
    "duplicate_lines": lambda text: text.duplicate_lines,
    "duplicate_line_characters": lambda text: text.duplicate_line_characters,
    "duplicate_paragraphs": lambda text: text.duplicate_paragraphs,
    "duplicate_paragraph_characters": lambda text: text.duplicate_paragraph_characters,
}


def _rules_of(name: str, limit: Any, least_score: float) -> list[_Rule]:
    if name == "languages":
        return [_Rule(name, functools.partial(_wrong_language, limit, least_score))]
    if name == "max_top_ngrams":
        return [_ngrams(name, size, most, Measures.top_ngram) for size, most in zip(TOP_SIZES, limit, strict=True)]
    if name == "max_duplicate_ngrams":
        measure = Measures.duplicate_ngrams
        return [_ngrams(name, size, most, measure) for size, most in zip(DUPLICATE_SIZES, limit, strict=True)]
    kind, _, what = name.partition("_")
    find = _too_little if kind == "min" else _too_much
    return [_Rule(name, functools.partial(find, _MEASURES[what], limit))]


def _ngrams(name: str, size: int, most: float, measure: Callable[[Measures, int], float]) -> _Rule:
    return _Rule(f"{name} ({size} words)", functools.partial(_too_much, lambda text: measure(text, size), most))


def _too_little(measure: Callable[[Measures], float], least: float, text: Measures) -> str | None:
    found = measure(text)
    return _shown(found) if found < least else None


def _too_much(measure: Callable[[Measures], float], most: float, text: Measures) -> str | None:
    found = measure(text)
    return _shown(found) if found > most else None


def _shown(found: float) -> str:
    return f"{found:,}" if isinstance(found, int) else f"{found:.2f}"


def _wrong_language(wanted: tuple[str, ...], least_score: float, text: Measures) -> str | None:
    language, score = language_of(text.text)
    return None if language in wanted and score >= least_score else f"{language} {score:.2f}"


# ---------------------------------------------------------------------------------------------- presets

PRESETS: dict[str, dict[str, Any]] = {
    "gopher-quality": {
        "min_words": 50,
        "max_words": 100_000,
        "min_word_length": 3.0,
        "max_word_length": 10.0,
        "max_symbol_ratio": 0.1,
        "max_bullet_lines": 0.9,
        "max_ellipsis_lines": 0.3,
        "min_alphabetic_words": 0.8,
        "min_stop_words": 2,
    },
    "gopher-repetition": {
        "max_duplicate_lines": 0.3,
        "max_duplicate_line_characters": 0.2,
        "max_duplicate_paragraphs": 0.3,
        "max_duplicate_paragraph_characters": 0.2,
        "max_top_ngrams": (0.20, 0.18, 0.16),
        "max_duplicate_ngrams": (0.15, 0.14, 0.13, 0.12, 0.11, 0.10),
    },
}
"""Limits of Rae et al. 2021: their quality filtering and table A1; ``gopher`` is both."""


def with_preset(preset: str | None, given: dict[str, Any]) -> FilterRules | None:
    """The rules of a preset with those ``given`` (not None) in their place; None where there are none."""
    names = list(PRESETS) if preset == "gopher" else [preset] if preset else []
    limits = {key: value for name in names for key, value in PRESETS[name].items()}
    limits |= {key: value for key, value in given.items() if value is not None}
    rules = FilterRules(**limits)
    return rules if rules.names else None
