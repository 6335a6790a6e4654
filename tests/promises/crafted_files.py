"""Files that lie, made from real ones: every key of every JSON and YAML file, changed in every way that hurts.

A small working place (text, tokenizer, corpora of both formats, a run, an export, task items, scores) is made
by the commands themselves. :func:`crafted` then changes one file at a time: a key missing, of another type,
negative, enormous, infinite, nested a hundred thousand deep, not UTF-8. Hashes are made to agree again, so that
the change reaches whoever reads the file. :func:`run` runs a command on it, and says how it ended and what memory it
used.

Also a script, which prints the counts by kind: ``python -m tests.promises.crafted_files --number 30``.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
import yaml
from tests import nursery

LIMIT_S = 20
ADDED_MEMORY_MIB = 1024
"""What a command on a crafted file may use above the same command on the sound one."""

# ------------------------------------------------------------------------------------------ running


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code (None: it did not end), all it printed, its peak memory."""

    code: int | None
    output: str
    peak_mib: float

    def fault(self, usual_mib: float) -> str | None:
        """What must not happen with any file, or None."""
        if self.code is None:
            return "hang"
        if self.code < 0:
            return "killed"
        if self.peak_mib > usual_mib + ADDED_MEMORY_MIB:
            return "memory"
        if "Traceback (most recent call last)" in self.output or "this is a bug" in self.output:
            return "traceback"
        if self.code and len(self.output.strip().splitlines()) == 0:
            return "no message"
        return None


def run(folder: Path, *argv: str) -> Outcome:
    """One command line in ``folder``, in a child of the nursery."""
    command = [sys.executable, "-m", "automodel_cli", *argv]
    environment = {**os.environ, **nursery.ENVIRONMENT, "COLUMNS": "200"}
    limits = {resource.RLIMIT_AS: 24 << 30}
    with tempfile.TemporaryFile("w+", errors="replace") as printed:
        process = nursery.Popen(
            command, cwd=folder, env=environment, stdout=printed, stderr=subprocess.STDOUT, limits=limits
        )
        try:
            code = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
        printed.seek(0)
        return Outcome(code, printed.read(1 << 20), process.max_rss_kib / 1024)


# ------------------------------------------------------------------------------------------ the working place

_MODEL = (
    "{_target_: automodel_cli.models.gpt2.build_gpt2_model, "
    "vocab_size: 300, n_positions: 32, n_embd: 16, n_layer: 1, n_head: 2}"
)
_STEPS = "{global_batch_size: 4, local_batch_size: 4, max_steps: 2, ckpt_every_steps: 2, val_every_steps: 2}"
_DATASET = "_target_: automodel_cli.data.nanogpt_dataset.NanogptDataset"
_REST = "optimizer: {_target_: torch.optim.AdamW, lr: 1.0e-3}\nprecision: fp32\ncompile: false\n"

CONFIG = f"""\
model: {_MODEL}
dataset: {{{_DATASET}, file_pattern: corpus/dataset.bin, seq_len: 32}}
validation_dataset: {{{_DATASET}, file_pattern: corpus/val.bin, seq_len: 32}}
step_scheduler: {_STEPS}
checkpoint: {{checkpoint_dir: run}}
{_REST}"""

MEGATRON_CONFIG = f"""\
model: {_MODEL}
dataset:
  _target_: automodel_cli.data.megatron_dataset.MegatronPretraining
  paths: pairs/p_0_text_document
  index_mapping_dir: cache
  seq_length: 32
  split: "90,10,0"
  tokenizer: {{_target_: transformers.AutoTokenizer.from_pretrained, pretrained_model_name_or_path: tokenizer}}
step_scheduler: {_STEPS}
checkpoint: {{checkpoint_dir: megatron_run}}
{_REST}"""

SETUP = [
    "preprocess tokenizer --dataset text.jsonl --vocab-size 300 --output-dir tokenizer",
    "preprocess nanogpt --dataset text.jsonl --tokenizer tokenizer --val-fraction 0.1 --output-dir corpus",
    "preprocess megatron --input text.jsonl --pretrained-model-name-or-path tokenizer --append-eod "
    "--output-prefix p --output-path pairs",
    "preprocess shuffle --dataset text.jsonl --output-dir shuffled",
    "config.yaml",
    "megatron.yaml",
    "export hf run export",
    "eval run --data corpus/val.bin -o results.json",
]


def make_place(folder: Path) -> Path:
    """Text, and all that the commands make of it."""
    folder.mkdir(parents=True)
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 8))) for _ in range(400)]
    rows = [json.dumps({"text": " ".join(draw.choices(words, k=30))}) for _ in range(300)]
    (folder / "text.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "megatron.yaml").write_text(MEGATRON_CONFIG)
    items = folder / "bundle" / "eval_data" / "commonsense_reasoning"
    items.mkdir(parents=True)
    item = {"query": "The glass fell, so", "choices": ["it broke.", "it sang."], "gold": 0}
    (items / "copa.jsonl").write_text(json.dumps(item) + "\n")
    for line in SETUP:
        outcome = run(folder, *line.split())
        assert outcome.code == 0, (line, outcome.output)
    return folder


_STEP = "run/step_00000002"
_VERIFY_RUN = "inspect-ckpt run --verify"
_RESUME = "config.yaml --step_scheduler.max_steps 3"
READERS: dict[str, tuple[str, ...]] = {
    "corpus/manifest.json": ("preprocess verify corpus", "config.yaml --fresh --dry-run"),
    "corpus/tokenizer/automodel_tokenizer.json": ("preprocess verify corpus",),
    "tokenizer/automodel_tokenizer.json": (
        "preprocess nanogpt --dataset text.jsonl --tokenizer tokenizer --output-dir new",
    ),
    "tokenizer/tokenizer.json": ("preprocess nanogpt --dataset text.jsonl --tokenizer tokenizer --output-dir new",),
    "tokenizer/tokenizer_config.json": (
        "preprocess nanogpt --dataset text.jsonl --tokenizer tokenizer --output-dir new",
        "megatron.yaml --fresh --dry-run",
    ),
    "pairs/p.manifest.json": ("preprocess verify pairs", "megatron.yaml --fresh --dry-run"),
    "shuffled/manifest.json": ("preprocess nanogpt --dataset shuffled --tokenizer byte --output-dir new",),
    "cache/*.json": ("megatron.yaml --fresh --dry-run",),
    f"{_STEP}/manifest.json": (_VERIFY_RUN, _RESUME),
    f"{_STEP}/state.json": (_VERIFY_RUN, _RESUME),
    f"{_STEP}/loader.json": (_VERIFY_RUN, _RESUME),
    f"{_STEP}/optim/optimizer.json": (_VERIFY_RUN, _RESUME),
    f"{_STEP}/model/config.json": (_VERIFY_RUN, "eval run --data corpus/val.bin -o new.json"),
    f"{_STEP}/tokenizer/automodel_tokenizer.json": ("generate run --prompt a --max-new-tokens 2",),
    f"{_STEP}/config.yaml": (_VERIFY_RUN, "eval run"),
    "run/metrics.jsonl": (_VERIFY_RUN, _RESUME, "plot run -o new.png"),
    "export/config.json": ("inspect-ckpt export", "eval export --data corpus/val.bin -o new.json"),
    "export/generation_config.json": ("generate export --prompt a --max-new-tokens 2",),
    "export/tokenizer_config.json": ("generate export --prompt a --max-new-tokens 2",),
    "bundle/eval_data/commonsense_reasoning/copa.jsonl": ("eval run --tasks copa --tasks-path bundle -o new.json",),
    "results.json": ("eval compare results.json results.json",),
    "config.yaml": ("config.yaml --fresh --dry-run",),
}
"""File (or pattern), and the commands that read it."""

# ------------------------------------------------------------------------------------------ changing files


class Raw(str):
    """Text that goes into the file as it is: numbers that JSON's writer would not write."""


MISSING = object()
VALUES: dict[str, Callable[[Any], Any]] = {
    "missing": lambda old: MISSING,
    "null": lambda old: None,
    "other type": lambda old: ["x"] if isinstance(old, str | int | float) else 7,
    "text": lambda old: "x" * 3 if not isinstance(old, str) else {"x": 1},
    "boolean": lambda old: True,
    "negative": lambda old: -1,
    "enormous": lambda old: 10**18,
    "beyond 64 bits": lambda old: 10**40,
    "float": lambda old: 0.5,
    "infinite": lambda old: Raw("Infinity"),
    "not a number": lambda old: Raw("NaN"),
    "5,000 digits": lambda old: Raw("9" * 5000),
    "deep": lambda old: Raw("[" * 100_000 + "]" * 100_000),
    "path": lambda old: "../../etc/passwd",
    "escape": lambda old: "\x1b[2J\x07",
    "empty list": lambda old: [],
    "empty mapping": lambda old: {},
}
WHOLE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut off": lambda data: data[: len(data) // 2],
    "not UTF-8": lambda data: data[: len(data) // 3] + b"\xff\xfe" + data[len(data) // 3 :],
    "zeros": lambda data: bytes(len(data)),
    "list": lambda data: b"[]",
    "number": lambda data: b"7",
    "deep whole": lambda data: b"[" * 200_000,
    "deep mapping": lambda data: b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
}


@dataclass(frozen=True)
class Crafted:
    """One change of one file: its name, the place in it, the kind, and the new content."""

    file: str
    place: str
    kind: str
    content: bytes


def crafted(place: Path, file: str) -> Iterator[Crafted]:
    """Every change of ``file`` (relative to ``place``), in a fixed order."""
    data = (place / file).read_bytes()
    for kind, change in WHOLE.items():
        yield Crafted(file, "", kind, change(data))
    value = _parsed(file, data)
    for path in _places(value):
        for kind, change in VALUES.items():
            changed = _with(value, path, change)
            yield Crafted(file, ".".join(map(str, path)), kind, _spelled(file, changed))


def _parsed(file: str, data: bytes) -> Any:
    if file.endswith(".yaml"):
        return yaml.safe_load(data)
    if file.endswith(".jsonl"):
        return [json.loads(line) for line in data.splitlines()]
    return json.loads(data)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key of every mapping; of a list and of a mapping of like records the first, of a vocabulary five."""
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        records = [item for item in value.values() if isinstance(item, dict)]
        alike = len(records) > 3 and len(records) == len(value)
        inner = list(value.items())[: 1 if alike else 5 if len(value) > 40 else None]
    elif isinstance(value, list):
        inner = list(enumerate(value[:1]))
    for key, item in inner:
        yield (*path, key)
        yield from _places(item, (*path, key))


def _with(value: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    copied = json.loads(json.dumps(value))
    holder = copied
    for key in path[:-1]:
        holder = holder[key]
    new = change(holder[path[-1]])
    if new is MISSING:
        del holder[path[-1]]
    else:
        holder[path[-1]] = new
    return copied


def _spelled(file: str, value: Any) -> bytes:
    raws: list[str] = []

    def marked(item: Any) -> Any:
        if isinstance(item, Raw):
            raws.append(str(item))
            return f"@raw{len(raws) - 1}@"
        if isinstance(item, dict):
            return {key: marked(inner) for key, inner in item.items()}
        return [marked(inner) for inner in item] if isinstance(item, list) else item

    prepared = marked(value)
    if file.endswith(".jsonl"):
        text = "".join(json.dumps(item) + "\n" for item in prepared)
    else:  # JSON is YAML
        text = json.dumps(prepared, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    for number, raw in enumerate(raws):
        text = text.replace(f'"@raw{number}@"', raw)
    return text.encode("utf-8", "surrogatepass")


@contextlib.contextmanager
def in_place(place: Path, copy: Path, change: Crafted) -> Iterator[Path]:
    """A copy of the working place with one file changed and all hashes made to agree."""
    shutil.copytree(place, copy, symlinks=True)
    try:
        (copy / change.file).write_bytes(change.content)
        _seal(copy, copy / change.file)
        yield copy
    finally:
        shutil.rmtree(copy)


def _seal(place: Path, changed: Path) -> None:
    """Let the manifests above ``changed`` agree with it, and with themselves."""
    if changed.name.endswith("manifest.json"):
        _sign(changed)
        return
    for folder in changed.parents:
        for manifest in folder.glob("*manifest.json"):
            content = json.loads(manifest.read_bytes())
            for record in content.get("files", []):
                if folder / record["name"] == changed:
                    record["bytes"] = changed.stat().st_size
                    record["xxh3"] = f"xxh3:{xxhash.xxh3_64(changed.read_bytes()).hexdigest()}"
                    manifest.write_text(json.dumps(content))
                    _sign(manifest)
        if folder == place:
            return


def _sign(manifest: Path) -> None:
    try:
        content = json.loads(manifest.read_bytes())
        body = {key: value for key, value in content.items() if key != "self"}
        canonical = json.dumps(body, sort_keys=True, ensure_ascii=False).encode()
    except (ValueError, AttributeError, RecursionError):
        return
    if "self" in content:
        content["self"] = f"xxh3:{xxhash.xxh3_64(canonical).hexdigest()}"
        manifest.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


# ------------------------------------------------------------------------------------------ all of them


def cases(place: Path, pattern: str) -> list[tuple[Crafted, str]]:
    """Every change of the files of one pattern with every command that reads them, in a fixed order."""
    found = []
    for path in sorted(place.glob(pattern))[:2]:
        file = path.relative_to(place).as_posix()
        found += [(change, line) for change in crafted(place, file) for line in READERS[pattern]]
    return found


def drawn(place: Path, pattern: str, number: int) -> list[tuple[Crafted, str]]:
    """So many of the cases of a pattern, the same ones each time; all of them where there are fewer."""
    found = cases(place, pattern)
    return random.Random(pattern).sample(found, min(number, len(found)))


@dataclass(frozen=True)
class Verdict:
    """What one command made of one crafted file."""

    change: Crafted
    line: str
    outcome: Outcome
    fault: str | None

    def __str__(self) -> str:
        last = " / ".join(self.outcome.output.strip().splitlines()[-3:])
        change = self.change
        return f"{self.fault}: {self.line} | {change.file} {change.place} {change.kind}: {last[:400]}"


@functools.cache
def _usual_mib(place: Path, line: str) -> float:
    """Peak memory of a command on the sound files."""
    copy = place.with_name("sound")
    shutil.copytree(place, copy, symlinks=True)
    peak_mib = run(copy, *line.split()).peak_mib
    shutil.rmtree(copy)
    return peak_mib


def verdicts(place: Path, chosen: list[tuple[Crafted, str]]) -> Iterator[Verdict]:
    """Run the chosen cases."""
    copy = place.with_name("crafted")
    for change, line in chosen:
        usual_mib = _usual_mib(place, line)
        with in_place(place, copy, change) as folder:
            outcome = run(folder, *line.split())
        yield Verdict(change, line, outcome, outcome.fault(usual_mib))


def main() -> None:
    """Run cases of every file and print the counts of faults by file and kind."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--number", type=int, default=10**9, help="cases of each file")
    parser.add_argument("--files", default="", help="only files whose name holds this")
    given = parser.parse_args()
    faults: collections.Counter[tuple[str, str]] = collections.Counter()
    ran: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        place = make_place(Path(folder) / "place")
        patterns = [pattern for pattern in READERS if given.files in pattern]
        chosen = [case for pattern in patterns for case in drawn(place, pattern, given.number)]
        for verdict in verdicts(place, chosen):
            ran[verdict.change.file] += 1
            if verdict.fault:
                faults[verdict.change.file, verdict.fault] += 1
                print(verdict, flush=True)
    for file, count in ran.items():
        found = {kind: n for (name, kind), n in faults.items() if name == file}
        print(f"{file:60} {count:5} cases  {found or 'no fault'}")
    print(f"{sum(ran.values())} cases, {sum(faults.values())} faults")


if __name__ == "__main__":
    main()
