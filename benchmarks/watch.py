"""``automodel watch`` and ``report``: a million points, how late a point is, and what fifty open pages cost.

    python benchmarks/watch.py [--points 1000000] [--pages 50] [--seconds 20] [--rate 20] [--folder DIR]

A log is written as training writes it; the server is a process of its own, pages are streams of this one. Of each
record the lag is the time from its write to its arrival at a page. Targets: a request for the thinned curves of a
million points below 200 ms, a median lag below a second, a report of at most 2 MB.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx

from automodel_cli.metrics.log import MetricsLog
from automodel_cli.metrics.log_file import METRICS_NAME, encode_record

_START = datetime(2026, 1, 1, tzinfo=UTC)


def record(step: int) -> dict[str, object]:
    """A record as training logs it, with losses by source."""
    noise = (step * 2654435761 % 1000) / 1000
    return {
        "step": step, "epoch": 0, "loss": 3.2 + 8 / step**0.4 + 0.1 * noise, "grad_norm": noise, "lr": 6e-4 / step**0.1,
        "num_label_tokens": 8192, "tokens_seen": 8192 * step, "skipped": False,
        "tps": 18000 + 500 * noise, "tps_per_gpu": 18000 + 500 * noise, "mfu": 0.3 + 0.05 * noise, "eta_s": 100.0,
        "mem_gib": 1.9, "loss_by_source": {"books": 3.1 + noise, "web": 2.9 + noise},
    }  # fmt: skip


def write_log(folder: Path, points: int) -> None:
    """A log of so many steps of 20 ms."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / METRICS_NAME).open("wb") as handle:
        for step in range(1, points + 1):
            time_ = (_START + timedelta(milliseconds=20 * step)).isoformat(timespec="milliseconds")
            handle.write(encode_record({"kind": "train", **record(step), "time": time_.replace("+00:00", "Z")}))


@contextlib.contextmanager
def server(folder: Path) -> Iterator[tuple[str, int]]:
    """``automodel watch`` on any port; its address and process id."""
    command = [sys.executable, "-m", "automodel_cli", "watch", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+?(?=: )", process.stdout.readline())
        assert found
        yield found[0], process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def requests(address: str) -> None:
    """Reads the log to its end, and asks for curves of parts of it: never the same twice."""
    begun = time.perf_counter()
    with httpx.Client(base_url=address, timeout=60) as client:
        while True:
            (run,) = client.get("/api/runs").json()["runs"]
            if not run["reading"]:
                break
            time.sleep(0.05)
        points = run["parts"]["train"]["records"]
        print(f"read {points:,} records in {time.perf_counter() - begun:.1f} s")
        for axis, log in (("step", 0), ("step", 1), ("tokens", 0), ("time", 0)):
            times, size = [], 0
            for number in range(7):
                asked = {"run": run["run"], "axis": axis, "log": log, "buckets": 800 + number}
                started = time.perf_counter()
                answer = client.get("/api/curves", params=asked)
                times.append(time.perf_counter() - started)
                size = int(answer.headers["content-length"])
            curves = len(answer.json()["parts"]["train"]["curves"])
            print(f"  {curves} curves over {axis}{' (log)' * log}: median {1e3 * statistics.median(times):.0f} ms, "
                  f"most {1e3 * max(times):.0f} ms, {size / 1e3:.0f} kB")  # fmt: skip


async def page(client: httpx.AsyncClient, arrived: list[tuple[int, float]]) -> None:
    """A page's stream: which step came when."""
    place = (await client.get("/api/runs")).json()["place"]
    async with client.stream("GET", "/api/events", headers={"last-event-id": place}) as stream:
        async for line in stream.aiter_lines():
            if line.startswith("data: "):
                message = json.loads(line[6:])
                if message["what"] == "rows":
                    now = time.perf_counter()
                    arrived += [(int(step), now) for step in message["x"]["step"]]


async def lags(address: str, folder: Path, pid: int, *, pages: int, seconds: float, rate: float, first: int) -> int:
    """Logs at ``rate`` records a second while ``pages`` are open; the next step."""
    log, written = MetricsLog(folder), {}
    limits = httpx.Limits(max_connections=None)
    arrived: list[list[tuple[int, float]]] = [[] for _ in range(pages)]
    async with httpx.AsyncClient(base_url=address, timeout=None, limits=limits) as client:
        tasks = [asyncio.create_task(page(client, one)) for one in arrived]
        await asyncio.sleep(2)
        before, started = cpu_s(pid), time.perf_counter()
        step = first
        while time.perf_counter() - started < seconds:
            log.train(record(step))
            written[step] = time.perf_counter()
            step += 1
            await asyncio.sleep(1 / rate)
        used, took = cpu_s(pid) - before, time.perf_counter() - started
        await asyncio.sleep(1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    log.close()
    late = sorted(at - written[step] for one in arrived for step, at in one if step in written)
    complete = all([step for step, _ in one if step in written] == list(written) for one in arrived)
    print(f"{pages} pages, {len(written) / took:.0f} records/s: lag median {1e3 * statistics.median(late):.0f} ms, "
          f"99% {1e3 * late[int(0.99 * len(late))]:.0f} ms; server {100 * used / took:.0f}% of a core; "
          f"{'each step once on every page' if complete else 'STEPS LOST OR DOUBLED'}")  # fmt: skip
    return step


def report(folder: Path) -> None:
    """Time and size of a report."""
    output = folder.parent / "report.html"
    started = time.perf_counter()
    command = [sys.executable, "-m", "automodel_cli", "report", str(folder), "-o", str(output)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(f"report: {output.stat().st_size / 1e6:.2f} MB in {time.perf_counter() - started:.1f} s")


def main() -> None:
    """All of it, in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--pages", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rate", type=float, default=20, help="records a second")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder otherwise")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)) / "run"
        write_log(folder, options.points)
        with server(folder) as (address, pid):
            requests(address)
            step = options.points + 1
            for pages in (1, options.pages):
                shape = {"pages": pages, "seconds": options.seconds, "rate": options.rate}
                step = asyncio.run(lags(address, folder, pid, first=step, **shape))
        report(folder)


if __name__ == "__main__":
    main()
