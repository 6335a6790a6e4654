"""Text of others on a terminal: nothing that acts, and nothing of ordinary text lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from automodel_cli.json_files import without_controls
from automodel_cli.plain_text import command_line, for_shell


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("é漢🎉 👩\u200d💻", "é漢🎉 👩\u200d💻"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\rb\x08\x7f\x9b", "a\\rb\\x08\\x7f\\x9b"),
        ("dix\u00a0mille\u3000字", "dix\u00a0mille\u3000字"),
        ("\u202eabc\u2066\ufeff", "\\u202eabc\\u2066\\ufeff"),
    ],
)
def test_without_controls(text, shown):
    assert without_controls(text) == shown


def test_the_command_line_starts_without_what_only_files_need():
    code = "import sys; import automodel_cli.cli.app; print(sorted({'pydantic', 'yaml', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("value", ["a", "a b", "it's", "a\nb", "é\x07'\\x", "$HOME", "", "-x", "\udc80q", "\x1b[2J\rb"])
def test_a_word_for_the_shell_is_one_line_and_comes_back(value: str):
    word = for_shell(value)
    assert word.isprintable()
    back = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True).stdout
    assert back == value.encode("utf-8", "surrogateescape")


def test_a_command_is_shown_as_its_words():
    assert command_line(["automodel", Path("a b"), 3]) == "automodel 'a b' 3"
