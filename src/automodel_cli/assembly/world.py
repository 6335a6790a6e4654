"""How many processes a run is: one, in this version. What the environment and the configuration say of it."""

from __future__ import annotations

from collections.abc import Mapping

from automodel_cli.config.schema import PretrainConfig
from automodel_cli.errors import ConfigError


def world_size(environ: Mapping[str, str]) -> int:
    """Processes that a launcher started together: torchrun's WORLD_SIZE, or srun's task count; 1 without one."""
    if "RANK" in environ and "WORLD_SIZE" in environ:
        return int(environ["WORLD_SIZE"])
    if "SLURM_PROCID" in environ and int(environ.get("SLURM_NTASKS", "1")) > 1:
        return int(environ["SLURM_NTASKS"])
    return 1


def refuse_several_processes(environ: Mapping[str, str]) -> None:
    """Check that no launcher started this process as one of several.

    Raises:
        ConfigError: it did; each of them would train the same model on the same data.
    """
    if (found := world_size(environ)) > 1:
        raise ConfigError(
            f"this is one of {found} processes, and this version trains in one process",
            "start it without a launcher, or give the launcher one process",
        )


def check_sizes(cfg: PretrainConfig, world: int = 1) -> None:
    """Check that the mesh of the ``distributed:`` section has as many places as there are processes.

    Raises:
        ConfigError: it has more.
    """
    section = cfg.distributed
    sizes = {
        "dp_size": section.dp_size or 1,
        "tp_size": section.tp_size,
        "cp_size": section.cp_size,
        "pp_size": section.pp_size,
        "ep_size": section.ep_size,
    }
    large = ", ".join(f"distributed.{name} {size}" for name, size in sizes.items() if size > world)
    if large:
        raise ConfigError(
            f"{large} is more than the {world} process{'es' if world > 1 else ''} of this run",
            "set it to 1, or leave it out",
        )


def notes(cfg: PretrainConfig, device_type: str) -> list[str]:
    """Lines on what the configuration asks for and one process (or a machine without GPUs) does otherwise."""
    found = []
    if cfg.dist_backend == "nccl" and device_type != "cuda":
        found.append("dist_env.backend nccl needs GPUs; there are none here, so gloo stands in for it")
    if cfg.checkpoint.is_async:
        found.append(
            "checkpoint.is_async: one process saves while training waits; the line of a save says how long"
        )
    return found
