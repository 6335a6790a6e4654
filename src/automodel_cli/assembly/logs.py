"""Where a run's numbers go: its metrics file, the console, trackers; and its profile."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from automodel_cli.assembly.reporter import Reporter
from automodel_cli.assembly.trackers import open_trackers
from automodel_cli.checkpoint.run_files import CONFIG_NAME, seal_config
from automodel_cli.config.load import to_yaml
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.distributed.world import World
from automodel_cli.files import write_text
from automodel_cli.metrics import lines
from automodel_cli.metrics.log import MetricsLog
from automodel_cli.metrics.log_file import rewind
from automodel_cli.metrics.profile import NoProfile, StepProfiler


def open_logs(
    cfg: PretrainConfig, run_folder: Path, *, step: int, total_steps: int | None, world: World, reporter: Reporter
) -> MetricsLog:
    """The log of a run that goes on from ``step``; what a killed run logged past that is set aside.

    Only the main process writes; the others get a log that goes nowhere.
    """
    is_main = world.is_main
    keeps_files = cfg.checkpoint.enabled and is_main
    if keeps_files:
        write_text(run_folder / CONFIG_NAME, seal_config(to_yaml(cfg)))
        rewind(run_folder, step)
    remote = open_trackers(cfg, run_folder, step=step, say=reporter.say) if is_main else None
    per_gpu = world.size > 1 and world.device.type == "cuda"
    compact = lines.compact(total_steps=total_steps, per_gpu=per_gpu, width=reporter.width)
    return MetricsLog(
        run_folder if keeps_files else None,
        remote=remote,
        console=reporter.say,
        lines=lines.CLASSIC if cfg.logging.format == "classic" else compact,
        remote_every_steps=cfg.step_scheduler.log_remote_every_steps,
    )


def open_profile(
    updates: int | None,
    run_folder: Path | None,
    *,
    world: World,
    reporter: Reporter,
    aside: Callable[[], AbstractContextManager[None]],
) -> NoProfile:
    """The profiler of ``updates`` updates; without a run folder its traces go to ``./profile``."""
    if updates is None:
        return NoProfile()
    return StepProfiler(
        updates,
        folder=(run_folder or Path()) / "profile",
        rank=world.rank,
        device=world.device,
        summarise=world.is_main,
        say=reporter.say,
        columns=reporter.columns,
        aside=aside,
    )
