"""Faults on some rank in the midst of a save: what each rank of ``run_ranks`` executes, and what must hold after."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.checkpoint import many_ranks

from automodel_cli import files
from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.checkpointer import Checkpointer
from automodel_cli.checkpoint.storage.step_files import HashedOutput
from automodel_cli.distributed.world import World
from automodel_cli.errors import CheckpointError

# point: (where it lies, the call that is counted)
POINTS: dict[str, tuple[object, str]] = {
    "write": (HashedOutput, "write"),
    "fsync": (os, "fsync"),
    "rename": (Path, "replace"),
    "fsync_folder": (files, "fsync_folder"),
}


@contextmanager
def fault(point: str, number: int, deed: Callable[[], None]) -> Iterator[list[int]]:
    """Do ``deed`` at the ``number``-th call of a point (0: never); yields the count of calls."""
    owner, name = POINTS[point]
    original, calls = getattr(owner, name), [0]

    def counted(*args, **kwargs):
        calls[0] += 1
        if calls[0] == number:
            deed()
        return original(*args, **kwargs)

    setattr(owner, name, counted)
    try:
        yield calls
    finally:
        setattr(owner, name, original)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fails_with(number: int) -> Callable[[], None]:
    def deed() -> None:
        raise OSError(number, os.strerror(number))

    return deed


def trained(world: World, layout_name: str = "fsdp2", updates: int = 1):
    part = many_ranks.world_of(world, layout_name)
    model = many_ranks.make(part)
    optimizer = many_ranks.optimizer_of(model)
    many_ranks.update(model, optimizer, updates)
    return part, model, optimizer


# ------------------------------------------------------------------------------------------ killed


def save_and_die(world: World, run: str, ranks: list[int], point: str, number: int, is_async: bool) -> None:
    """Step 1 is saved in peace; in the save of step 2 ``ranks`` get SIGKILL. The others leave what they were told."""
    part, model, optimizer = trained(world)
    options = {"is_async": is_async}
    many_ranks.save(run, part, model, optimizer, step=1, options=options)
    many_ranks.update(model, optimizer, 1)
    deed = kill if world.rank in ranks else lambda: None
    try:
        with fault(point, number, deed):
            many_ranks.save(run, part, model, optimizer, step=2, options=options)
        told = "saved"
    except CheckpointError as error:
        told = str(error)
    Path(f"{run}/told_{world.rank}").write_text(told)


def sound(run: Path, steps: set[int]) -> int:
    """The run can be taken up: the step that LATEST means, which loads; and it can be saved into."""
    found = layout.latest(run)
    assert found is not None and layout.step_of(found.name) in steps, found
    one = World.single()
    model = many_ranks.make(one, seed=7)
    optimizer = many_ranks.optimizer_of(model)
    loaded = many_ranks.load(found, one, model, optimizer)
    expected = many_ranks.make(one)
    expected_optimizer = many_ranks.optimizer_of(expected)
    many_ranks.update(expected, expected_optimizer, loaded.step)
    ours, theirs = (
        many_ranks.whole_state(model, optimizer),
        many_ranks.whole_state(expected, expected_optimizer),
    )
    # the second update was drawn anew
    assert loaded.step != 1 or many_ranks.differing(ours, theirs) == []
    saved = many_ranks.save(run, one, model, optimizer, step=9)
    assert layout.latest(run) == saved and not list(run.glob("*.tmp")) and not list(run.glob("*.replaced"))
    return loaded.step


# ------------------------------------------------------------------------------------------ failing disks


def failing_disks(world: World, folder: str) -> dict[str, list[str]]:
    """Each kind of failure on each rank; what every rank was told."""
    part, model, optimizer = trained(world)
    told = {}
    for name, rank, number in [
        ("no space on rank 1", 1, errno.ENOSPC),
        ("input/output error on rank 0", 0, errno.EIO),
        ("read-only on rank 1", 1, errno.EROFS),
        ("no space for the manifest", 0, -errno.ENOSPC),
    ]:
        run = f"{folder}/{name.replace(' ', '_').replace('/', '_')}"
        many_ranks.save(run, part, model, optimizer, step=1)
        # a negative number: in the last durable write of rank 0, which is the manifest's
        point, call = ("fsync", 1) if number > 0 else ("rename", 1)
        with fault(point, call if world.rank == rank else 0, fails_with(abs(number))):
            told[name] = attempt(world, lambda run=run: many_ranks.save(run, part, model, optimizer, step=2))
        if world.is_main:
            assert layout.list_steps(run) == [1] and not list(Path(run).glob("*.tmp")), name
            assert layout.latest(run).name == "step_00000001"
        world.barrier()
        many_ranks.save(run, part, model, optimizer, step=3)  # and the run goes on
    return told


def attempt(world: World, work: Callable[[], object]) -> list[str]:
    """What each rank is told; "fine" where nothing is raised."""
    try:
        work()
        return world.gather("fine")
    except CheckpointError as error:
        return world.gather(str(error))


def damaged_checkpoints(world: World, folder: str) -> dict[str, list[str]]:
    """A sharded checkpoint that somebody damaged, read by as many ranks as wrote it, and a leftover in the way."""
    part, model, optimizer = trained(world)
    run = Path(folder, "run")
    many_ranks.save(run, part, model, optimizer, step=1)
    path = many_ranks.save(run, part, model, optimizer, step=2)
    told = {}
    shards = [
        f"{below}/shard-0000{rank}-model-00001-of-00001.safetensors" for below in ("model", "optim") for rank in (1, 2)
    ]
    cases = [("flip", name) for name in [*shards, "optim/optimizer.json", "state.json", "config.yaml"]]
    for deed, name in [*cases, ("header", shards[1]), ("cut", shards[0]), ("missing", shards[3])]:
        if world.is_main:
            damage(path / name, deed)
        world.barrier()
        told[f"{deed} {name}"] = attempt(world, lambda: many_ranks.load(path, part, model, optimizer))
        if world.is_main:
            (path / "kept").rename(path / name)
        world.barrier()
    told["mended"] = attempt(world, lambda: many_ranks.load(path, part, model, optimizer))
    if world.is_main:  # what a killed save leaves, and a step without a manifest
        shutil.copytree(path, run / "step_00000003.tmp")
        shutil.copytree(path, run / "step_00000003")
        (run / "step_00000003" / "manifest.json").unlink()
    world.barrier()
    told["leftovers"] = attempt(world, lambda: many_ranks.save(run, part, model, optimizer, step=3))
    told["after them"] = attempt(world, lambda: many_ranks.load(run / "step_00000003", part, model, optimizer))
    return told


def damage(path: Path, deed: str) -> None:
    """Damage a file; the good one stays beside the manifest as ``kept``."""
    good = path.read_bytes()
    step = layout.folder_of(path)
    path.rename(step / "kept")
    if deed == "missing":
        return
    bad = bytearray(good)
    if deed == "flip":
        bad[-3] ^= 1
    elif deed == "header":
        bad[20] ^= 1
    else:
        bad = bad[:-5]
    path.write_bytes(bad)


def everything(world: World, folder: str) -> dict[str, dict[str, list[str]]]:
    """All that needs two ranks which survive, in one start of them."""
    return {
        "disks": failing_disks(world, f"{folder}/disks"),
        "damage": damaged_checkpoints(world, f"{folder}/damage"),
        "retention": retention(world, f"{folder}/retention"),
    }


def retention(world: World, run: str) -> dict[str, list[str]]:
    """What is newer than what was loaded stays, and what BEST names."""
    part, model, optimizer = trained(world)
    for step in (1, 2, 3, 4):
        many_ranks.save(run, part, model, optimizer, step=step, is_best=step == 1)
    checkpointer = Checkpointer(run, world=part, keep_last=1)
    checkpointer.load(f"{run}/step_00000002", model=model, optimizer=optimizer)
    arguments = {"state": {}, "loader_state": {}, "config_yaml": "", "facts": {"model": model.model_config()}}
    for step in (5, 6):
        checkpointer.save(step, model=model, optimizer=optimizer, proven=True, **arguments)
    return {"kept": [str(step) for step in layout.list_steps(run)]}
