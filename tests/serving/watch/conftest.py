"""Runs to watch, written by the log that training uses, and a server of their page in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from automodel_cli.assembly.run_plan import plan_of
from automodel_cli.metrics.log import MetricsLog
from automodel_cli.serving.watch.hub import Hub
from automodel_cli.serving.watch.runs import RunSet

XSS = [
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<svg/onload=window.hacked=1>",
    "<iframe srcdoc='<script>parent.hacked=1</script>'></iframe>",
    "<a href='javascript:window.hacked=1'>click</a>",
    '"><body onload=window.hacked=1>',
    "</script><script>window.hacked=1</script>",
    "<!--<script>",
    "</textarea></div><style>*{display:none}</style>",
    "{{constructor.constructor('window.hacked=1')()}}",
    "__proto__",
    "constructor",
    "\u2028\u2029\ud800",
]
"""Texts that are to stay texts."""


def write_run(
    folder: Path, steps: range = range(1, 21), *, losses: Callable[[int], float] = lambda step: 5 / step
) -> Path:
    """A run that has logged ``steps``."""
    log = MetricsLog(folder)
    for step in steps:
        log.train(
            {"step": step, "loss": losses(step), "lr": 1e-3, "tokens_seen": 100 * step, "tps": 50.0, "eta_s": 1.0,
             "skipped": False, "loss_by_source": {"books": 3.0, "web": 2.0}}
        )  # fmt: skip
        if step % 10 == 0:
            log.validation({"step": step, "name": "default", "loss": 6 / step})
    log.close()
    return folder


@contextmanager
def watching(*folders: Path, rules=None, poll_s: float = 0.05) -> Iterator[SimpleNamespace]:
    """The page of runs for as long as the block lasts."""
    pytest.importorskip("uvicorn", reason="the extra [web] is not installed")
    from automodel_cli.serving.watch.app import OPEN_PATHS, make_app
    from automodel_cli.serving.web.guard import Rules
    from automodel_cli.serving.web.listening import running, serve_app

    hub = Hub(RunSet(folders, plan_of), poll_s=poll_s).start()
    end = time.monotonic() + 20
    while any(run.reading for run in hub.runs):
        assert time.monotonic() < end, [run.overview() for run in hub.runs]
        time.sleep(0.005)
    try:
        server = serve_app(
            lambda own: make_app(hub, is_stopping=lambda: own().should_exit),
            rules or Rules(open_paths=OPEN_PATHS),
            host="127.0.0.1",
            port=0,
        )
        with running(server) as address:
            yield SimpleNamespace(url=address, hub=hub)
    finally:
        hub.stop()
