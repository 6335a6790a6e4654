"""A report as PNG or PDF: a browser that is here, Chromium or its kin, draws the HTML file without a window."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from automodel_cli.errors import AutomodelError, ConfigError
from automodel_cli.files import atomic_file
from automodel_cli.plain_text import without_controls

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--no-default-browser-check",
    "--disable-extensions", "--virtual-time-budget=20000",
)  # fmt: skip
_TIMEOUT_S = 120.0
_WIDTH, _LEAST_HEIGHT, _MOST_HEIGHT = 1280, 600, 16_000  # pixels of a picture
_PAPER = "1140,900"  # as wide as the style sheet prints it: charts are not stretched
_TRIES = 3
_HEIGHT = re.compile(rb'<html[^>]* data-height="(\d{1,9})"')


def find_browser() -> str:
    """The program that draws.

    Raises:
        ConfigError: there is none.
    """
    if found := next(filter(None, map(shutil.which, _BROWSERS)), None):
        return found
    raise ConfigError(
        f"there is no browser to draw with (looked for {', '.join(_BROWSERS)})",
        "install Chromium, or open the .html in any browser and print it there",
    )


def draw_pdf(browser: str, page: Path, output: Path) -> None:
    """Print ``page``, all its sections opened.

    Raises:
        AutomodelError: the browser did not do it.
    """
    _draw(browser, page, output, "--print-to-pdf", ["--no-pdf-header-footer", f"--window-size={_PAPER}"])


def draw_png(browser: str, page: Path, output: Path) -> None:
    """A picture of ``page``, 1,280 pixels wide and as high as it is.

    Raises:
        AutomodelError: the browser did not do it.
    """
    height = min(max(_height_of(browser, page), _LEAST_HEIGHT), _MOST_HEIGHT)
    _draw(browser, page, output, "--screenshot", [f"--window-size={_WIDTH},{height}"])


def _height_of(browser: str, page: Path) -> int:
    """As the page says once it is laid out, for which a busy machine may need another try; 0: it does not say."""
    for _ in range(_TRIES):
        if found := _HEIGHT.search(_run(browser, page, ["--dump-dom", f"--window-size={_WIDTH},{_LEAST_HEIGHT}"])):
            return int(found[1])
    return 0


def _draw(browser: str, page: Path, output: Path, how: str, flags: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="automodel-drawn-") as folder:
        drawn = Path(folder, f"drawn{output.suffix.lower()}")  # the browser goes by it
        _run(browser, page, [f"{how}={drawn}", *flags])
        if not drawn.is_file() or not drawn.stat().st_size:
            raise AutomodelError(f"{browser} has drawn nothing of {page}", "open it in a browser and print it there")
        with atomic_file(output) as handle:
            handle.write(drawn.read_bytes())


def _run(browser: str, page: Path, flags: Sequence[str]) -> bytes:
    """What the browser says of ``page``; it has a profile of its own, thrown away afterwards."""
    with tempfile.TemporaryDirectory(prefix="automodel-browser-", ignore_cleanup_errors=True) as profile:
        own = [f"--user-data-dir={profile}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]  # root has no sandbox
        process = subprocess.Popen(
            [browser, *_FLAGS, *own, *flags, page.resolve().as_uri()],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        try:
            out, said = process.communicate(timeout=_TIMEOUT_S)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # its helpers too
            process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise AutomodelError(f"{browser} did not end within {_TIMEOUT_S:.0f} s", "try again, or print it") from None
    if process.returncode:
        last = next((line for line in reversed(said.decode(errors="replace").splitlines()) if line.strip()), "")
        raise AutomodelError(
            f"{browser} has ended with status {process.returncode}: {without_controls(last)[:200]}",
            "open the .html in a browser and print it there",
        )
    return out
