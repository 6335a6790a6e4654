"""The version, its entry in the changelog and the citation agree; a build carries what a user needs beside modules."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

import automodel_cli
from automodel_cli.checkpoint.layout import FORMAT

ROOT = Path(__file__).parents[2]


def test_the_version_has_an_entry_and_is_cited():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[([\d.]+)\] - (\d{4}-\d\d-\d\d)$", changes, re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert newest.groups() == (citation["version"], citation["date-released"])
    assert newest[1] == automodel_cli.__version__
    assert f"Version {newest[1]}." in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_promise_names_the_formats_of_formats_md():
    """A format that the page describes is under the promise; caches are not."""
    described = set(re.findall(r"automodel-[\w-]+/\d+", (ROOT / "docs/formats.md").read_text(encoding="utf-8")))
    promised = set(re.findall(r"automodel-[\w-]+/\d+", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")))
    assert FORMAT in promised
    assert {name for name in described if "-index/" not in name} <= promised


def test_types_are_shipped():
    """PEP 561: without the marker, a user's type checker sees none of our annotations."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["automodel_cli"]
    assert (ROOT / "src/automodel_cli/py.typed").is_file()
