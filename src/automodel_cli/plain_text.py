"""Text that others wrote (names of files, documents, what a model generates), made safe for a terminal.

Imports nothing beyond the standard library: ``--help`` needs it.
"""

from __future__ import annotations

import shlex
import unicodedata
from collections.abc import Iterable

# Control characters, and format characters that turn or hide the text around them (U+202E and its like).
_ESCAPED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# Line ends and tabs; joiners (U+200C, U+200D) belong to ordinary text and to emoji.
_SHOWN_AS_THEY_ARE = frozenset("\n\t\u200c\u200d")


def without_controls(text: str) -> str:
    """``text`` with control characters (terminal escapes among them) spelled out: safe to print."""
    return text if text.isprintable() else "".join(map(_shown, text))


def for_shell(value: object) -> str:
    """A value as one word of a command that is shown to be pasted: on one line, whatever it holds."""
    text = str(value)
    if text.isprintable():
        return shlex.quote(text)
    escaped = "".join(
        character
        if character.isprintable()
        else "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))
        for character in text.replace("\\", "\\\\").replace("'", "\\'")
    )
    return f"$'{escaped}'"  # bash's and zsh's spelling of control characters


def command_line(words: Iterable[object]) -> str:
    """A command that is shown to be pasted."""
    return " ".join(map(for_shell, words))


def _shown(character: str) -> str:
    if character in _SHOWN_AS_THEY_ARE or unicodedata.category(character) not in _ESCAPED_CATEGORIES:
        return character
    return character.encode("unicode_escape").decode("ascii")
