"""Options of commands that have no file of their own settings: what stands beside a run's configuration, and tools."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from automodel_cli.config.schema.base import Count, JsonOutput, Positive, Section, TypeName, Whole

Time = Annotated[
    str,
    Field(pattern=r"^(\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2})$"),
    TypeName("minutes, HH:MM:SS or D-HH:MM:SS"),
]


class RunOptions(Section):
    """What every command takes that reads a run's configuration."""

    panels: ClassVar = {"Options": "config"}

    config: str | None = None
    """YAML file of the run; null: overrides alone."""
    trust: tuple[str, ...] = ()
    """Allow code of your own (my_module, path/file.py) or of a hub repository; empty: none."""


class PretrainOptions(RunOptions):
    """Options of `automodel pretrain llm` that are no keys of its configuration."""

    fresh: bool = False
    """Move an earlier run in the run folder aside and start over."""
    log_format: Literal["compact", "classic"] | None = None
    """Lines of updates; classic: NeMo AutoModel's, for programs; null: as `logging.format` says."""
    profile: Count | None = None
    """Profile this many updates after the first four: where their time goes, and a trace; null: none."""
    dry_run: bool = False
    """Show the plan (sizes, steps, memory, data) and stop."""
    print_config: bool = False
    """Print the effective configuration as YAML and stop."""


class SlurmOptions(Section):
    """What a batch file for Slurm says beside the command that it runs."""

    panels: ClassVar = {"Job": "time partition account job_name gpus_per_node lead logs sbatch setup"}

    time: Time = "24:00:00"
    """Time limit, as sbatch writes it: minutes, HH:MM:SS or D-HH:MM:SS."""
    partition: str | None = None
    """Partition; null: Slurm's own."""
    account: str | None = None
    """Account; null: Slurm's own."""
    job_name: str | None = None
    """Name of the job; null: the run folder's."""
    gpus_per_node: Whole | None = None
    """GPUs per machine, 0 for none; null: one per process."""
    lead: Annotated[Count, Field(ge=10)] = 300
    """Seconds that a run is told ahead of its end, to save."""
    logs: str = "logs"
    """Folder for the job's output."""
    sbatch: tuple[str, ...] = ()
    """A further option of sbatch; empty: none."""
    setup: tuple[str, ...] = ()
    """A line of shell before the launch; empty: none."""
    output: str | None = None
    """File to write; null: shown on stdout."""
    submit: bool = False
    """Hand the file to sbatch."""


class DoctorOptions(JsonOutput):
    """What `automodel doctor` looks at."""

    folder: str = "."
    """Where runs will be written; its disk is looked at."""
    processes: Count | None = None
    """Processes of the all-reduce; null: one for each GPU, two without."""
    timeout: Annotated[Positive, Field(ge=1)] = 60.0
    """Seconds that a check may take."""
    offline: bool = False
    """Do not ask the hub."""


class QuickstartOptions(Section):
    """What `automodel quickstart` works on."""

    config: str | None = None
    """Configuration of the training run; null: the preset."""
    output_dir: str = "runs/quickstart"
    """Folder for everything that is made."""
    source: str | None = None
    """Text to learn from; null: the standard library's Python sources."""


class InitOptions(Section):
    """What `automodel init` writes."""

    preset: str | None = None
    """Which one; null: they are listed."""
    output: str | None = None
    """File to write; null: PRESET.yaml."""
    data: str | None = None
    """Token file, pattern or corpus folder to train on; null: left to fill in."""
    val_data: str | None = None
    """The same to validate on; null: a corpus brings its own."""


class HelpOptions(Section):
    """What `automodel help` shows."""

    words: tuple[str, ...] = ()
    """A command, or `launch` for the flags that start several processes; empty: all commands."""


class ExplainOptions(Section):
    """What `automodel explain` looks up."""

    key: str
    """A key, whole or its last part; dashes or underscores."""
