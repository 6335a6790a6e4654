"""Text of others on a terminal: nothing that acts, and nothing of ordinary text lost."""

from __future__ import annotations

import subprocess
import sys

import pytest

from automodel_cli.json_files import without_controls


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
