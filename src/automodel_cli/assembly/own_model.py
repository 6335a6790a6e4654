"""A model whose code is the user's: what its checkpoint says of the builder, and how it is built again from that.

A checkpoint never brings code along. Its ``config.yaml`` names the builder (``path/file.py:builder`` or a module), and
it is called only where the user trusts that very file or module: by the path that the configuration has, seen from
here, or, of a run that was moved, by the hash that the file had in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from automodel_cli.assembly.model import build_model
from automodel_cli.checkpoint.storage.step_files import StepReader
from automodel_cli.config import yaml_tree
from automodel_cli.config.targets.allowlist import Trust, sources_of, split_file_target
from automodel_cli.config.targets.target import Target
from automodel_cli.errors import AutomodelError, CheckpointError
from automodel_cli.files import hash_file
from automodel_cli.json_files import without_controls
from automodel_cli.models.external import needs_code
from automodel_cli.models.interface import CausalLM

_CONFIG = "config.yaml"


def code_facts(model: CausalLM, target: Target) -> dict[str, Any] | None:
    """``facts.code``: the builder of a model that nothing but its own code builds, and the hash of its file."""
    if not needs_code(model):
        return None
    file = split_file_target(target.name)
    return {"target": target.name, "xxh3": hash_file(file[0]) if file and Path(file[0]).is_file() else None}


def build_own(folder: Path, facts: Mapping[str, Any], trust: Sequence[str]) -> tuple[CausalLM, tuple[str, ...]]:
    """The model of the step ``folder`` by its own builder, without its weights, and what is to be said about that.

    Raises:
        CheckpointError: the builder is not trusted, not known, or fails.
    """
    target = _target(folder)
    stored = (facts.get("code") or {}).get("xxh3")
    trusted = _trusted(target, stored, trust)
    if trusted is None:
        raise _untrusted(folder, target, trust)
    try:
        model = build_model(trusted, seed=0, trust=trust)
    except AutomodelError as error:
        raise CheckpointError(f"{folder}: its builder fails: {error.message}", error.hint) from error
    return model, _notes(trusted, stored)


def _target(folder: Path) -> Target:
    """``model`` of the configuration that the step carries."""
    reader = StepReader(folder)
    try:
        root, problems = yaml_tree.parse_document(reader.read_bytes(_CONFIG).decode(), str(folder / _CONFIG))
        if problems:
            raise ValueError(problems[0].text)
        return Target.parse(root.get("model"))
    except ValueError as error:  # UTF-8, too
        raise CheckpointError(
            f"{folder} holds a user-defined model, and its {_CONFIG} names no builder: {error}",
            "evaluate it through the code that trained it",
        ) from error


def _trusted(target: Target, stored: str | None, trust: Sequence[str]) -> Target | None:
    """The target as it may be called; None where nobody trusts it."""
    known, file = Trust(trust), split_file_target(target.name)
    if file is None:
        named = known.allows_name(target.name) or any(map(known.allows_source, sources_of(target)))
        return target if named else None
    if known.allows_file(file[0]) and Path(file[0]).is_file():
        return target
    moved = (Path(entry) for entry in trust if stored is not None and Path(entry).is_file())
    same = next((path for path in moved if hash_file(path) == stored), None)
    return None if same is None else Target(f"{same}:{file[1]}", target.arguments)


def _untrusted(folder: Path, target: Target, trust: Sequence[str]) -> CheckpointError:
    file = split_file_target(target.name)
    wanted = without_controls(file[0] if file else target.name)
    gone = file is not None and not Path(file[0]).is_file()
    found = f", found --trust {without_controls(' '.join(trust))}" if trust else ""
    hint = f"if you trust that code, run it with --trust {wanted}"
    if gone:
        hint = f"there is no {wanted} here: start where the training was started, or --trust an unchanged copy of it"
    return CheckpointError(
        f"{folder} holds a user-defined model, built by {without_controls(target.name)}{found}", hint
    )


def _notes(target: Target, stored: str | None) -> tuple[str, ...]:
    file = split_file_target(target.name)
    if file is None or stored is None or hash_file(file[0]) == stored:
        return ()
    return (f"note: {file[0]} is not as it was when this checkpoint was trained",)
