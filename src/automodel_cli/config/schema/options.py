"""Options of commands without a settings file: those beside a run's configuration, and of tools."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from automodel_cli.config.schema.base import Count, JsonOutput, Positive, Section, TypeName, Whole


def _minutes_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Time = Annotated[
    str,
    BeforeValidator(_minutes_as_text),
    Field(pattern=r"^(\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2})$"),
    TypeName("minutes, HH:MM:SS or D-HH:MM:SS"),
]

Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), TypeName("a number above 0 and up to 1")]


class RunOptions(Section):
    """What every command takes that reads a run's configuration."""

    panels: ClassVar = {"Options": "config"}

    config: str | None = None
    """YAML file of the run; null: only overrides."""
    trust: tuple[str, ...] = ()
    """Allow your own code (my_module, path/file.py) or the code of a Hub repository; empty: none."""


class PretrainOptions(RunOptions):
    """Options of `automodel pretrain llm` that are no keys of its configuration."""

    fresh: bool = False
    """Move an earlier run in the run folder aside and start over."""
    accept_data_change: bool = False
    """Resume with another mixture than the checkpoint's: other weights, a source more or one less."""
    log_format: Literal["compact", "classic"] | None = None
    """Format of the update lines; classic: NeMo AutoModel's, for programs; null: as `logging.format` says."""
    profile: Count | None = None
    """Profile this many updates, after the first four: where their time goes, and a trace; null: none."""
    dry_run: bool = False
    """Show the plan (sizes, steps, memory, data) and exit."""
    print_config: bool = False
    """Print the effective configuration as YAML and exit."""


class BranchOptions(Section):
    """Options of `automodel branch` that are no keys of the run's configuration."""

    panels: ClassVar = {"Branch": "into cooldown cooldown_steps shape config"}

    run: str
    """Run to branch from, RUN or RUN@STEP: a number, `best` or `latest`; without a step its newest checkpoint."""
    into: str
    """Run folder of the branch. If it has begun already, it goes on."""
    cooldown: Annotated[Positive, Field(lt=1), TypeName("a number between 0 and 1")] | None = None
    """Let the learning rate fall from the checkpoint on, for this share of all updates (0.2: a quarter more updates);
    null: the schedule stays."""
    cooldown_steps: Count | None = None
    """The same as a number of updates; null: as `cooldown` says."""
    shape: Literal["linear", "cosine", "exponential", "minus_sqrt"] | None = None
    """Shape of that fall; null: the trunk's `lr_wsd_decay_style`, else exponential."""
    config: str | None = None
    """YAML file laid over the trunk's configuration, key by key; a section with a `_target_` replaces the trunk's;
    null: none."""
    prepare: bool = False
    """Make the run folder and do not train: `automodel pretrain llm -c DIR/config.yaml` starts it."""
    trust: tuple[str, ...] = ()
    """Allow your own code (my_module, path/file.py) or the code of a Hub repository; empty: none."""
    dry_run: bool = False
    """Show the plan (sizes, steps, memory, data) and exit; nothing is made."""

    @model_validator(mode="after")
    def _one_cooldown(self) -> BranchOptions:
        if self.cooldown is not None and self.cooldown_steps is not None:
            raise ValueError("cooldown and cooldown_steps say the same: give one of them")
        if self.shape is not None and not self.cools_down:
            raise ValueError("shape is that of a cooldown: give cooldown or cooldown_steps too")
        return self

    @property
    def cools_down(self) -> bool:
        """Whether the learning rate falls from the checkpoint on."""
        return self.cooldown is not None or self.cooldown_steps is not None


class PlanOptions(RunOptions, JsonOutput):
    """Options of `automodel plan` that are no keys of the run's configuration."""

    panels: ClassVar = {"Options": "config gpu num_gpus mfu price"}

    gpu: str | None = None
    """GPU to estimate the time for: H100, A100, RTX 4090, ...; null: no estimate."""
    num_gpus: Count = 1
    """Number of GPUs."""
    mfu: Share = 0.4
    """Share of the GPU's peak that training reaches; a run shows its own as `mfu`."""
    price: Positive | None = None
    """Price of a GPU hour, in any currency; null: no cost."""


class SlurmOptions(Section):
    """Settings of a Slurm batch file, beside the command that it runs."""

    panels: ClassVar = {"Job": "time partition account job_name gpus_per_node lead logs sbatch setup"}

    time: Time = "24:00:00"
    """Time limit in sbatch's format: minutes, HH:MM:SS or D-HH:MM:SS."""
    partition: str | None = None
    """Partition; null: Slurm's default."""
    account: str | None = None
    """Account; null: Slurm's default."""
    job_name: str | None = None
    """Name of the job; null: the run folder's."""
    gpus_per_node: Whole | None = None
    """GPUs per machine, 0 for none; null: one per process."""
    lead: Annotated[Count, Field(ge=10)] = 300
    """Seconds before the time limit at which the run is told to save."""
    logs: str = "logs"
    """Folder for the job's output."""
    sbatch: tuple[str, ...] = ()
    """Further option of sbatch; empty: none."""
    setup: tuple[str, ...] = ()
    """Shell line to run before the launch; empty: none."""
    output: str | None = None
    """File to write; null: stdout."""
    submit: bool = False
    """Submit the file with sbatch."""


class DoctorOptions(JsonOutput):
    """Settings of `automodel doctor`."""

    folder: str = "."
    """Folder where runs will be written; its disk is checked."""
    processes: Count | None = None
    """Processes in the all-reduce check; null: one per GPU, two without GPUs."""
    timeout: Annotated[Positive, Field(ge=1)] = 60.0
    """Time limit of each check, in seconds."""
    offline: bool = False
    """Do not contact the Hub."""


class QuickstartOptions(Section):
    """Settings of `automodel quickstart`."""

    config: str | None = None
    """Configuration of the training run; null: the preset."""
    output_dir: str = "runs/quickstart"
    """Folder for everything that the tour writes."""
    source: str | None = None
    """Text to train on; null: the Python sources of the standard library."""


class InitOptions(Section):
    """Settings of `automodel init`."""

    preset: str | None = None
    """Preset to write; null: list all of them."""
    output: str | None = None
    """File to write; null: PRESET.yaml."""
    data: str | None = None
    """Token file, pattern or corpus folder to train on; null: left for you to fill in."""
    val_data: str | None = None
    """The same for validation; null: that of the corpus, if it has one."""


class HelpOptions(Section):
    """Settings of `automodel help`."""

    words: tuple[str, ...] = ()
    """A command, or `launch` for the flags that start several processes; empty: all commands."""


class ExplainOptions(Section):
    """Settings of `automodel explain`."""

    key: str
    """Key to look up, in full or by its last part, with dashes or underscores."""
