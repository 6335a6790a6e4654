"""Who does the work of a preprocessing command, from its options and the environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from automodel_cli.config.schema.runners import RunnerOptions
from automodel_cli.corpus.build.run import Elsewhere, ProgressCallback, Say
from automodel_cli.corpus.jobs import ray_runner
from automodel_cli.corpus.jobs.array_element import STAGE_VARIABLE, ElementRunner, element_of
from automodel_cli.corpus.jobs.job import Job
from automodel_cli.corpus.jobs.local import LocalRunner
from automodel_cli.launch.array_jobs import ArrayOptions, SlurmRunner
from automodel_cli.launch.batch_file import plain_name
from automodel_cli.launch.jobs import own_command


def elsewhere(
    cfg: RunnerOptions,
    open_job: Callable[[], Job],
    *,
    num_workers: int | None,
    batch_folder: Path,
    arguments: Sequence[str],
    progress: ProgressCallback,
    say: Say,
) -> Elsewhere | None:
    """The runner that ``cfg`` names; None where this process does the work itself.

    Args:
        open_job: opens the job in another process; can be pickled.
        num_workers: processes of each machine, as they were asked for.
        batch_folder: for batch files.
        arguments: the command line, without the program: what the jobs of Slurm run.

    Raises:
        ConfigError: what the runner needs is not installed; or the environment says that this is an element of an
            array, and it is none.
    """
    if cfg.runner == "local":
        return None
    if cfg.runner == "ray":
        ray_runner.check_installed()
        return Elsewhere(ray_runner.RayRunner(cfg.ray_address, num_workers, progress, say), open_job)
    processes = num_workers or 1
    if (element := element_of(os.environ)) is not None:
        return Elsewhere(ElementRunner(element, processes, progress, say), open_job, "share")
    if STAGE_VARIABLE in os.environ:
        return Elsewhere(LocalRunner(processes, progress, say), open_job, "rest")
    options = ArrayOptions(
        name=cfg.job_name or plain_name(batch_folder.parent.resolve().name),
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
    return Elsewhere(SlurmRunner(options, batch_folder, own_command(arguments), say), open_job)
