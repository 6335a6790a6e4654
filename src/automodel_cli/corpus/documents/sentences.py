"""Documents cut into sentences by NLTK's Punkt, as Megatron's ``--split-sentences`` does; the extra ``nltk``.

A text is taken in pieces of a million characters, so a sentence may be cut at such a border: Megatron does so, and
the same sentences come out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from automodel_cli.errors import ConfigError, DataError

_PIECE_CHARACTERS = 1_000_000
# Between a sentence's end and the next token Punkt wants white space, which it drops. Here the white space belongs
# to the sentence before it, so nothing is lost.
_KEEPING_WHITE_SPACE = r"""
    \S*
    %(SentEndChars)s
    \s*
    (?=(?P<after_tok>
        %(NonWord)s
        |
        (?P<next_tok>\S+)
    ))"""


@dataclass(frozen=True)
class SentenceRule:
    """How texts are cut into sentences: the language of the model, and whether white space between them stays."""

    language: str = "english"
    keep_newlines: bool = False

    def versions(self) -> dict[str, str]:
        """Of what cuts: another version may cut elsewhere."""
        return {"nltk": version("nltk")}

    def splitter(self) -> Callable[[str], list[str]]:
        """What cuts a text.

        Raises:
            ConfigError: nltk is not installed, or there is no such language.
            DataError: its model is not on this machine.
        """
        tokenizer = _load(self.language)
        if self.keep_newlines:
            tokenizer = _keeping_white_space(tokenizer)

        def split(text: str) -> list[str]:
            begins = range(0, len(text), _PIECE_CHARACTERS)
            pieces = (text[begin : begin + _PIECE_CHARACTERS] for begin in begins)
            return [sentence for piece in pieces for sentence in tokenizer.tokenize(piece)]

        return split


def _load(language: str) -> Any:
    try:
        from nltk.tokenize.punkt import PunktTokenizer  # an extra, and half a second
    except ImportError:
        raise ConfigError(
            "--split-sentences needs nltk, which is not installed", "pip install 'automodel-cli[nltk]'"
        ) from None
    try:
        return PunktTokenizer(language)
    except ValueError as error:
        raise ConfigError(f"--lang {language}: {error}", "for example english, german or french") from error
    except (LookupError, OSError) as error:
        raise DataError(
            f"nltk's sentence model for {language} is not on this machine",
            "python -m nltk.downloader punkt_tab, or set NLTK_DATA to the folder that holds tokenizers/punkt_tab",
        ) from error


def _keeping_white_space(tokenizer: Any) -> Any:
    from nltk.tokenize.punkt import PunktLanguageVars, PunktSentenceTokenizer

    class KeepingWhiteSpace(PunktLanguageVars):
        _period_context_fmt = _KEEPING_WHITE_SPACE

    keeping = PunktSentenceTokenizer(lang_vars=KeepingWhiteSpace())
    keeping._params = tokenizer._params
    return keeping
