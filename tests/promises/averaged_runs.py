"""Runs that keep an average of their weights, on several ranks: what each rank of ``run_ranks`` executes."""

from __future__ import annotations

from typing import Any

from tests.promises import elastic_runs

from automodel_cli.distributed.world import World

MIDDLE, STEPS = 5, 8
OPTIONS: dict[str, Any] = {
    "step_scheduler": {"max_steps": STEPS, "ckpt_every_steps": "final", "local_batch_size": 2, "val_on_start": False},
}
MESHES: dict[str, dict[str, Any]] = {
    "fsdp2": {},
    "ddp": {"distributed": {"strategy": "ddp"}},
    "tp": {"distributed": {"tp_size": 2}},
}
AVERAGED = {"ema": {"decay": 0.8}}


def leg(world: World, folder: str, run: str, until: int | None = None, **more: Any) -> dict[str, Any]:
    """Begin a run or take it up, and go on to ``until`` or to its end."""
    recipe = elastic_runs.start(world, folder, run, **{**OPTIONS, **more})
    if until is not None:
        elastic_runs.signal_at(recipe, until, rank=world.size - 1)
    return elastic_runs.go(recipe)


def two_ranks(world: World, folder: str) -> dict[str, Any]:
    """Each mesh with an average; one without; one that is stopped and taken up; and one only stopped, for others."""
    found = {mesh: leg(world, folder, mesh, **AVERAGED, **sections) for mesh, sections in MESHES.items()}
    found["without"] = leg(world, folder, "without")
    for name in ("again", "elsewhere"):
        found[name] = leg(world, folder, name, MIDDLE, **AVERAGED)
    found["again"] = leg(world, folder, "again", **AVERAGED, checkpoint={"is_async": True})
    return found
