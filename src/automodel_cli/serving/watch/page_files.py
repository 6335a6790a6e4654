"""The files of the page, which the server sends and a report holds."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).with_name("page")
PAGE_FILES = {
    "watch.html": "text/html; charset=utf-8",
    "watch.css": "text/css; charset=utf-8",
    "chart.js": "text/javascript; charset=utf-8",
    "data.js": "text/javascript; charset=utf-8",
    "watch.js": "text/javascript; charset=utf-8",
}
"""Names and types; the scripts in the order in which they are loaded."""


def read_page_file(name: str) -> str:
    """The text of a file of the page."""
    return (_FOLDER / name).read_text(encoding="utf-8")
