"""CPU seconds of each test, with the processes it started: the cost of the suite, whatever else the machine does.

A pytest plugin (``-p tests.cpu_times``; ``make test`` has it): prints the ten dearest tests and files. With
``AUTOMODEL_CPU_TIMES=FILE`` the seconds of all tests go to a JSON file.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from tests import nursery

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_seconds: dict[str, float] = defaultdict(float)
_last = [0.0]


def _spent() -> float:
    """CPU seconds of this process, of its children that ended, and of the nursery's."""
    times = os.times()
    total = times.user + times.system + times.children_user + times.children_system
    for warm in nursery.running():
        try:
            fields = Path(f"/proc/{warm}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # no Linux, or it ended
            continue
        total += sum(map(int, fields[11:15])) / _TICKS_PER_S  # utime, stime, cutime, cstime
    return total


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any):
    """After each phase of a test, where it runs: what was spent since the last."""
    outcome = yield
    now = _spent()
    outcome.get_result().user_properties.append(("cpu_s", now - _last[0]))
    _last[0] = now


def pytest_runtest_protocol(item: pytest.Item) -> None:
    """What was spent between tests (collection, the fixtures of others) belongs to none."""
    _last[0] = _spent()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Where the results come together: each report has its own phase last."""
    own = [value for name, value in report.user_properties if name == "cpu_s"]
    if own:
        _seconds[report.nodeid] += own[-1]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The ten dearest tests and files."""
    if os.environ.get("PYTEST_XDIST_WORKER") or not _seconds:
        return
    if path := os.environ.get("AUTOMODEL_CPU_TIMES"):
        Path(path).write_text(json.dumps(_seconds, indent=0))
    files: dict[str, float] = defaultdict(float)
    for test, seconds in _seconds.items():
        files[test.partition("::")[0]] += seconds
    terminalreporter.section(f"{sum(_seconds.values()):.0f} CPU seconds in all; most of them in")
    for table in (_seconds, files):
        for name, seconds in sorted(table.items(), key=lambda pair: -pair[1])[:10]:
            terminalreporter.write_line(f"{seconds:8.1f} s  {name}")
