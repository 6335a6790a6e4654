"""The page as one file: its style, its scripts, and what the runs have to show, in a file that needs nothing else.

A browser opens it from a disk. Nothing is fetched: a policy in its head forbids that, and allows no script but the
page's own, by hash. The numbers are JSON in a tag of their own, in which no ``<`` is left to end it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from automodel_cli.errors import DataError
from automodel_cli.serving.watch.page_files import PAGE_FILES, read_page_file
from automodel_cli.serving.watch.runs import WatchedRun

MAX_BYTES = 2_000_000
_BUCKETS = (800, 400, 200, 100, 50, 25)  # of a curve: as many as fit
_SHOWN_SAMPLES = 8  # evaluations: of more the page shows no texts
_LINK = re.compile(r' *<link rel="stylesheet"[^>]*>\n')
_SCRIPTS = re.compile(r" *<script [^>]*></script>\n")


def report_html(runs: Sequence[WatchedRun], *, title: str, made: str, foot: str, max_bytes: int = MAX_BYTES) -> str:
    """The file: at most ``max_bytes`` of UTF-8, for which curves lose points, never the highest and lowest of a pixel.

    Args:
        made: a line on what it is of.
        foot: a line at the end: how it was made.

    Raises:
        DataError: the texts of so many runs do not fit.
    """
    before, after = _frame()
    room = max_bytes - len((before + after).encode())
    for buckets in _BUCKETS:
        content = {"title": title, "made": made, "foot": foot, "runs": [_content(run, buckets) for run in runs]}
        data = as_script_data(content)
        if len(data.encode()) <= room:
            return before + data + after
    raise DataError(
        f"a report of {len(runs):,} runs has more than {max_bytes:,} bytes", "name fewer runs, or use automodel watch"
    )


def _content(run: WatchedRun, buckets: int) -> dict[str, Any]:
    curves, details = run.curves("step", None, None, buckets, log_x=False), run.details()
    details["samples"] = details["samples"][-_SHOWN_SAMPLES:]
    return {"details": details, "curves": {**curves, "axes": run.axes(buckets)}}


def as_script_data(value: Any) -> str:
    """JSON that may stand in a script tag: it cannot end it, or open a comment there."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = text.encode(errors="replace").decode()  # no lone surrogates
    for odd in "<>&\u2028\u2029":
        text = text.replace(odd, f"\\u{ord(odd):04x}")
    return text


def _frame() -> tuple[str, str]:
    """The page up to the numbers, and from there on."""
    style = read_page_file("watch.css")
    scripts = [read_page_file(name) for name in PAGE_FILES if name.endswith(".js")]
    allowed = " ".join(map(_hash, scripts))
    policy = f"default-src 'none'; script-src {allowed}; style-src {_hash(style)}; img-src data:; base-uri 'none'"
    head = f'  <meta http-equiv="Content-Security-Policy" content="{policy}">\n  <style>{style}</style>\n'
    page = _SCRIPTS.sub("", read_page_file("watch.html"))
    page = _LINK.sub(lambda _: head, page)
    before, after = page.split("</body>")
    own = "".join(f"<script>{script}</script>\n" for script in scripts)
    return f'{before}<script type="application/json" id="report-data">', f"</script>\n{own}</body>{after}"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
