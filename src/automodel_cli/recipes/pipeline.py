"""Commands one after another, from text to a model that answers; what is finished is not done again.

A step is a command of ``automodel`` in a process of its own. Its command, and the hashes of the YAML files that the
command names, go to ``pipeline.json`` once it has ended well: a step is finished as long as these are the same and
nothing before it was run again. A step that was stopped is started again, and goes on by itself where it was.

``pipeline.json``: {"format": "automodel-pipeline/1", "steps": {NAME: {"command": [...], "files": {PATH: HASH}}}}
"""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from automodel_cli.assembly.reporter import Reporter
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pipeline import PipelineConfig, PipelineOptions
from automodel_cli.errors import ConfigError
from automodel_cli.files import exclusive_lock, hash_file, make_folder, write_json
from automodel_cli.json_files import FileModel, read_model
from automodel_cli.launch.jobs import run_here
from automodel_cli.plain_text import command_line

STATE_NAME = "pipeline.json"
_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")


class _Done(FileModel):
    """A step that has ended well: what it was."""

    command: list[str]
    files: dict[str, str]


class _State(FileModel):
    format: Literal["automodel-pipeline/1"] = "automodel-pipeline/1"
    steps: dict[str, _Done] = Field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One command: its words after ``automodel``, whether there is anything to do, and whether all of it anew."""

    name: str
    words: tuple[str, ...]
    finished: bool = False
    anew: bool = False

    @property
    def command(self) -> str:
        """The line a user would type."""
        return command_line(["automodel", *self.words])


@dataclass(frozen=True)
class Pipeline:
    """The steps of a file, and where they are remembered."""

    folder: Path
    steps: Sequence[Step]
    done: Mapping[str, _Done] = field(default_factory=dict)


def load(options: PipelineOptions) -> Pipeline:
    """The steps as they would be run; nothing is written.

    Raises:
        ConfigError: the file or one of its commands is wrong.
    """
    cfg = load_config(PipelineConfig, options.pipeline)
    if unknown := sorted(options.set.keys() - cfg.values.keys()):
        raise ConfigError(f"--set {unknown[0]}: the pipeline has no such value", _known(cfg.values))
    own = {"out": cfg.output_dir, "python": sysconfig.get_path("stdlib")}
    values = {name: _filled(str(one), own, f"values.{name}") for name, one in (cfg.values | options.set).items()} | own
    if options.from_step is not None and options.from_step not in cfg.steps:
        raise ConfigError(f"--from-step {options.from_step}: there is no such step", _known(cfg.steps))
    folder = Path(cfg.output_dir)
    state = read_model(folder / STATE_NAME, _State) if (folder / STATE_NAME).exists() else _State()
    steps: list[Step] = []
    for name, written in cfg.steps.items():
        words = tuple(_filled(word, values, f"steps.{name}") for word in written)
        if trusting := next((word for word in words if word.startswith("--trust")), None):
            raise ConfigError(
                f"steps.{name}: {trusting} in a file would let it run code", "give --trust to automodel run"
            )
        anew = name == options.from_step or any(step.anew for step in steps)
        same = state.steps.get(name) == _Done(command=list(words), files=_files(words))
        steps.append(Step(name, words, finished=same and all(step.finished for step in steps) and not anew, anew=anew))
    return Pipeline(folder, steps, state.steps)


def run(
    pipeline: Pipeline, launch: Mapping[str, str], reporter: Reporter | None = None, *, trust: Sequence[str] = ()
) -> None:
    """Run what is not finished.

    Args:
        launch: launch flags of the training steps.
        trust: what they may import.

    Raises:
        Interrupted: a signal stopped a step.
        AutomodelError: one failed, or another process runs this pipeline.
    """
    reporter, folder = reporter or Reporter(), pipeline.folder
    make_folder(folder)
    done = dict(pipeline.done)
    with exclusive_lock(folder / ".lock", busy=f"another process runs the pipeline in {folder}"):
        for line, step in zip(headings(pipeline), pipeline.steps, strict=True):
            reporter.say(line)
            if step.finished:
                continue
            done.pop(step.name, None)
            _run_step(step, launch, trust)
            done[step.name] = _Done(command=list(step.words), files=_files(step.words))
            write_json(folder / STATE_NAME, _State(steps=done).model_dump(mode="json"))


def headings(pipeline: Pipeline) -> Iterator[str]:
    """A line for each step: its number, name and command, and whether it is finished."""
    for number, step in enumerate(pipeline.steps, 1):
        state = " (finished)" if step.finished else ""
        yield f"[{number}/{len(pipeline.steps)}] {step.name}{state}\n$ {step.command}"


def _run_step(step: Step, launch: Mapping[str, str], trust: Sequence[str]) -> None:
    more: list[str] = []
    if step.words[0] == "pretrain":
        more += [word for name, value in launch.items() for word in (f"--{name}", value)]
        more += [word for name in trust for word in ("--trust", name)]
        more += ["--fresh"] if step.anew else []  # else a run that is there would be gone on with
    run_here(f"step {step.name}", [*step.words, *more])


def _filled(word: str, values: Mapping[str, Any], where: str) -> str:
    def value(found: re.Match[str]) -> str:
        if found[1] not in values:
            raise ConfigError(f"{where}: {found[0]} has no value", _known(values))
        return str(values[found[1]])

    return _PLACEHOLDER.sub(value, word)


def _known(names: Mapping[str, Any]) -> str:
    return f"there are: {', '.join(names)}" if names else "it has none"


def _files(words: Sequence[str]) -> dict[str, str]:
    """The YAML files that a command names, and their hashes."""
    named = [word.rpartition("=")[2] for word in words if word.endswith((".yaml", ".yml"))]
    return {name: hash_file(Path(name)) for name in named if Path(name).is_file()}
