"""Runs that stop and are taken up by other numbers of ranks: what each rank of ``run_ranks`` executes."""

from __future__ import annotations

import os
import signal
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.effort import without_contained
from tests.promises.spread_runs import configuration, log_into, on_mesh, weights_hash

from automodel_cli.assembly.reporter import Reporter
from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.storage.step_files import StepWriter
from automodel_cli.distributed.world import World
from automodel_cli.errors import AutomodelError
from automodel_cli.recipes.pretrain import PretrainRecipe

Hook = Callable[[PretrainRecipe], None]


def start(world: World, folder: str, run: str, *, checkpoint=None, **sections) -> PretrainRecipe:
    """A recipe of the run of that name, set up; what it says is in ``.said``."""
    settings = {"checkpoint_dir": f"{folder}/{run}", **(checkpoint or {})}
    cfg = configuration(Path(folder), checkpoint=settings, **sections)
    said: list[str] = []
    recipe = PretrainRecipe(cfg, world=on_mesh(world, cfg), reporter=Reporter(say=said.append))
    recipe.said = said
    recipe.setup()
    return recipe


def go(recipe: PretrainRecipe) -> dict[str, Any]:
    """To the end, or to a signal: numbers by step, exit code, the checkpoint that LATEST names."""
    records: list[dict[str, Any]] = []
    rows: dict[int, list[int]] = {}
    part = recipe.parallel.shard_batch

    def watched(batch: Any) -> Any:
        if recipe.model.training and recipe.state.step < recipe.cfg.step_scheduler.max_steps:
            rows.setdefault(recipe.state.step + 1, []).extend(
                zlib.crc32(row.numpy().tobytes()) for row in batch.input_ids
            )
        return part(batch)

    recipe.parallel.shard_batch = watched
    began = recipe.state.step
    with log_into(records.append):
        result = recipe.run_train_validation_loop()
    everybody = dict(recipe.world.gather([recipe.world.dp_rank, {str(step): rows[step] for step in rows}]))
    return {
        "began": began,
        "losses": {str(record["step"]): record["loss"] for record in records},
        "rows": {
            step: sorted(row for of_rank in everybody.values() for row in of_rank.get(step, []))
            for step in everybody[0]
        },
        "exit_codes": recipe.world.gather(result.exit_code),
        "latest": layout.latest(recipe.run_folder).name,
        "weights": weights_hash(recipe.model),
        "said": recipe.said,
    }


def signal_at(recipe: PretrainRecipe, step: int, *, rank: int, name: str = "SIGTERM") -> None:
    """The update of that step is made while one rank gets a signal."""
    beat = recipe.heartbeat.beat

    def signalled(done: int) -> None:
        if done == step and recipe.world.rank == rank:
            os.kill(os.getpid(), signal.Signals[name])
        beat(done)

    recipe.heartbeat.beat = signalled


def leg(world: World, folder: str, run: str, until: int | None, options: dict[str, Any]) -> dict[str, Any]:
    """Take the run up (or begin it) and go on to ``until``, where the last rank gets a signal."""
    recipe = start(world, folder, run, **options)
    if until is not None:
        signal_at(recipe, until, rank=world.size - 1)
    return go(recipe)


def four_ranks(world: World, folder: str, stop: int, first: int, options: dict[str, Any]) -> dict[str, Any]:
    """The undisturbed run; one that is stopped and taken up by the same mesh; the first leg of the elastic one."""
    found = {
        "undisturbed": leg(world, folder, "undisturbed", None, options),
        "stopped": leg(world, folder, "same", stop, {**options, "checkpoint": {"is_async": True}}),
        "resumed": leg(world, folder, "same", None, {**options, "checkpoint": {"is_async": True}}),
        "first": leg(world, folder, "elastic", first, options),
    }
    return {
        **found,
        "two runs": two_runs(world, folder, options),
        "meshes": {name: on_that_mesh(world, folder, name, sizes) for name, sizes in MESHES.items()},
    }


MESHES = without_contained(
    {
        "dp, tp": {"tp_size": 2},
        "dp, cp": {"cp_size": 2},
        "hsdp, tp": {"tp_size": 2, "dp_replicate_size": 2},
    },
    ["dp, tp", "dp, cp"],  # one saves for the other in test_mesh_features
)


def on_that_mesh(world: World, folder: str, name: str, sizes: dict[str, int]) -> list[Any]:
    """Two updates, saved in the background, with activation checkpointing; weights then, and as they come back."""
    options = {
        "step_scheduler": {"max_steps": 2, "val_every_steps": None},
        "distributed": {**sizes, "activation_checkpointing": True},
        "checkpoint": {"is_async": True},
    }
    run = name.replace(", ", "_")
    done = leg(world, folder, run, None, options)
    again = start(world, folder, run, **options)
    found = [done["exit_codes"], again.state.step, done["weights"] == weights_hash(again.model)]
    again.run_train_validation_loop()  # nothing to do; it lets go of the folder
    return found


def two_runs(world: World, folder: str, options: dict[str, Any]) -> list[str]:
    """What every rank is told when somebody else trains in the folder."""
    claim = layout.run_lock(f"{folder}/elastic")
    if world.is_main:
        claim.__enter__()
    try:
        start(world, folder, "elastic", **options)
        told = "nothing"
    except AutomodelError as error:
        told = error.message
    everybody = world.gather(told)
    if world.is_main:
        claim.__exit__(None, None, None)
    world.barrier()
    return everybody


# ------------------------------------------------------------------------------------------ signals


def signals(world: World, folder: str) -> dict[str, Any]:
    """A signal on one of two ranks in each phase of a run."""
    return {
        "training": signalled(world, folder, "training", lambda r: signal_at(r, 4, rank=1, name="SIGUSR1")),
        "validation": signalled(world, folder, "validation", in_validation),
        "saving": signalled(world, folder, "saving", in_saving),
        "in the background": signalled(world, folder, "background", in_saving, checkpoint={"is_async": True}),
        "last step": signalled(world, folder, "last", lambda r: signal_at(r, 8, rank=1)),
        "last save": signalled(world, folder, "last_save", lambda r: in_saving(r, save=2)),
    }


def signalled(world: World, folder: str, run: str, arm: Hook, **sections: Any) -> dict[str, Any]:
    every = {"max_steps": 8, "ckpt_every_steps": 4, "val_every_steps": 4}
    recipe = start(world, folder, run, step_scheduler=every, **sections)
    arm(recipe)
    found = go(recipe)
    left = [path.name for path in Path(folder, run).glob("*.tmp")]
    return {key: found[key] for key in ("exit_codes", "latest", "said")} | {"left": left}


def in_validation(recipe: PretrainRecipe) -> None:
    part = recipe.parallel.shard_batch

    def watched(batch: Any) -> Any:
        if recipe.state.step == 4 and not recipe.model.training and recipe.world.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return part(batch)

    recipe.parallel.shard_batch = watched


def in_saving(recipe: PretrainRecipe, *, save: int = 1) -> None:
    """The signal arrives while rank 1 writes its shard of the ``save``-th checkpoint."""
    original, calls = StepWriter.open, [0]

    def watched(self: StepWriter, name: str) -> Any:
        calls[0] += name.startswith("model/shard")
        if calls[0] == save and recipe.world.rank == 1 and not recipe.stop.requested:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, name)

    StepWriter.open = watched
    wait = recipe.checkpointer.wait

    def wait_and_restore() -> None:
        wait()
        if recipe.stop.requested or calls[0] > save:
            StepWriter.open = original

    recipe.checkpointer.wait = wait_and_restore
