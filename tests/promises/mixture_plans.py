"""Random runs over mixtures: sources, weights, stages, batch sizes and changes, all drawn from one number."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tests.token_files import write_megatron_file, write_token_file

SEQ_LEN, VOCABULARY = 16, 64
NAMES = ("books", "code", "pairs", "web")
ACCEPT = "checkpoint.accept_data_change=true"
POINTS = ("read", "step", "write", "fsync", "rename")


def write_sources(folder: Path) -> None:
    """Token files of very unequal length, and a Megatron pair."""
    for number, (name, windows) in enumerate(zip(NAMES, (11, 70, 40, 200), strict=True)):
        tokens = np.random.default_rng(number).integers(0, VOCABULARY, windows * SEQ_LEN + 1)
        if name == "pairs":
            documents = [[part] for part in np.split(tokens, range(50, len(tokens), 50))]
            write_megatron_file(folder / name, documents, dtype=np.dtype("<u2"))
        else:
            write_token_file(folder / f"{name}.bin", tokens)


@dataclass(frozen=True)
class Leg:
    """Part of a run with one mixture: the sections of its configuration, and the update it ends with."""

    sections: dict[str, Any]
    last: int


@dataclass(frozen=True)
class RunOfPlans:
    """Legs that follow each other, each a change of the data, and where a disturbed run is killed in each."""

    legs: list[Leg]
    kills: list[list[tuple[str, int]]] = field(default_factory=list)


def draw(seed: int, data: Path) -> RunOfPlans:
    """The run of a number: two or three legs of three to five updates."""
    chance = random.Random(seed)
    sizes = chance.choice([8, [{"until_step": chance.randint(1, 8), "size": 4}, {"size": 8}]])
    shorter = [{"until_step": chance.randint(1, 8), "seq_len": 4}] if chance.random() < 0.3 else []
    legs, last, names = [], 0, sorted(chance.sample(NAMES, chance.randint(2, 3)))
    for _ in range(chance.randint(2, 3)):
        begin, last = last, last + chance.randint(3, 5)
        scheduler = {
            "max_steps": last,
            "global_batch_size": sizes,
            "seq_len_schedule": shorter,
            "local_batch_size": chance.choice([1, 2]),
            "ckpt_every_steps": 2,
            "val_every_steps": None,
        }
        dataset = _mixture(chance, data, names, begin, last)
        legs.append(Leg({"dataset": dataset, "validation_dataset": None, "step_scheduler": scheduler}, last))
        names = _other_names(chance, names)
    kills = [
        [(chance.choice(POINTS), chance.randint(1, 12)) for _ in range(chance.randint(0, 2))] for _ in range(len(legs))
    ]
    return RunOfPlans(legs, kills)


def _mixture(chance: random.Random, data: Path, names: list[str], begin: int, end: int) -> dict[str, Any]:
    sources: dict[str, Any] = {}
    for name in names:
        where = {"paths": str(data / name)} if name == "pairs" else {"file_pattern": str(data / f"{name}.bin")}
        sources[name] = {**where, "weight": _weight(chance)}
    mixture: dict[str, Any] = {"_target_": "Mixture", "seq_len": SEQ_LEN, "sources": sources}
    if end - begin > 3 and chance.random() < 0.6:
        weights = {name: _weight(chance) for name in names}
        ramp = chance.random() < 0.5
        mixture["stages"] = [
            {"until_step": begin + 2},
            {"until_step": end, "weights": weights, "ramp": ramp},
            {"weights": weights},
        ]
    return mixture


def _weight(chance: random.Random) -> float:
    return round(chance.uniform(0.05, 3), 2)


def _other_names(chance: random.Random, names: list[str]) -> list[str]:
    """The sources of the next leg: the same with other weights, one more, or without one."""
    absent = [name for name in NAMES if name not in names]
    kind = chance.choice(["weights", "more", "less"])
    if kind == "more" and absent:
        return sorted([*names, chance.choice(absent)])
    return sorted(chance.sample(names, len(names) - 1)) if kind == "less" and len(names) > 1 else names
