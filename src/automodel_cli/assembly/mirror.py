"""``checkpoint.mirror``: the copy of a run at a URL, made while it trains and taken up where its folder is empty."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from automodel_cli.assembly.reporter import Rows
from automodel_cli.assembly.run_folder import WHAT, Say
from automodel_cli.checkpoint import from_mirror, layout
from automodel_cli.checkpoint.all_ranks import on_rank_zero
from automodel_cli.checkpoint.mirror import Mirror
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.distributed.world import World
from automodel_cli.errors import AutomodelError, CheckpointError

_POLL_S = 0.1


def rows(cfg: PretrainConfig) -> Rows:
    """Where checkpoints are copied to."""
    return [] if cfg.checkpoint.mirror is None else [("mirror", f"every checkpoint, to {cfg.checkpoint.mirror}")]


def fetched_by_a_run(cfg: PretrainConfig, *, fresh: bool) -> str | None:
    """The step that a run would bring from the mirror before it begins; None: it has one, or there is none.

    Raises:
        CheckpointError: ``fresh``, and the mirror holds an earlier run.
        AutomodelError: the store does not answer.
    """
    settings, folder = cfg.checkpoint, Path(cfg.checkpoint.checkpoint_dir)
    if settings.mirror is None or settings.restore_from is not None:
        return None
    if not fresh and layout.latest(folder) is not None:
        return None
    name = from_mirror.newest_at(settings.mirror)
    if fresh and name is not None:
        raise CheckpointError(
            f"--fresh begins a new run, and {settings.mirror} holds {name} of an earlier one",
            "name another URL in checkpoint.mirror, or empty that one",
        )
    return name


def bring_back(cfg: PretrainConfig, world: World, *, fresh: bool, say: Say) -> None:
    """Fill an empty run folder, which the caller holds, from the mirror; every rank calls it.

    Raises:
        AutomodelError: as ``fetched_by_a_run`` and ``from_mirror.restore`` have it.
    """
    url, folder = cfg.checkpoint.mirror, Path(cfg.checkpoint.checkpoint_dir)
    if url is None:
        return

    def work() -> None:
        name = fetched_by_a_run(cfg, fresh=fresh)
        if name is not None:
            say(f"{folder} has no checkpoint; bringing {name} from {url}")
            from_mirror.restore(folder, url, say=say)
        elif cfg.checkpoint.restore_from is None:
            _say_if_newer(folder, url, say)

    on_rank_zero(world, work, what=WHAT)


def _say_if_newer(folder: Path, url: str, say: Say) -> None:
    """The run folder may be one that was left behind when the run went on elsewhere."""
    here = layout.latest(folder)
    with contextlib.suppress(AutomodelError):  # the first copy says what is wrong
        there = from_mirror.newest_at(url)
        if here is not None and there is not None and (layout.step_of(there) or 0) > (layout.step_of(here.name) or 0):
            say(
                f"warning: {url} holds {there}, {folder} only {here.name}, from which this run goes on; "
                f"to go on from {there}, stop it and name an empty checkpoint_dir"
            )


def build_mirror(cfg: PretrainConfig, world: World, say: Say) -> Mirror | None:
    """The copies of this run; None where there are none, and on all ranks but the first."""
    settings = cfg.checkpoint
    if settings.mirror is None or not world.is_main:
        return None
    folder = Path(settings.checkpoint_dir)
    return Mirror(folder, settings.mirror, keep_last=settings.keep_last, keep_every=settings.keep_every, say=say)


def finish_mirror(mirror: Mirror | None, world: World, *, stopped: Callable[[], bool]) -> None:
    """Wait for the copies, all ranks of ``world`` together, for a bounded time, which is short where ``stopped``."""
    waiting = None if mirror is None else mirror.finish(stopped)
    while world.any(waiting is not None and next(waiting)):
        time.sleep(_POLL_S)
