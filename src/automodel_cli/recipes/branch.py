"""``automodel branch``: a run goes on from a checkpoint of another one, in a folder of its own, by other settings.

What is changed is checked as a whole before anything is made; then the new folder is there with the checkpoint, the
configuration and the lineage, and training in it is an ordinary resume.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automodel_cli.assembly.branching import (
    Trunk,
    branch_config,
    changes_of,
    cooldown_steps,
    goes_another_way,
    read_trunk,
)
from automodel_cli.assembly.facts import Facts, differences
from automodel_cli.assembly.reporter import Reporter
from automodel_cli.checkpoint import fork, layout, lineage
from automodel_cli.checkpoint.lineage import BranchFile, Fork
from automodel_cli.checkpoint.run_files import CONFIG_NAME
from automodel_cli.config.load import to_yaml
from automodel_cli.config.schema.options import BranchOptions
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.errors import CheckpointError, ConfigError
from automodel_cli.files import hash_bytes, hash_file
from automodel_cli.text import plural
from automodel_cli.train.schedules import Schedule

_WORDS = {"best": "BEST", "latest": "LATEST"}
_MOST_TEXT = 4000
_SHOWN_CHANGES = 3

Look = Callable[[PretrainConfig, Reporter], tuple[Facts, Schedule]]


@dataclass(frozen=True)
class Branch:
    """A branch that is not made yet. ``cfg`` restores the trunk's checkpoint: a plan of it shows what would happen."""

    options: BranchOptions
    overrides: Sequence[str]
    trunk: Trunk
    cfg: PretrainConfig

    @property
    def into(self) -> Path:
        """Its run folder."""
        return Path(self.options.into)


def run(options: BranchOptions, overrides: Sequence[str], look: Look, reporter: Reporter) -> Path | None:
    """Make the run folder of a branch, unless the same command has; its configuration file, None after a dry run.

    Args:
        overrides: of the command line, ``--section.key VALUE``.
        look: plans a run, shows it, and says what it is and its schedule; whatever is wrong with it is an error.

    Raises:
        ConfigError: as :func:`plan`.
        CheckpointError: as :func:`begun`, :func:`plan` and :func:`make`.
    """
    if (file := begun(options, overrides)) is not None:
        return file
    branch = plan(options, overrides)
    facts, schedule = look(branch.cfg, reporter if options.dry_run else Reporter())
    for line in notes(branch, schedule):
        reporter.say(line)
    return None if options.dry_run else make(branch, facts, reporter)


def begun(options: BranchOptions, overrides: Sequence[str]) -> Path | None:
    """The configuration file of a branch that was begun by the same command; None: there is none yet.

    Raises:
        CheckpointError: another branch, or something else, is in the folder.
    """
    into = Path(options.into)
    found = lineage.read(into)
    if found is None:
        fork.refuse_taken(into)
        return None
    folder, which = split(options.run)
    parent = lineage.parent_folder(into, found.parent)
    same_step = which in (None, *layout.POINTERS) or layout.step_of(_name(which)) == found.parent.step
    if folder.resolve() != parent.resolve() or not same_step:
        raise CheckpointError(
            f"{into} is a branch of {parent} at step {found.parent.step:,}", "name another folder: --into"
        )
    if other := [key for key, value in _asked(options, overrides).items() if found.asked.get(key) != value]:
        raise CheckpointError(
            f"{into} was begun with another {other[0]}: {found.change}",
            f"name another folder (--into), or go on with automodel pretrain llm -c {into / CONFIG_NAME}",
        )
    return into / CONFIG_NAME


def plan(options: BranchOptions, overrides: Sequence[str]) -> Branch:
    """The branch as it would be; nothing is written.

    Raises:
        ConfigError: there is nothing to change, or a setting is wrong.
        CheckpointError: there is no such checkpoint, or none to go on from in this way.
    """
    if not options.cools_down and options.config is None and not overrides:
        raise ConfigError(
            "nothing says what the branch does otherwise than the trunk",
            "give --cooldown 0.2, --config more.yaml, or --section.key VALUE",
        )
    trunk = read_trunk(find(options.run), trust=options.trust)
    settings: dict[str, Any] = {"checkpoint.checkpoint_dir": options.into, "checkpoint.restore_from": str(trunk.folder)}
    settings["checkpoint.accept_data_change"] = True  # the table is shown
    return Branch(options, overrides, trunk, branch_config(trunk, options, overrides, settings))


def make(branch: Branch, now: Facts, reporter: Reporter) -> Path:
    """Make the run folder; its configuration file.

    Args:
        now: what the planned run is.

    Raises:
        CheckpointError: the folder cannot be made.
    """
    trunk, into = branch.trunk, branch.into
    settings: dict[str, Any] = {"checkpoint.checkpoint_dir": branch.options.into}
    if differences(trunk.facts.data, now.data):
        settings["checkpoint.accept_data_change"] = True
    cfg = branch_config(trunk, branch.options, branch.overrides, settings)
    record = _record(branch, cfg)
    linked = fork.begin_run(into, trunk.folder, record, to_yaml(cfg))
    how = "shares its files with the trunk" if linked else "is a copy of the trunk's"
    reporter.say(f"branch of {trunk.folder.parent} at step {trunk.step:,}: {record.change}")
    reporter.say(f"made {into}; {trunk.folder.name} in it {how}")
    return into / CONFIG_NAME


def notes(branch: Branch, schedule: Schedule) -> list[str]:
    """A line where the branch is not what a run with its configuration would have been.

    Raises:
        CheckpointError: the trunk's schedule makes no sense.
    """
    if not goes_another_way(branch.trunk, schedule):
        return []
    return [
        f"note: up to step {branch.trunk.step:,} the trunk's learning rate was not that of this schedule: a run with "
        "this configuration from the beginning would be another one"
    ]


def find(run: str) -> Path:
    """The step folder that RUN or RUN@STEP means.

    Raises:
        CheckpointError: there is none.
    """
    folder, which = split(run)
    if not folder.is_dir():
        raise CheckpointError(f"there is no run {folder}", "give RUN or RUN@STEP")
    return layout.resolve(folder, which or "LATEST")


def split(run: str) -> tuple[Path, str | None]:
    """Run folder and step of RUN, RUN@STEP, or a step folder."""
    path, which = Path(run), None
    if not path.exists() and "@" in run:
        name, _, which = run.rpartition("@")
        return Path(name), _WORDS.get(which.lower(), which)
    if layout.step_of(path.name) is not None or path.name in layout.POINTERS:
        return path.parent, path.name
    return path, which


def _name(which: str | None) -> str:
    return layout.step_name(int(which)) if which is not None and which.isdigit() else str(which)


def _asked(options: BranchOptions, overrides: Sequence[str]) -> dict[str, str]:
    """What a command says of the branch, as text."""
    text = "\n".join(overrides)
    return {
        "cooldown": str(options.cooldown),
        "cooldown_steps": str(options.cooldown_steps),
        "shape": str(options.shape),
        "config": str(options.config and _hash_of(Path(options.config))),
        "overrides": text if len(text) <= _MOST_TEXT else hash_bytes(text.encode()),
    }


def _hash_of(file: Path) -> str:
    return hash_file(file) if file.is_file() else "gone"


def _record(branch: Branch, cfg: PretrainConfig) -> BranchFile:
    """What ``branch.json`` says."""
    trunk, into = branch.trunk, branch.into.resolve()
    folder = trunk.folder.parent.resolve()
    above = lineage.read(folder)
    ancestors = [] if above is None else [above.parent, *above.ancestors]
    seen = [one.model_copy(update={"path": _relative(folder / one.path, into)}) for one in ancestors]
    changed = changes_of(trunk, cfg, trust=branch.options.trust)
    return BranchFile(
        parent=Fork(run=folder.name, path=_relative(folder, into), step=trunk.step, checkpoint=trunk.fingerprint),
        ancestors=tuple(seen[: lineage.MOST_ANCESTORS]),
        change=_in_words(branch, cfg, changed),
        changed=tuple(changed[: lineage.MOST_CHANGES]),
        asked=_asked(branch.options, branch.overrides),
    )


def _relative(path: Path, start: Path) -> str:
    return os.path.relpath(path, start)


def _in_words(branch: Branch, cfg: PretrainConfig, changed: Sequence[str]) -> str:
    decay, words = cooldown_steps(branch.trunk.step, branch.options), list[str]()
    if decay is not None and cfg.lr_scheduler is not None:
        words.append(f"cooldown of {plural(decay, 'update')}, {cfg.lr_scheduler.lr_wsd_decay_style}")
        changed = [line for line in changed if not line.startswith(("lr_scheduler", "step_scheduler.max_"))]
    words += changed[:_SHOWN_CHANGES]
    words += [f"{len(changed) - _SHOWN_CHANGES} more"] if len(changed) > _SHOWN_CHANGES else []
    return "; ".join(words) or "as the trunk"
