"""Commands one after another, from text to a model that answers; what is finished is not done again.

A step is a command of ``automodel`` in a process of its own. Its command, and the hashes of the YAML files that the
command names, go to ``pipeline.json`` once it has ended well: a step is finished as long as these are the same and
nothing before it was run again. A step that was stopped is started again, and goes on by itself where it was. What it
had made of something that has been made again since is not gone on with: then it begins anew.

``pipeline.json``: {"format": "automodel-pipeline/1", "steps": {NAME: {"command": [...], "files": {PATH: HASH}}},
"unfinished": {NAME: "begun" | "anew"}}, written before a step and after it.
"""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from automodel_cli.assembly.reporter import Reporter
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pipeline import PipelineConfig, PipelineOptions
from automodel_cli.errors import ConfigError, Interrupted
from automodel_cli.files import exclusive_lock, hash_file, make_folder, write_json
from automodel_cli.json_files import FileModel, read_model
from automodel_cli.launch.jobs import run_here
from automodel_cli.plain_text import command_line

STATE_NAME = "pipeline.json"
_FROM_THE_USER_ALONE = ("--trust", "--allow-code-execution", "--judge-url")
_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")


class _Done(FileModel):
    """A step that has ended well: what it was."""

    command: list[str]
    files: dict[str, str]


class _State(FileModel):
    format: Literal["automodel-pipeline/1"] = "automodel-pipeline/1"
    steps: dict[str, _Done] = Field(default_factory=dict)
    unfinished: dict[str, Literal["begun", "anew"]] = Field(default_factory=dict)

    def begin(self, name: str, before: Iterable[str], *, anew: bool) -> None:
        """From now on only the steps ``before`` are finished; others that were run are out of date."""
        for other in (self.steps.keys() | self.unfinished.keys()) - set(before):
            self.steps.pop(other, None)
            self.unfinished[other] = "anew"
        self.unfinished[name] = "anew" if anew else "begun"

    def end(self, name: str, done: _Done) -> None:
        """A step has ended well."""
        self.unfinished.pop(name)
        self.steps[name] = done


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
    state: _State = field(default_factory=_State)


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
        if trusting := next((word for word in words if word.startswith(_FROM_THE_USER_ALONE)), None):
            raise ConfigError(
                f"steps.{name}: {trusting} in a file would decide what only you may",
                "give --trust to automodel run; run a step with another of these by hand",
            )
        goes_on = all(step.finished for step in steps)  # what it was made of is still there
        was_run = name in state.steps or name in state.unfinished
        anew = name == options.from_step or state.unfinished.get(name) == "anew" or (was_run and not goes_on)
        same = state.steps.get(name) == _Done(command=list(words), files=_files(words))
        steps.append(Step(name, words, finished=same and goes_on and not anew, anew=anew))
    return Pipeline(folder, steps, state)


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
    reporter, folder, state = reporter or Reporter(), pipeline.folder, pipeline.state

    def write() -> None:
        write_json(folder / STATE_NAME, state.model_dump(mode="json"))

    make_folder(folder)
    with exclusive_lock(folder / ".lock", busy=f"another process runs the pipeline in {folder}"):
        for number, (line, step) in enumerate(zip(headings(pipeline), pipeline.steps, strict=True)):
            reporter.say(line)
            if step.finished:
                continue
            read = _files(step.words)  # now, and not as they are edited meanwhile
            state.begin(step.name, [one.name for one in pipeline.steps[:number]], anew=step.anew)
            write()
            try:
                _run_step(step, launch, trust)
            except Interrupted as error:
                if step.anew and error.saved:
                    state.unfinished[step.name] = "begun"
                    write()
                error.hint += ", without --from-step" if step.anew else ""
                raise
            made = _files(step.words)
            state.end(step.name, _Done(command=list(step.words), files=made | read))
            write()


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
