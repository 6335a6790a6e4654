"""The full fault counts of training: ``make torture``.

20 SIGKILLs spread over the phases of a run (reading, updating, writing, making durable, renaming), each followed by the
same command; and one flipped byte at many places of every file of a checkpoint.
"""

from __future__ import annotations

import random
import shutil
import signal
from collections import Counter

import pytest

from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.checkpointer import Checkpointer
from automodel_cli.errors import CheckpointError
from automodel_cli.models.families import build_from_config
from automodel_cli.train.optimizers import build_adamw, build_optimizer
from automodel_cli.train.param_groups import UpdateRule, same_rule

pytestmark = pytest.mark.torture

# (point, n-th call): four instants of each phase, from the first seconds to the last save.
INSTANTS = [
    *[("read", number) for number in (1, 9, 17, 23)],
    *[("step", number) for number in (1, 5, 8, 12)],
    *[("write", number) for number in (1, 4, 7, 12)],
    *[("fsync", number) for number in (3, 14, 29, 44)],
    *[("rename", number) for number in (2, 4, 7, 9)],
]


def test_sigkill_at_20_instants(tiny_training, undisturbed):
    done, missed = Counter(), []
    for point, number in INSTANTS:
        shutil.rmtree(tiny_training.run, ignore_errors=True)
        first = tiny_training.train(kill=(point, number))
        if first.returncode != -signal.SIGKILL:
            missed.append((point, number))
            continue
        second = tiny_training.train()
        assert second.returncode == 0, (point, number, second.stderr)
        assert tiny_training.losses() == undisturbed.losses(), (point, number)
        assert tiny_training.weights(12) == undisturbed.weights(12), (point, number)
        assert not list(tiny_training.run.glob("*.tmp")), (point, number)
        done[point] += 1
    print(f"\nSIGKILL during training, then the same command: {sum(done.values())} of {len(INSTANTS)} bitwise equal")
    for point, count in done.items():
        print(f"  {point:8s} {'#' * count} {count}")
    assert not missed, f"the process ended before these instants: {missed}"


def test_every_flipped_byte_of_a_checkpoint_is_found(undisturbed, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(undisturbed.run, run)
    step = layout.step_folder(run, 12)
    files = sorted(path for path in step.rglob("*") if path.is_file())
    rng = random.Random(5)
    flips = 0
    for path in files:
        whole = path.read_bytes()
        for offset in sorted({0, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(30))}):
            damaged = bytearray(whole)
            damaged[offset] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError) as caught:
                load(step)
            assert path.name in str(caught.value), (path, offset)
            flips += 1
        path.write_bytes(whole)
    load(step)
    print(f"\none flipped byte in a checkpoint: {flips} of {flips} found and named, in {len(files)} files")


def load(step) -> None:
    model = build_from_config(layout.read_step_manifest(step)["facts"]["model"])
    optimizer = build_optimizer(model, same_rule(UpdateRule(build_adamw, 0.01, 0.1)))
    Checkpointer(step.parent).load(step, model=model, optimizer=optimizer)
