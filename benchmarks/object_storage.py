"""`preprocess nanogpt` from S3 to S3 against the same from disk to disk, and how long many objects take to be listed.

Whole processes, in pairs, one after the other; medians of wall time, CPU time of ours and of the server. The server is
moto's, in a process of its own on this machine, so it competes for the same cores; a real one does not. Its CPU time is
therefore told. Targets: 90% of the speed of disk to disk; thousands of objects open within a second.
Run: ``python benchmarks/object_storage.py TEXT.jsonl [PAIRS [TOKENIZER [WORKERS]]]``.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

KEYS = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark", "AWS_REGION": "us-east-1"}
SERVER = """
import logging, sys, threading
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
MANY = 3000
FILE_BYTES = 8 << 20


@dataclass(frozen=True)
class Measured:
    """One process, to its end."""

    wall_s: float
    cpu_s: float
    server_cpu_s: float


def cpu_of(process: int) -> float:
    """User and system seconds of a process that runs."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(command: list[str], server: int) -> Measured:
    """Run a command that has to succeed."""
    before, started = cpu_of(server), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    wall_s = time.perf_counter() - started
    return Measured(wall_s, usage.ru_utime + usage.ru_stime, cpu_of(server) - before)


def preprocess(source: str, place: str, tokenizer: str, workers: str) -> list[str]:
    """Our command."""
    program = str(Path(sys.executable).with_name("automodel"))
    words = [program, "preprocess", "nanogpt", "--dataset", source, "--output-dir", place, "--overwrite"]
    return [*words, "--tokenizer", tokenizer, "--num-workers", workers, "--shard-tokens", "20M"]


def cut(text: Path, folder: Path) -> None:
    """Into files of some MB, because moto reads all of an object to give a range of it."""
    folder.mkdir()
    lines = text.read_bytes().splitlines(keepends=True)
    size = number = 0
    held: list[bytes] = []
    for line in [*lines, b""]:
        held.append(line)
        size += len(line)
        if size >= FILE_BYTES or not line:
            (folder / f"{number:05}.jsonl").write_bytes(b"".join(held))
            held, size, number = [], 0, number + 1


def pairs(text: Path, count: int, tokenizer: str, workers: str, folder: Path, server: int) -> None:
    """Disk to disk and S3 to S3, turn about."""
    from automodel_cli.storage.opening import open_store

    cut(text, folder / "in")
    for path in (folder / "in").iterdir():
        open_store("s3://benchmark").upload(f"s3://benchmark/in/{path.name}", path)
    ways = {
        "disk": preprocess(str(folder / "in"), str(folder / "out"), tokenizer, workers),
        "s3": preprocess("s3://benchmark/in", "s3://benchmark/out", tokenizer, workers),
    }
    found: dict[str, list[Measured]] = {name: [] for name in ways}
    for number in range(count):
        for name in list(ways) if number % 2 else reversed(list(ways)):
            found[name].append(measure(ways[name], server))
    size = text.stat().st_size / 1e6
    for name, runs in found.items():
        wall, cpu, server_cpu = (statistics.median(getattr(run, field) for run in runs) for field in vars(runs[0]))
        print(f"{name:5} {wall:6.2f} s, {size / wall:6.1f} MB/s, CPU {cpu:6.2f} s, server CPU {server_cpu:5.2f} s")
    ratios = [here.wall_s / there.wall_s for here, there in zip(found["disk"], found["s3"], strict=True)]
    cpu_ratios = [here.cpu_s / there.cpu_s for here, there in zip(found["disk"], found["s3"], strict=True)]
    print(f"speed of S3 to S3 / disk to disk: median {statistics.median(ratios):.3f} of {count} pairs", end=", ")
    print(f"by CPU time of ours {statistics.median(cpu_ratios):.3f}")


def many(folder: Path) -> None:
    """Small files: listed and cut, which opens them."""
    from automodel_cli.corpus.documents.source import FileSource
    from automodel_cli.corpus.documents.units import ReadOptions
    from automodel_cli.storage.opening import open_store

    store = open_store("s3://benchmark")
    (folder / "many").mkdir()
    for number in range(MANY):
        row = b'{"text": "a document"}\n' * 3
        (folder / "many" / f"{number:05}.jsonl").write_bytes(row)
        store.put(f"s3://benchmark/many/{number:05}.jsonl", row)
    for place in (str(folder / "many"), "s3://benchmark/many"):
        started = time.perf_counter()
        source = FileSource(place, ReadOptions())
        listed = time.perf_counter()
        units = sum(1 for _ in source.units(None, 256))
        print(f"{MANY:,} files in {place}: listed in {listed - started:.2f} s, ", end="")
        print(f"{units:,} units in {time.perf_counter() - listed:.2f} s")


def main(text: str, count: str = "5", tokenizer: str = "byte", workers: str = "1") -> None:
    """Start the server, measure, clear up."""
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    os.environ.update({**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.stdout.readline().strip()}"})
    folder = Path(tempfile.mkdtemp(prefix="object-storage-"))
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    try:
        import boto3

        boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"]).create_bucket(Bucket="benchmark")
        many(folder)
        pairs(Path(text), int(count), tokenizer, workers, folder, server.pid)
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
