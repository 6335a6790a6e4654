"""How often ``automodel race`` errs and what it finds, in races of real training runs of tiny models.

    python benchmarks/races.py TEXT --runs FOLDER [--races 200] [--pairs 30] [--jobs 1]

Bytes of TEXT, a one-layer GPT of width 32 (preset modern with learned positions, without QK-norm and softcap), 30
updates of 8 rows of 32 bytes, AdamW at 0.02 with a warm-up of 3 updates and a linear decay to zero, fp32. The result of
a run is its bits per byte on 4,096 bytes that are held out, the same for all runs.

Two kinds of races, each decided as the recipe decides: its ``Raced``, its level and its margin, asked after each pair.

- *Equals.* A and B have one configuration, and B another seed, so other initial values and another order of data. With
  the seed in common their bits would be the same. Here the two can be exchanged, so there is nothing to find, and any
  verdict is false. It is the harder case too: all of the noise between seeds is in a difference, of which pairs with a
  seed in common have a fraction. The interval never comes to lie within the margin, which would end a race early and
  without a verdict, so the test is asked after every pair there is.
- *Planted.* Both have the seed in common, as in any race, and the learning rate of A is 2.3% lower. What that costs,
  about 0.3%, is measured first, on seeds of its own. B has to be found better.

No run is used twice. A process for each, as the command makes them, would cost ten seconds of imports; so runs are made
in this process by what a process would call (``build_run``, ``train``, ``evaluate``), and for one pair the command
itself is asked as well: its results must be the same bits.

Races are kept in FOLDER; the same command goes on, with races of equals also to more --pairs.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import math
import multiprocessing
import random
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from automodel_cli.assembly import world as world_assembly
from automodel_cli.assembly.reporter import Reporter
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.schema.sweep import RaceConfig
from automodel_cli.evaluation.likelihood import evaluate
from automodel_cli.recipes.pretraining.build import build_run
from automodel_cli.recipes.pretraining.loop import train
from automodel_cli.recipes.race import MOST_PAIRS, Raced
from automodel_cli.scaling.sequential import judge

RATE, PLANTED = 0.02, 0.977
WIDTH, STEPS, ROWS, TOKENS, HELD_OUT = 32, 30, 8, 32, 16  # the last: batches of ROWS
DEFAULTS = RaceConfig(a="a.yaml", b="b.yaml")
RECORD = "races.jsonl"


@dataclass(frozen=True)
class Kind:
    """Races of two configurations. Seeds are those from ``seeds`` on; B's is ``apart`` above A's."""

    name: str
    a: str
    b: str
    races: int
    most: int  # pairs of a race
    seeds: int
    apart: int = 0


EFFECT = Kind("what is planted", "a.yaml", "b.yaml", races=60, most=1, seeds=5_000_000)
FOUND = Kind("planted", "a.yaml", "b.yaml", races=20, most=MOST_PAIRS, seeds=2_000_000)
EQUALS = Kind("equals", "b.yaml", "b.yaml", races=200, most=MOST_PAIRS, seeds=3_000_000, apart=1_000_000)


# ------------------------------------------------------------------------------------------ runs


def prepare(text: Path, folder: Path) -> None:
    """Token files, and the configurations of A and B."""
    data = folder / "data"
    if not (data / "manifest.json").exists():
        flags = ("--tokenizer", "byte", "--val-tokens", "50k", "--seed", "1")
        automodel("preprocess", "nanogpt", "--dataset", str(text), *flags, "--output-dir", str(data))
    for name, rate in (("a.yaml", PLANTED * RATE), ("b.yaml", RATE)):
        (folder / name).write_text(yaml.safe_dump(config_of(data, rate), sort_keys=False))


def automodel(*arguments: str) -> str:
    """What the command prints; ``race`` says its verdict with its exit code."""
    command = [sys.executable, "-m", "automodel_cli", *arguments]
    return subprocess.run(command, check=arguments[0] != "race", stdout=subprocess.PIPE, text=True).stdout


def config_of(data: Path, rate: float) -> dict[str, Any]:
    dataset = {"_target_": "automodel_cli.data.nanogpt_dataset.NanogptDataset", "seq_len": TOKENS}
    return {
        "model": {
            "_target_": "automodel_cli.models.gpt.build_gpt_model",
            "vocab_size": 257,
            "hidden_size": WIDTH,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "max_position_embeddings": TOKENS,
            "softcap": 0.0,
            "positions": "learned",
            "qk_norm": False,
        },
        "dataset": {**dataset, "file_pattern": str(data / "dataset.bin"), "shuffle_files": True},
        "validation_dataset": {**dataset, "file_pattern": str(data / "val.bin")},
        "step_scheduler": {
            "global_batch_size": ROWS,
            "local_batch_size": ROWS,
            "max_steps": STEPS,
            "val_on_start": False,
            "limit_val_batches": HELD_OUT,
            "log_every_steps": STEPS,
            "gc_every_steps": None,
            "preemption_signal": None,  # Ctrl-C ends the benchmark, not one of its runs
        },
        "precision": "fp32",
        "compile": {"enabled": False},
        "loss_fn": {"_target_": "torch.nn.CrossEntropyLoss"},  # none is timed, so all runs have the same
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": rate, "betas": [0.9, 0.95], "weight_decay": 0.1},
        "lr_scheduler": {
            "lr_decay_style": "linear",
            "lr_warmup_steps": STEPS // 10,
            "init_lr": 0.0,
            "min_lr": 0.0,
        },
        "checkpoint": {"save_consolidated": False},
    }


@functools.cache
def config(file: Path) -> PretrainConfig:
    """As a race would read it, but without a run folder and a validation that would be logged there."""
    return load_config(PretrainConfig, file, ["checkpoint.enabled=false", "step_scheduler.val_every_steps=null"])


def bits_per_byte(file: Path, seed: int) -> float:
    """Of a run from ``file``, in this process."""
    cfg = config(file)
    cfg = cfg.model_copy(update={"rng": cfg.rng.model_copy(update={"seed": seed})})
    run = build_run(cfg, world_assembly.join(cfg), Reporter())
    train(run)
    ((_, held_out),) = run.val_sets.values()
    assert run.tokenizer is not None
    scores = evaluate(run.model, held_out, head_loss=run.head_loss, token_bytes=run.tokenizer.token_bytes())
    assert scores.bits_per_byte is not None
    return scores.bits_per_byte


def check_against_the_command(folder: Path, seed: int = 0) -> None:
    """One pair by ``automodel race``, in processes of its own: the same bits as here."""
    words = ("race", str(folder / "a.yaml"), str(folder / "b.yaml"), "--seeds", "1", "--json")
    (pair,) = json.loads(automodel(*words, "--output-dir", str(folder / "by_command")))["results"]
    here = {"seed": seed, **{name: bits_per_byte(folder / f"{name}.yaml", seed) for name in ("a", "b")}}
    assert here == pair, f"in this process {here}, by the command {pair}"
    print(
        f"seed {seed}: A {here['a']:.6f}, B {here['b']:.6f} bits per byte, the same bits by automodel race", flush=True
    )


# ------------------------------------------------------------------------------------------ races


def race(folder: Path, kind: Kind, begun: tuple[int, Raced]) -> tuple[int, Raced]:
    """Go on with a race, on seeds of its own, to the end that the recipe would have."""
    number, raced = begun
    first = kind.seeds + number * MOST_PAIRS
    for seed in range(first + len(raced.pairs), first + kind.most):
        if raced.finding.is_decided:
            break
        raced.pairs[seed] = bits_per_byte(folder / kind.a, seed), bits_per_byte(folder / kind.b, seed + kind.apart)
    return number, raced


def begin(folder: Path) -> None:
    """A worker: what there is after a first run stays, so no collection of garbage has to look at it."""
    torch.set_num_threads(1)
    bits_per_byte(folder / "b.yaml", 0)
    gc.collect()
    gc.freeze()


def races(folder: Path, kind: Kind, jobs: int) -> list[Raced]:
    """All races of a kind: those on record, and the others made."""
    found = {number: new_race() for number in range(kind.races)} | dict(on_record(folder, kind))
    todo = [(number, found[number]) for number in range(kind.races) if not has_ended(kind, found[number])]
    with (
        (folder / RECORD).open("a") as record,
        multiprocessing.get_context("fork").Pool(jobs, begin, (folder,)) as pool,
    ):
        for number, raced in pool.imap_unordered(functools.partial(race, folder, kind), todo):
            record.write(json.dumps({"kind": kind.name, "number": number, "pairs": raced.pairs}) + "\n")
            record.flush()
            found[number] = raced
    return [found[number] for number in range(kind.races)]


def new_race() -> Raced:
    return Raced(DEFAULTS.metric, DEFAULTS.margin, DEFAULTS.alpha)


def has_ended(kind: Kind, raced: Raced) -> bool:
    return len(raced.pairs) >= kind.most or raced.finding.is_decided


def on_record(folder: Path, kind: Kind) -> Iterator[tuple[int, Raced]]:
    """``(number, race)`` of those that were made, so far as ``kind`` would go."""
    lines = (folder / RECORD).read_text().splitlines() if (folder / RECORD).exists() else []
    for one in map(json.loads, lines):
        if one["kind"] == kind.name:
            raced = new_race()
            raced.pairs = {int(seed): (a, b) for seed, (a, b) in [*one["pairs"].items()][: kind.most]}
            yield one["number"], raced


# ------------------------------------------------------------------------------------------ what came out


def gains(raced: list[Raced]) -> list[float]:
    """Of B in every pair, as shares of A's result."""
    return [(a - b) / a for one in raced for a, b in one.pairs.values()]


def effect_line(found: list[float]) -> str:
    """``+0.300% (+0.290% to +0.310%)``: mean gain and two standard errors, about a 95% interval."""
    mean, deviation = statistics.fmean(found), statistics.stdev(found)
    half = 2 * deviation / math.sqrt(len(found))
    span = f"95% interval {mean - half:+.3%} to {mean + half:+.3%}"
    return f"{mean:+.3%} ({span}), standard deviation of a pair {deviation:.3%}, {len(found)} pairs"


def false_share(pairs: int, races: int = 5_000) -> float:
    """Of simulated races of equals with normal noise, those with a verdict after so many pairs at most."""
    generator, false = random.Random(0), 0
    for _ in range(races):
        noise = [generator.gauss(0, 1) for _ in range(pairs)]
        false += any(judge(noise[:n], alpha=DEFAULTS.alpha).is_decided for n in range(1, pairs + 1))
    return false / races


def table(rows: Mapping[str, list[Raced]]) -> Iterator[str]:
    yield f"{'races of':12s} {'races':>5s} {'better':>6s} {'worse':>6s} {'none':>6s}  pairs: median, most"
    for name, all_of_them in rows.items():
        verdicts = [raced.finding.verdict for raced in all_of_them]
        counts = [verdicts.count(verdict) for verdict in ("better", "worse", "no difference found")]
        pairs = [len(raced.pairs) for raced in all_of_them]
        numbers = " ".join(f"{count:6d}" for count in counts)
        yield f"{name:12s} {len(verdicts):5d} {numbers}  {statistics.median(pairs):g}, {max(pairs)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--races", type=int, default=EQUALS.races, help="of equals")
    parser.add_argument("--pairs", type=int, default=EQUALS.most, help="of a race of equals, at most")
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    folder = arguments.runs
    folder.mkdir(parents=True, exist_ok=True)
    prepare(arguments.text, folder)
    torch.set_num_threads(1)
    kind = replace(EQUALS, races=arguments.races, most=arguments.pairs)
    print(
        f"runs: a GPT of 1 layer of {WIDTH}, {STEPS} updates of {ROWS} x {TOKENS} bytes, AdamW {RATE:g} (planted: "
        f"{PLANTED * RATE:g} in A), scored on {HELD_OUT * ROWS * TOKENS:,} bytes\n"
        f"races: {DEFAULTS.metric}, level {DEFAULTS.alpha:g}, margin {DEFAULTS.margin:.2%}, at most {FOUND.most} pairs "
        f"planted, {kind.most} of equals"
    )
    check_against_the_command(folder)
    print(f"planted: B's gain {effect_line(gains(races(folder, EFFECT, arguments.jobs)))}", flush=True)
    made = {FOUND.name: races(folder, FOUND, arguments.jobs)}
    print("\n".join(table(made)), flush=True)
    made[kind.name] = races(folder, kind, arguments.jobs)
    print(f"equals: B's gain {effect_line(gains(made[kind.name]))}")
    print("\n".join(table(made)))
    shares = ", ".join(f"{false_share(pairs):.1%} within {pairs} pairs" for pairs in (kind.most, MOST_PAIRS))
    print(f"false verdicts in simulated races of normal noise: {shares}")


if __name__ == "__main__":
    main()
