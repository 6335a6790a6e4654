"""Commands as they are typed, as elements of Slurm arrays, killed with their workers; the files are always the same."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.launch.slurm_stand_ins import ROOT, install
from tests.promises.token_jobs import content

from automodel_cli.cli import app
from automodel_cli.corpus.dedup import plan
from automodel_cli.corpus.documents import parts
from automodel_cli.corpus.jobs.array_element import REST, STAGE_VARIABLE

pytestmark = pytest.mark.torture

KILLS = 50
PART_BYTES = 40_000
ELEMENTS = 3
COMMANDS = {
    "nanogpt": ["nanogpt", "--dataset", "in", "--tokenizer", "byte", "--val-fraction", "0.2", "--output-dir"],
    "nanogpt shuffle": ["nanogpt", "--dataset", "in", "--tokenizer", "byte", "--shuffle", "--output-dir"],
    "shuffle": ["shuffle", "--dataset", "in", "--dedup", "--chunks", "3", "--output-dir"],
    "dedup": ["dedup", "in", "--near", "0.8", "--output-dir"],
}
STAGES = {
    "nanogpt": "tokenize arrange assemble",
    "nanogpt shuffle": "count scatter tokenize arrange assemble",
    "shuffle": "count scatter duplicates join divide assemble",
    "dedup": "read exact bands near clusters write",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_50_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    install(tmp_path / "bin", monkeypatch)
    monkeypatch.setattr(parts, "PART_BYTES", PART_BYTES)  # of the plan, which elements read
    monkeypatch.setattr(plan, "_LEAST_PART", PART_BYTES)
    monkeypatch.setattr(plan, "_PARTS", 1000)
    monkeypatch.setattr(plan, "_FEW_PARTITIONS", 3)
    write_rows(Path("in"))
    line = ["preprocess", *COMMANDS[name]]
    assert app.run([*line, "one"]) == 0
    whole, rng, died = content(Path("one")), random.Random(name), 0
    began_s = time.monotonic()
    element([*line, "alone"], None, rng).communicate()
    usual_s = time.monotonic() - began_s
    for number in itertools.count():
        out = f"many {number}"
        slurm = [*line, out, "--runner", "slurm", "--slurm-tasks", str(ELEMENTS), "--submit", "--num-workers", "2"]
        assert app.run(slurm) == 0
        for _ in range(4):
            pair = [element(slurm, stage, rng) for stage in rng.choices([*STAGES[name].split(), REST], k=2)]
            died += sum(kill(process, rng, usual_s) for process in pair)
        last = element(slurm, REST, rng)
        said, _ = last.communicate()
        assert last.returncode == 0, said
        assert content(Path(out)) == whole, out
        if died >= KILLS:
            break
    print(f"{name}: {died} processes died in {number + 1} runs")


def write_rows(folder: Path) -> None:
    """Two files of documents; every tenth is there twice, and some are nearly another one."""
    rng = random.Random(1)
    words = [f"w{number}" for number in range(200)]
    folder.mkdir()
    for file in range(2):
        texts: list[str] = []
        while len(texts) < 1000:
            known = len(texts) % 10 == 9
            texts.append(f"{texts[-5]} more" if known and rng.random() < 0.5 else " ".join(rng.choices(words, k=40)))
            if known:
                texts.append(texts[-3])
        folder.joinpath(f"{file}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def element(line: Sequence[str], stage: str | None, rng: random.Random) -> subprocess.Popen[str]:
    """One process of the run: an element of its array, or the last job; None: a process that does all alone."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    if stage is not None:
        environ[STAGE_VARIABLE] = stage
    if stage not in (None, REST):
        numbers = (rng.randrange(ELEMENTS), ELEMENTS)
        environ |= dict(zip(("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"), map(str, numbers), strict=True))
    words = [sys.executable, "-P", "-m", "automodel_cli", *line]
    return subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kill(process: subprocess.Popen[str], rng: random.Random, usual_s: float) -> bool:
    """Kill the process, as Slurm's time limit does or as no memory does, or one of its workers; whether one died."""
    time.sleep(rng.uniform(0.2, 1.2) * usual_s)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers = children.read_text().split() if children.exists() else []
    hit = False
    if workers and rng.random() < 0.5:
        try:
            os.kill(int(rng.choice(workers)), signal.SIGKILL)
            hit = True
        except ProcessLookupError:
            pass
    elif process.poll() is None:
        process.send_signal(rng.choice([signal.SIGKILL, signal.SIGTERM]))
        hit = True
    said, _ = process.communicate()
    assert "Traceback" not in said, said
    return hit
