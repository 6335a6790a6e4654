"""Pretraining as a command and as an object; what happens is in ``pretraining``: build, then loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from automodel_cli.assembly import world as world_assembly
from automodel_cli.assembly.reporter import Reporter
from automodel_cli.checkpoint import layout
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.distributed.start import leave
from automodel_cli.distributed.world import World
from automodel_cli.recipes.pretraining.build import build_run, resumed, show_plan
from automodel_cli.recipes.pretraining.loop import train
from automodel_cli.recipes.pretraining.run import Run, RunOptions, RunPlan, RunResult


def run(
    cfg: PretrainConfig,
    *,
    fresh: bool = False,
    accept_data_change: bool = False,
    dry_run: bool = False,
    trust: Sequence[str] = (),
    profile: int | None = None,
    processes: int | None = None,
    reporter: Reporter | None = None,
) -> int:
    """Train as ``cfg`` says; the exit code is 0, or 75 when a signal stopped the run after a checkpoint.

    ``processes``: of the run that a ``dry_run`` is about; None: those that a launcher has started.
    """
    reporter, options = reporter or Reporter(), RunOptions(fresh, tuple(trust), profile, accept_data_change)
    if dry_run:
        show_plan(cfg, reporter, options, processes=processes)
        return 0
    world = world_assembly.join(cfg)
    result = train(build_run(cfg, world, reporter, options))
    leave(world)
    return result.exit_code


class PretrainRecipe:
    """A pretraining run as an object, for notebooks and scripts: ``setup()``, ``run_train_validation_loop()``.

    After ``setup`` what the run holds (``model``, ``optimizer``, ``state``, ...: ``Run``) is reached through it.

    Args:
        world: the processes it runs in, where they have met already; None: as the environment says.
        fresh, trust, profile: see ``RunOptions``.
    """

    run: Run

    def __init__(
        self,
        cfg: PretrainConfig,
        *,
        fresh: bool = False,
        trust: Sequence[str] = (),
        profile: int | None = None,
        reporter: Reporter | None = None,
        world: World | None = None,
    ) -> None:
        self._cfg, self._world, self._reporter = cfg, world, reporter or Reporter()
        self._options = RunOptions(fresh, tuple(trust), profile)

    def setup(self) -> None:
        """Build everything and take up an earlier checkpoint, if the run folder has one; holds the run folder."""
        world = self._world or world_assembly.join(self._cfg)
        self.run = build_run(self._cfg, world, self._reporter, self._options)

    def plan(self, processes: int | None = None) -> RunPlan:
        """``--dry-run``: show what a run of so many processes would do (None: as a launcher has started)."""
        return show_plan(self._cfg, self._reporter, self._options, processes=processes)

    def run_train_validation_loop(self) -> RunResult:
        """Train to the last step or to a signal."""
        return train(self.run)

    def load_checkpoint(self, restore_from: str = "LATEST") -> None:
        """After ``setup()``, take up another checkpoint: LATEST, BEST, a step's folder name or a path."""
        found = layout.resolve(self.run.run_folder, restore_from, say=self.run.reporter.say)
        self.run = resumed(self.run, found)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "run" not in vars(self):
            raise AttributeError(f"{type(self).__name__} has no {name!r} before setup()")
        return getattr(self.run, name)


TrainFinetuneRecipeForNextTokenPrediction = PretrainRecipe
"""The name the guides use."""
