"""Options of preprocessing commands that say where their work runs: here, on a Ray cluster, as Slurm jobs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from automodel_cli.config.schema.base import Count, Positive, Section, TypeName
from automodel_cli.config.schema.options import Time

RUNNER_PANELS = {
    "Other machines": "runner ray_address slurm_tasks submit time partition account job_name logs sbatch setup",
}
"""Panel of these options in a command's help."""
FORECAST_PANELS = {"Other machines": f"{RUNNER_PANELS['Other machines']} cost_per_hour"}
RayAddress = Annotated[
    str, Field(pattern=r"^(auto|local|[A-Za-z0-9_.\[\]:-]+:\d+)$"), TypeName("auto, local or HOST:PORT")
]
_OPTIONS_OF = {
    "ray": ("ray_address",),
    "slurm": ("slurm_tasks", "submit", "time", "partition", "account", "job_name", "logs", "sbatch", "setup"),
}


class RunnerOptions(Section):
    """Where the work runs. The bytes are the same everywhere."""

    runner: Literal["local", "ray", "slurm"] = "local"
    """Where the work runs: on this machine, on a Ray cluster, or as arrays of Slurm jobs."""
    ray_address: RayAddress = "auto"
    """With `runner: ray`: the cluster that RAY_ADDRESS names or that runs on this machine (`auto`), a Ray of its own on
    this machine (`local`), or the cluster at HOST:PORT."""
    slurm_tasks: Count = 64
    """With `runner: slurm`: elements of each array, at most."""
    submit: bool = False
    """With `runner: slurm`: submit the batch files with sbatch."""
    time: Time = "24:00:00"
    """With `runner: slurm`: time limit of each element in sbatch's format: minutes, HH:MM:SS or D-HH:MM:SS."""
    partition: str | None = None
    """With `runner: slurm`: partition; null: Slurm's default."""
    account: str | None = None
    """With `runner: slurm`: account; null: Slurm's default."""
    job_name: str | None = None
    """With `runner: slurm`: name of the jobs, before that of the stage; null: the output folder's."""
    logs: str = "logs"
    """With `runner: slurm`: folder for the jobs' output."""
    sbatch: tuple[str, ...] = ()
    """With `runner: slurm`: further option of sbatch; empty: none."""
    setup: tuple[str, ...] = ()
    """With `runner: slurm`: shell line to run before the command; empty: none."""

    @model_validator(mode="after")
    def _options_of_the_runner(self) -> Any:
        """A file that spells defaults out, as a dump of a configuration does, asks for nothing."""
        for runner, names in _OPTIONS_OF.items():
            given = [name for name in names if getattr(self, name) != type(self).model_fields[name].default]
            if given and self.runner != runner:
                raise ValueError(f"`{given[0]}` is an option of `runner: {runner}`, not of `{self.runner}`")
        return self


class ForecastOptions(RunnerOptions):
    """Of commands that time a sample before they begin."""

    cost_per_hour: Positive | None = None
    """Price of an hour of one core, in any currency, for the plan of a run; null: no cost."""
