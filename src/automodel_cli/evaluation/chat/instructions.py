"""IFEval's verifiable instructions (Zhou et al. 2023): whether an answer does what was asked, without a judge.

The verdicts are those of the published code, oddities included (a keyword is a regular expression; what has no known
language counts as being in the right one). Two things differ, where that code draws at random: languages are detected
with a fixed seed, and a "letter" that is none (``#``) is counted as it is.

Sentences and words in capitals are counted with nltk's Punkt, languages detected with langdetect: the extra ``ifeval``.
Questions that need them are refused without, because another rule would give other scores.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from automodel_cli.corpus.documents.sentences import SentenceRule
from automodel_cli.errors import ConfigError, DataError

_INSTALL = "pip install 'automodel-cli[ifeval]'"
_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_POSTSCRIPTS = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
_AT_LEAST, _LESS = "at least", "less than"


def _compared(count: int, relation: str, wanted: int) -> bool:
    return count < wanted if relation == _LESS else count >= wanted


def _language(text: str) -> str | None:
    """None: it cannot be told."""
    import langdetect

    langdetect.DetectorFactory.seed = 0
    try:
        return str(langdetect.detect(text))
    except langdetect.LangDetectException:
        return None


@functools.cache
def _splitter() -> Callable[[str], list[str]]:
    return SentenceRule().splitter()


def _capital_words(text: str, capital_frequency: int, capital_relation: str) -> bool:
    _splitter()  # says what is missing
    import nltk

    return _compared(sum(map(str.isupper, nltk.word_tokenize(text))), capital_relation, capital_frequency)


def _sentences(text: str, num_sentences: int, relation: str) -> bool:
    return _compared(len(_splitter()(text)), relation, num_sentences)


def _paragraphs(text: str, num_paragraphs: int) -> bool:
    found = re.split(r"\s?\*\*\*\s?", text)
    if not all(part.strip() for part in found[1:-1]):
        return False
    return len(found) - sum(not found[end].strip() for end in {0, len(found) - 1}) == num_paragraphs


def _first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    found = text.split("\n\n")
    filled = sum(bool(part.strip()) for part in found)
    words = found[nth_paragraph - 1].split() if nth_paragraph <= filled else []
    if not words:
        return False
    begin = re.split("[.,?!'\"]", words[0].lstrip("'").lstrip('"'))[0]
    return filled == num_paragraphs and begin.lower() == first_word.lower()


def _postscript(text: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    return re.search(_POSTSCRIPTS.get(marker, marker.lower()), text.lower()) is not None


def _highlights(text: str, num_highlights: int) -> bool:
    found = [mark.strip("*") for mark in re.findall(r"\*[^\n*]*\*", text)]
    found += [mark[2:-2] for mark in re.findall(r"\*\*[^\n*]*\*\*", text)]
    return sum(bool(mark.strip()) for mark in found) >= num_highlights


def _bullets(text: str, num_bullets: int) -> bool:
    stars, dashes = (re.findall(form, text, re.MULTILINE) for form in (r"^\s*\*[^*].*$", r"^\s*-.*$"))
    return len(stars) + len(dashes) == num_bullets


def _is_json(text: str) -> bool:
    text = text.strip()
    for mark in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(mark)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _two_answers(text: str) -> bool:
    found = [part.strip() for part in text.split("******")]
    filled = [part for part in found if part]
    return all(found[1:-1]) and len(filled) == 2 and filled[0] != filled[1]


def _frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return _compared(len(re.findall(keyword.strip(), text, re.IGNORECASE)), relation, frequency)


def _letters(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compared(text.lower().count(letter.strip().lower()), let_relation, let_frequency)


def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"\s?{section_spliter.strip()}\s?\d+\s?", text)) >= num_sections


def _in_language(text: str, language: str) -> bool:
    return _language(text) in (None, language)


def _in_case(is_case: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda text: is_case(text) and _in_language(text, "en")


def _ends(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _repeats(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _is_quoted(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _has_title(text: str) -> bool:
    return any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", text))


def _has_all(text: str, keywords: Sequence[str]) -> bool:
    return all(re.search(word, text, re.IGNORECASE) for word in keywords)


def _has_none(text: str, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(rf"\b{word}\b", text, re.IGNORECASE) for word in forbidden_words)


_CHECKS: Mapping[str, Callable[..., bool]] = {
    "keywords:existence": _has_all,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _has_none,
    "keywords:letter_frequency": _letters,
    "language:response_language": _in_language,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_words": lambda text, num_words, relation: _compared(
        len(re.findall(r"\w+", text)), relation, num_words
    ),
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": lambda text, num_placeholders: (
        len(re.findall(r"\[.*?\]", text)) >= num_placeholders
    ),
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": lambda text: any(answer in text for answer in _ANSWERS),
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _is_json,
    "detectable_format:title": _has_title,
    "combination:two_responses": _two_answers,
    "combination:repeat_prompt": _repeats,
    "startend:end_checker": _ends,
    "startend:quotation": _is_quoted,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _in_case(str.isupper),
    "change_case:english_lowercase": _in_case(str.islower),
    "punctuation:no_comma": lambda text: "," not in text,
}
_LISTS = ("keywords", "forbidden_words")
_NUMBERS = (
    "frequency", "let_frequency", "num_sentences", "num_paragraphs", "num_words", "nth_paragraph", "num_placeholders",
    "num_bullets", "num_highlights", "num_sections", "capital_frequency",
)  # fmt: skip
_NEEDS_NLTK = ("length_constraints:number_sentences", "change_case:capital_word_frequency")
_NEEDS_LANGDETECT = ("language:response_language", "change_case:english_capital", "change_case:english_lowercase")


def followed(row: Mapping[str, Any], answer: str, *, loosely: bool = False) -> list[bool]:
    """For each of a row's instructions whether ``answer`` follows it.

    Loosely: or the answer without its first line, its last line, both, each also without asterisks.
    """
    lines = answer.split("\n")
    cuts = [answer, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    texts = [text for cut in cuts for text in (cut, cut.replace("*", ""))] if loosely else [answer]
    return [any(text.strip() and check(text) for text in texts) for check in _checks(row)]


def _checks(row: Mapping[str, Any]) -> Iterable[Callable[[str], bool]]:
    for name, given in zip(row["instruction_id_list"], row["kwargs"], strict=True):
        arguments = {key: value for key, value in (given or {}).items() if value is not None}
        yield functools.partial(_CHECKS[name], **arguments)


def check_row(row: Mapping[str, Any]) -> None:
    """Refuse a row that could not be graded.

    Raises:
        ConfigError: it needs packages that are not installed.
        DataError: it names no instructions, unknown ones, or not what they need; or the sentence model is not here.
    """
    names, given = row.get("instruction_id_list"), row.get("kwargs")
    if not isinstance(names, Sequence) or not isinstance(given, Sequence) or not names or len(names) != len(given):
        raise DataError("instruction_id_list and kwargs are no lists of one length", "is it a row of google/IFEval?")
    for name in names:
        if not isinstance(name, str) or name not in _CHECKS:
            raise DataError(f"there is no instruction {str(name)[:60]!r}", f"known are {', '.join(_CHECKS)}")
    needed = {"nltk": _NEEDS_NLTK, "langdetect": _NEEDS_LANGDETECT}
    for package, by in needed.items():
        if not set(by).isdisjoint(names) and importlib.util.find_spec(package) is None:
            raise ConfigError(f"ifeval_chat needs {package}, which is not installed", _INSTALL)
    try:
        for arguments in given:
            _check_kinds(arguments or {})
        followed(row, "A text, to see that all can be checked.")
    except (TypeError, AttributeError, ValueError, OverflowError, RecursionError, re.error) as error:
        raise DataError(f"kwargs of {', '.join(names)} do not fit: {error}", "is it a row of google/IFEval?") from None


def _check_kinds(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of a kind that one answer would not show and another would stumble on.

    Raises:
        TypeError, ValueError: there is one.
    """
    for name, value in arguments.items():
        values = value if name in _LISTS and isinstance(value, list) else [value]
        kind: Any = str if name not in _NUMBERS else int if name == "nth_paragraph" else int | float
        if odd := [one for one in values if one is not None and (isinstance(one, bool) or not isinstance(one, kind))]:
            raise TypeError(f"{name} has {str(odd[0])[:60]!r}, expected {'text' if kind is str else 'a whole number'}")
    if (arguments.get("nth_paragraph") or 1) < 1:
        raise ValueError(f"nth_paragraph is {arguments['nth_paragraph']}, expected 1 or more")
