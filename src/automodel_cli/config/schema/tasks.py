"""What `automodel eval --tasks` reads, and the subcommands around it."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from automodel_cli.config.schema.base import Count, Precision, Section, Whole
from automodel_cli.config.schema.commands import Device
from automodel_cli.config.schema.evaluation_section import BatchSize, Words


class TasksConfig(Section):
    """What `automodel eval --tasks` and `--harness` read: a checkpoint and the tasks to put to it."""

    panels: ClassVar = {"Tasks": "tasks harness harness_path chat_template bundle max_per_task num_fewshot"}

    checkpoint: str
    """Checkpoint, run folder (its LATEST is taken) or Hugging Face folder."""
    tasks: Words = ()
    """In-context tasks: `core` (22), `gauntlet` (53) or names; empty: none."""
    harness: Words = ()
    """Tasks of lm-evaluation-harness (`pip install 'automodel-cli[eval]'`); empty: none."""
    harness_path: str | None = None
    """Folder with task files of your own for lm-evaluation-harness; null: none."""
    chat_template: bool = False
    """Put the harness' prompts into the tokenizer's chat template."""
    bundle: str = "eval_bundle"
    """Folder with the data of the in-context tasks."""
    max_per_task: Count | None = None
    """Questions of a task at most; null: all."""
    num_fewshot: Whole | None = None
    """Worked examples before each question; null: as published."""
    batch_size: BatchSize = "auto"
    """Sequences computed at once; auto: as many as fit a number of tokens."""
    output: str | None = None
    """Where to write the results; null: `results_STEP_TASKS.json` in the run folder or
    export, none in a folder of others."""
    tokenizer: str | None = None
    """Tokenizer of the prompts; null: the checkpoint's own."""
    device: Device = "auto"
    """Where to compute: auto, cpu, cuda, mps."""
    precision: Precision = "auto"
    """Compute in bf16, fp16 or fp32; auto: as the checkpoint was trained, where the hardware has it."""
    as_json: bool = Field(default=False, validation_alias="json")
    """Print the results as JSON instead of tables."""

    @model_validator(mode="after")
    def _something_to_do(self) -> TasksConfig:
        if not self.tasks and not self.harness:
            raise ValueError("neither `tasks` nor `harness` names anything to evaluate")
        return self


class BundleConfig(Section):
    """What `automodel eval --download-bundle` reads."""

    folder: str = "eval_bundle"
    """Where the data of the in-context tasks goes."""
    url: str | None = None
    """Address of the archive; null: the published one."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    """What the archive's SHA-256 has to be; null: what is noted beside the published address."""
