"""A server under load: requests of many clients together, against one at a time and against ``transformers serve``.

    python benchmarks/serving.py [--clients 64] [--requests 500] [--rounds 1] [--hidden 384] [--layers 6] [--abuse]

The same model (random weights, Llama's architecture, 4,096 tokens of vocabulary) and the same prompts for both servers,
which run in turn on all cores; the clients of this process share these. Answers are streamed, of 64 tokens each.
Targets: no request lost, three times the tokens a second of one request at a time, and as many as
``transformers serve --continuous-batching``.

``--abuse``: instead, what strangers may do: bodies too large or malformed, clients that dawdle, leave or come by the
thousand. All must be answered or hung up on, the server stay well, and its memory as it was.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from automodel_cli.checkpoint.hf.export import save_hf
from automodel_cli.corpus.tokenizers.train_bpe import train_bpe
from automodel_cli.models.llama import build_llama_model

VOCAB, CONTEXT, ANSWER = 4096, 1024, 64
LARGEST_PROMPT_WORDS = 60
THERE = "transformers serve --continuous-batching"


def make_model(folder: Path, hidden: int, layers: int) -> None:
    """A Hugging Face folder with a tokenizer."""
    sources = (path.read_text(errors="replace") for path in sorted(Path(random.__file__).parent.glob("*.py")))
    tokenizer = train_bpe(sources, VOCAB)
    tokenizer.save(folder / "tokenizer")
    model = build_llama_model(
        vocab_size=VOCAB, hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=max(1, hidden // 128), max_position_embeddings=CONTEXT,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model.materialize("cpu", seed=0)
    save_hf(model, folder / "hf", folder / "tokenizer")
    size = sum(one.numel() for one in model.parameters()) / 1e6
    print(f"model: {size:.1f}M parameters, hidden {hidden}, {layers} layers")


def free_port() -> int:
    """One that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def server(command: list[str], folder: Path) -> Iterator[tuple[int, subprocess.Popen]]:
    """A server that answers ``/health``, and its port."""
    port = free_port()
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=log, stderr=log)
        try:
            for _ in range(1200):
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                        break
                if process.poll() is not None:
                    raise RuntimeError((folder / "log.txt").read_text()[-2000:])
                time.sleep(0.1)
            yield port, process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


@dataclass
class Load:
    """What clients saw."""

    tokens: int = 0
    lost: int = 0
    wall_s: float = 0.0
    first_s: list[float] = field(default_factory=list)
    whole_s: list[float] = field(default_factory=list)
    last_lost: bytes = b""

    def line(self, title: str) -> str:
        """For people."""
        both = (self.first_s, self.whole_s)
        first, whole = (statistics.quantiles([*times, *times] or [0.0, 0.0], n=100) for times in both)
        return (
            f"{title:58} {len(self.whole_s):4} answers, {self.lost} lost, {self.tokens / self.wall_s:7.1f} tokens/s; "
            f"first token "
            f"p50 {first[49]:5.2f} s, p95 {first[94]:5.2f} s; answer p50 {whole[49]:5.2f} s, p95 {whole[94]:5.2f} s"
        )


async def one_answer(port: int, body: dict[str, Any], load: Load) -> None:
    """Ask and read a stream, with no more work than needed: clients and servers share the cores."""
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        data = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Connection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        received, first_s = bytearray(), None
        while piece := await reader.read(65536):
            received += piece
            if first_s is None and b'"text":' in received:
                first_s = time.perf_counter() - started
        counts = re.findall(rb'"completion_tokens": ?(\d+)', bytes(received))
        if not received.startswith(b"HTTP/1.1 200") or not counts or b'"finish_reason":' not in received:
            load.lost += 1
            load.last_lost = bytes(received[-400:])
            return
        load.tokens += int(counts[-1])
        load.first_s.append(first_s or 0.0)
        load.whole_s.append(time.perf_counter() - started)
    except OSError:
        load.lost += 1
    finally:
        writer.close()


async def many_answers(port: int, bodies: list[dict[str, Any]], clients: int) -> Load:
    """``clients`` at a time, each of them asking anew when it has its answer."""
    load, left = Load(), iter(bodies)

    async def client() -> None:
        for body in left:
            await one_answer(port, body, load)

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    load.wall_s = time.perf_counter() - started
    return load


def bodies_of(name: str, requests: int, extra: dict[str, Any]) -> list[dict[str, Any]]:
    """Prompts of 10 to 60 words."""
    words = random.Random(0)
    names = [name for name in dir(random) if not name.startswith("_")]
    prompts = [" ".join(words.choices(names, k=words.randrange(10, LARGEST_PROMPT_WORDS))) for _ in range(requests)]
    common = {"model": name, "max_tokens": ANSWER, "temperature": 0.8, "stream": True, **extra}
    return [{**common, "prompt": prompt, "seed": number} for number, prompt in enumerate(prompts)]


def ours(folder: Path) -> list[str]:
    """Our command."""
    words = ["serve", str(folder / "hf"), "--max-rows", "64", "--top-k", "50"]
    return [sys.executable, "-m", "automodel_cli", *words]


def theirs(folder: Path) -> list[str]:
    """The other; by default its cache takes half of a machine's memory."""
    program = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
    options = ["--continuous-batching", "--cb-max-memory-percent", "0.15", "--device", "cpu", "--host", "127.0.0.1"]
    return [sys.executable, "-c", program, "serve", str(folder / "hf"), *options]


def measure(folder: Path, clients: int, requests: int, rounds: int, alone: int) -> None:
    """Both servers in turn."""
    usage = {"stream_options": {"include_usage": True}}
    speeds: dict[str, list[float]] = {"alone": [], "together": [], "theirs": []}
    for _ in range(rounds):
        with server(ours(folder), folder) as (port, _):
            bodies = bodies_of("hf", requests, usage)
            asyncio.run(many_answers(port, bodies[:2], 2))  # warms up
            one = asyncio.run(many_answers(port, bodies[:alone], 1))
            print(one.line("automodel serve, one at a time"), flush=True)
            many = asyncio.run(many_answers(port, bodies, clients))
            print(many.line(f"automodel serve, {clients} clients"), flush=True)
        speeds["alone"].append(one.tokens / one.wall_s)
        speeds["together"].append(many.tokens / many.wall_s)
        try:
            with server(theirs(folder), folder) as (port, _):
                bodies = bodies_of(str(folder / "hf"), requests, {})
                asyncio.run(many_answers(port, bodies[:2], 2))
                other = asyncio.run(many_answers(port, bodies, clients))
                print(other.line(f"{THERE}, {clients} clients"), flush=True)
                speeds["theirs"].append(other.tokens / other.wall_s)
        except RuntimeError as error:
            print(f"{THERE} does not run here: {error}")
    middle = {name: statistics.median(found) if found else float("nan") for name, found in speeds.items()}
    print(f"together against one at a time: {middle['together'] / middle['alone']:.2f}x (target 3)")
    print(f"against {THERE}: {middle['together'] / middle['theirs']:.2f}x (target 1)")


# ------------------------------------------------------------------------------------------------------ abuse


def resident_mib(process: subprocess.Popen) -> float:
    """Memory of a process."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


async def answers_to(port: int, data: bytes, times: int, *, wait_s: float = 60.0, read: bool = True) -> dict[str, int]:
    """How connections that send ``data`` end: status codes, hung up, or left (``read`` false)."""
    ends: dict[str, int] = {}

    async def connect() -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(data)
            answer = await asyncio.wait_for(reader.read(12), wait_s) if read else b""
            end = answer[9:12].decode() or ("left" if not read else "hung up")
            writer.close()
        except TimeoutError:
            end = "no answer"
            writer.close()
        except OSError:
            end = "hung up"
        ends[end] = ends.get(end, 0) + 1

    for first in range(0, times, 200):
        await asyncio.gather(*(connect() for _ in range(min(200, times - first))))
    return ends


async def idle_connections(port: int, count: int) -> tuple[int, int]:
    """Open so many that say nothing; how many of them the server keeps, and whether it still answers."""
    held = []
    for first in range(0, count, 500):
        found = await asyncio.gather(
            *(asyncio.open_connection("127.0.0.1", port) for _ in range(min(500, count - first))),
            return_exceptions=True,
        )
        held += [pair for pair in found if not isinstance(pair, BaseException)]
    await asyncio.sleep(4.0)
    kept = sum(not reader.at_eof() for reader, _ in held)
    for _, writer in held:
        writer.close()
    return len(held), kept


def request(body: bytes, *, length: int | None = None) -> bytes:
    """HTTP with a body, and what its length is said to be."""
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


def abuse(folder: Path, connections: int) -> None:
    """All of it, and memory before and after."""
    long = json.dumps({"prompt": "x", "max_tokens": 900, "stream": True}).encode()
    cases = {
        "malformed HTTP": (b"\x00\x01\x02 nonsense\r\n\r\n", 2000, True),
        "malformed JSON": (request(b'{"prompt": '), 2000, True),
        "nested JSON": (request(b"[" * 200_000), 50, True),
        "bodies of 2 MB": (request(b"x" * 2_000_000), 50, True),
        "bodies said to have 1 TB": (request(b"x", length=10**12), 500, True),
        "prompts beyond the context": (request(json.dumps({"prompt": "word " * 20_000}).encode()), 50, True),
        "streams left at once": (request(long), 500, False),
    }
    with server(ours(folder), folder) as (port, process):
        bodies = bodies_of("hf", 64, {"stream_options": {"include_usage": True}})
        asyncio.run(many_answers(port, bodies, 64))
        print(f"memory {resident_mib(process):.0f} MiB before")
        for number in (1, 2, 3):
            for title, (data, times, read) in cases.items():
                print(f"{title:30} {times:6}: {asyncio.run(answers_to(port, data, times, read=read))}", flush=True)
            opened, kept = asyncio.run(idle_connections(port, connections))
            print(f"{'connections that say nothing':30} {opened:6}: {kept} kept open, the others hung up on")
            load = asyncio.run(many_answers(port, bodies, 64))
            print(load.line("answers afterwards"))
            print(f"memory {resident_mib(process):.0f} MiB after round {number}", flush=True)
        print(re.findall(r"automodel_requests_total.*", httpx.get(f"http://127.0.0.1:{port}/metrics").text))


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("clients", 64), ("requests", 500), ("rounds", 1), ("hidden", 384), ("layers", 6), ("alone", 16),
        ("connections", 10_000),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--abuse", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="automodel-bench-") as name:
        folder = Path(name)
        make_model(folder, arguments.hidden, arguments.layers)
        if arguments.abuse:
            abuse(folder, arguments.connections)
        else:
            measure(folder, arguments.clients, arguments.requests, arguments.rounds, arguments.alone)


if __name__ == "__main__":
    main()
