"""Who does the work of a preprocessing command, from its options and the environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from automodel_cli.config.schema.runners import RunnerOptions
from automodel_cli.corpus.build.output import Output
from automodel_cli.corpus.build.run import Build, Elsewhere
from automodel_cli.corpus.jobs import ray_runner
from automodel_cli.corpus.jobs.array_element import STAGE_VARIABLE, ElementRunner, element_of
from automodel_cli.corpus.jobs.job import Job
from automodel_cli.corpus.jobs.local import LocalRunner
from automodel_cli.errors import ConfigError
from automodel_cli.launch.array_jobs import ArrayOptions, SlurmRunner
from automodel_cli.launch.batch_file import plain_name
from automodel_cli.launch.jobs import own_command
from automodel_cli.processes import cores
from automodel_cli.storage.urls import name_of


def elsewhere(
    cfg: RunnerOptions,
    open_job: Callable[..., Job],
    build: Build[Any, Any],
    *,
    num_workers: int | None,
    arguments: Sequence[str],
) -> Elsewhere | None:
    """The runner that ``cfg`` names; None where this process does the work itself.

    Args:
        open_job: a function of a module that opens the job that ``cfg`` describes, in any process.
        build: the same as this process opened it.
        num_workers: processes of each machine, as they were asked for.
        arguments: the command line, without the program: what the jobs of Slurm run.

    Raises:
        ConfigError: what the runner needs is not installed, an option cannot stand in a batch file, the output is a URL
            and no folder for its parts is named, or the environment says that this is an element of an array, and it
            is none.
    """
    if cfg.runner == "local":
        return None
    progress, say, output = build.progress, build.say, build.output
    if output.mirror is not None and output.mirror.in_cache and cfg.ray_address != "local":
        raise ConfigError(
            f"{output.place} with --runner {cfg.runner}: parts are put together in a folder that all machines see",
            "name one with --temp-dir",
        )
    opener = partial(open_job, cfg, progress=_tell_nobody, say=_tell_nobody)
    if cfg.runner == "ray":
        ray_runner.check_installed()
        slots = num_workers or (cores() if cfg.ray_address == "local" else None)
        return Elsewhere(ray_runner.RayRunner(cfg.ray_address, num_workers, progress, say), opener, slots)
    processes = num_workers or 1
    if (element := element_of(os.environ)) is not None:
        return Elsewhere(ElementRunner(element, processes, progress, say), opener, role="share")
    if STAGE_VARIABLE in os.environ:
        return Elsewhere(LocalRunner(processes, progress, say), opener, role="rest")
    options = ArrayOptions(
        name=cfg.job_name or plain_name(_last_name(output)),
        elements=cfg.slurm_tasks,
        cores=processes,
        time=cfg.time,
        logs=cfg.logs,
        partition=cfg.partition,
        account=cfg.account,
        further=cfg.sbatch,
        setup=cfg.setup,
        submit=cfg.submit,
    )
    runner = SlurmRunner(options, output.batch_folder, own_command(arguments), say)
    runner.check(overwrite=build.cfg.overwrite)
    return Elsewhere(runner, opener, cfg.slurm_tasks * processes)


def _last_name(output: Output[Any]) -> str:
    return output.folder.resolve().name if output.mirror is None else name_of(output.mirror.url)


def _tell_nobody(said: object) -> None:
    """The process that was started by hand speaks for all."""
