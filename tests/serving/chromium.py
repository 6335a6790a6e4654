"""The headless browser that tests of pages look through; without one they are skipped."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextlib.contextmanager
def launched(playwright: Any) -> Iterator[Any]:
    """A running browser, driven by ``playwright`` (its module ``sync_api``)."""
    with playwright.sync_playwright() as started:
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        running = started.chromium.launch(executable_path=CHROMIUM, args=[*flags, "--disable-gpu"])
        yield running
        running.close()
