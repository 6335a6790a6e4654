"""Settings of ``automodel run``: a file of commands, and how it is gone through."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from automodel_cli.config.schema.base import Section, TypeName
from automodel_cli.config.schema.sweep import KeyValues


def _commands(value: Any) -> Any:
    """Every step's command as words; a text is split as a shell splits it.

    Raises:
        ValueError: no commands by name, or one that is empty.
    """
    if not isinstance(value, Mapping):
        raise ValueError("expected names of steps and their commands")
    steps = {}
    for name, command in value.items():
        try:
            words = shlex.split(command) if isinstance(command, str) else [str(word) for word in command]
        except (TypeError, ValueError):
            words = []
        if not words:
            raise ValueError(f"step {name!r}: expected a command, found {command!r}")
        steps[str(name)] = tuple(words)
    return steps


Steps = Annotated[dict[str, tuple[str, ...]], BeforeValidator(_commands), TypeName("names and commands")]


class PipelineConfig(Section):
    """File of `automodel run`: commands that are run one after another."""

    output_dir: str
    """Folder of the pipeline, `{out}` in its commands; what is finished is remembered there. `{python}` is the folder
    of Python's library, text that every machine has."""
    values: dict[str, Any] = Field(default_factory=dict)
    """Words that commands use as `{name}`; `--set NAME=VALUE` changes them."""
    steps: Annotated[Steps, Field(min_length=1)]
    """Name and command of each step, in order; a command is written as for a shell, without `automodel`."""


class PipelineOptions(Section):
    """Options of `automodel run`."""

    pipeline: str
    """YAML file of the pipeline."""
    from_step: str | None = None
    """Run this step and all after it again; null: those that are not finished, or whose command has changed."""
    set: KeyValues = Field(default_factory=dict)
    """Values of the pipeline to change."""
    trust: tuple[str, ...] = ()
    """Allow the training steps your own code (my_module, path/file.py); empty: none."""
    dry_run: bool = False
    """Show the steps and exit."""
