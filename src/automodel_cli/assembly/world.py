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


def backend_note(cfg: PretrainConfig, device_type: str) -> str | None:
    """A line where the configuration asks for NCCL and there is no GPU to use it with."""
    if cfg.dist_backend == "nccl" and device_type != "cuda":
        return "dist_env.backend nccl needs GPUs; there are none here, so gloo stands in for it"
    return None
