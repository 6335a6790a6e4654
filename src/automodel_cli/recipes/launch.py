"""Launch of several processes: how many, where they meet, what each executes; then they are watched to the end.

The worker is ``python -m automodel_cli`` with the command line of this process, launch flags taken out, so a flag has
one meaning however many processes there are. The caller has validated the configuration: what is wrong with it is
said once.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from automodel_cli.assembly import world
from automodel_cli.assembly.reporter import Reporter
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.data.sampler import grad_accum_steps
from automodel_cli.device import pick_device
from automodel_cli.errors import ConfigError
from automodel_cli.launch.agent import launch
from automodel_cli.launch.plan import LaunchPlan, plan_launch
from automodel_cli.processes import cores
from automodel_cli.text import plural

THREADS_VARIABLE = "OMP_NUM_THREADS"


def run(
    cfg: PretrainConfig | None,
    flags: Mapping[str, str],
    arguments: Sequence[str],
    *,
    reporter: Reporter | None = None,
) -> int | None:
    """Start ``automodel arguments`` in as many processes as the flags say; the exit code of them all.

    None: the flags come down to one process, so the caller may as well do the work itself.

    Args:
        cfg: of the training run; None for work that any number of processes can share.

    Raises:
        ConfigError: the flags are wrong, ask for GPUs that are not here, or do not fit the mesh of the configuration.
        LaunchFailed: a worker failed; its exit code is the error's.
    """
    say = (reporter or Reporter()).say
    plan = _checked_plan(cfg, flags)
    if plan.processes == 1 and plan.max_nodes == 1:
        return None
    os.environ.setdefault(THREADS_VARIABLE, str(max(1, cores() // plan.processes)))
    folder = _log_folder(plan)
    signals = cfg.step_scheduler.preemption_signal if cfg is not None else ()
    code = launch(plan, worker_command(arguments), log_folder=folder, say=say, signals=signals)
    if plan.log_dir is None:  # all ended as they should: nothing to look up
        shutil.rmtree(folder, ignore_errors=True)
    return code


def processes(cfg: PretrainConfig, flags: Mapping[str, str]) -> int:
    """How many :func:`run` would start in all, after the same checks; for a dry run.

    Raises:
        ConfigError: as :func:`run`.
    """
    plan = _checked_plan(cfg, flags)
    return plan.processes * plan.max_nodes


def _checked_plan(cfg: PretrainConfig | None, flags: Mapping[str, str]) -> LaunchPlan:
    plan = plan_launch(flags, processes=local_processes(flags.get("nproc-per-node", "1")))
    if cfg is not None and pick_device(cfg.device).type == "cuda":
        _refuse_more_than_gpus(plan.processes)
    if cfg is not None and not plan.is_elastic:
        sizes = world.mesh_sizes(cfg, plan.processes * plan.max_nodes)
        batch = cfg.step_scheduler
        local = 1 if batch.local_batch_size == "auto" else batch.local_batch_size
        for size in batch.global_batch_sizes:
            grad_accum_steps(size, local, sizes.dp_replicate * sizes.dp_shard)
    return plan


def _refuse_more_than_gpus(processes: int) -> None:
    import torch

    if processes > (gpus := torch.cuda.device_count()):
        raise ConfigError(
            f"--nproc-per-node {processes}: this machine has {plural(gpus, 'GPU')}, and each process needs one",
            f"start {gpus}, or set device: cpu",
        )


def local_processes(word: str) -> int:
    """Processes for one machine: a number, ``gpu`` (one each), ``cpu`` (one per core), ``auto`` (GPUs, else cores).

    Raises:
        ConfigError: ``gpu`` where there is none.
    """
    if word.isdigit():
        return int(word)
    import torch

    gpus = torch.cuda.device_count()
    if word == "gpu" and not gpus:
        raise ConfigError("--nproc-per-node gpu: there is no GPU here", "see automodel doctor, or give a number")
    return gpus if word == "gpu" or (word == "auto" and gpus) else cores()


def worker_command(arguments: Sequence[str]) -> list[str]:
    """What each worker executes. ``-P`` keeps the current folder off the import path, as the console script does."""
    unsafe = bool(sys.path) and sys.path[0] in ("", str(Path.cwd()))
    return [sys.executable, *([] if unsafe else ["-P"]), "-m", "automodel_cli", *arguments]


def _log_folder(plan: LaunchPlan) -> Path:
    if plan.log_dir is None:
        return Path(tempfile.mkdtemp(prefix="automodel_"))
    folder = plan.log_dir.absolute()
    return folder if plan.node_rank is None else folder / f"node_{plan.node_rank}"
