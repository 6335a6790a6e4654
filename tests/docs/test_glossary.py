"""The glossary of CONTRIBUTING.md: every name that it gives for a term is there, and no term stands twice."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Glossary")[2]
ROWS = re.findall(r"^\| ([^|`]+) \| .+ \| `([^`|]+)` \|$", TEXT, re.MULTILINE)


def test_every_row_is_read():
    assert len(ROWS) == sum(line.startswith("| ") for line in TEXT.splitlines()) - 1 >= 30


def test_no_term_stands_twice():
    terms = [term for row in ROWS for term in row[0].split(", ")]
    assert len(terms) == len(set(terms))


@pytest.mark.parametrize("name", [name for _, name in ROWS])
def test_the_name_is_there(name):
    if "/" in name:
        assert (ROOT / name).is_file()
        return
    try:
        importlib.import_module(f"automodel_cli.{name}")
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(f"automodel_cli.{module}"), attribute)
