"""Configuration from a file, overrides and flags, validated; and back to YAML.

Precedence: schema default < file < what is laid over it < overrides < flags. All problems are reported together. This
is phase 1 of the checks and imports nothing heavy: closed sections, names of targets, arguments of our own targets.
Phase 2, which imports foreign targets, is `instantiate.check_foreign`; where phase 1 finds anything, it is added here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from automodel_cli.config import depth, yaml_tree
from automodel_cli.config.explain import explain, field_at, keep_text, takes_as_written
from automodel_cli.config.layers import lay_over, replaced_horizons
from automodel_cli.config.overrides import COMMAND_LINE, Override, apply_override, parse_overrides
from automodel_cli.config.problems import Problem, raise_problems
from automodel_cli.config.schema.base import Section, keys_of, reason_ignored
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.schema.training_sections import HORIZONS
from automodel_cli.config.targets.instantiate import check_target
from automodel_cli.config.targets.roles import role_of_section
from automodel_cli.config.targets.target import (
    REDACTED,
    TARGET_KEY,
    LocatedDict,
    Placeholder,
    Target,
    Written,
    is_secret,
)
from automodel_cli.config.yaml_tree import KeyPath, parse_value, placeholders

_TEXT = "tag:yaml.org,2002:str"
_TWO_NAMES = {"seed": ("rng", "seed"), "rng.seed": ("seed",)}
_QUOTED = re.compile(r"`([a-z_]+)`")

Model = TypeVar("Model", bound=Section)


def load_config(
    model: type[Model],
    path: Path | str | None = None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    *,
    over: Sequence[LocatedDict] = (),
    trust: Sequence[str] = (),
    names: Mapping[str, str] | None = None,
) -> Model:
    """Read, merge and check a configuration.

    Args:
        model: what to read, e.g. ``PretrainConfig``.
        path: YAML file, or None for flags and overrides alone.
        over: laid over the file, one after the other (``layers``).
        overrides: tokens left over on the command line, in order.
        flags: key to value, from options that mirror fields; text is read as a file's would be, None means "not given".
        trust: names and files whose code the user allows (``--trust``).
        names: what the command line calls a key (``--output-dir``), for what is wrong with what was given there.

    Raises:
        ConfigError: everything that is wrong, each with its place, key and what was expected.
    """
    root, problems = (LocatedDict(where=COMMAND_LINE), []) if path is None else yaml_tree.read_file(path)
    for layer in over:
        problems += _trust_in(layer, model)
        lay_over(root, layer)
    problems = [*problems, *_trust_in(root, model), *_merge_overrides(root, overrides)]
    for key, value in (flags or {}).items():
        if value is not None:
            override, found = _flag(model, key, value)
            apply_override(root, override)
            problems += [Problem(COMMAND_LINE, key, problem.text) for problem in found]
    problems += _variables_in_uploads(root)
    derived: dict[str, Any] = {}
    if model is PretrainConfig:
        derived, found = depth.fill_in(root)
        problems += found
    keep_text(model, root)
    try:
        config = model.model_validate(root)
    except ValidationError as error:
        problems += explain(model, error, root)
    problems += _check_targets(root, trust, known=problems)
    raise_problems([_by_its_option(problem, names or {}) for problem in problems])
    config._placeholders.update(placeholders(root))
    config._derived.update(derived)
    return config


def _variables_in_uploads(root: LocatedDict) -> list[Problem]:
    """Where an upload goes is read in the file; made of variables, the name of a repository could tell a secret.

    So could the name or a tag of a run, sent to a server that the file names.
    """
    places = {
        ("checkpoint", "push_to_hub"),
        *([("push_to_hub",), ("revision",), ("license",)] if "push_to_hub" in root else []),
        *([("mlflow",)] if _names_a_server(root) else []),
    }
    found = [path for path in placeholders(root) if path[:1] in places or path[:2] in places]
    text = "takes no environment variables: write the name out"
    return [Problem(yaml_tree.place_of(root, path), ".".join(map(str, path)), text) for path in found]


def _names_a_server(root: LocatedDict) -> bool:
    section = root.get("mlflow")
    return isinstance(section, Mapping) and section.get("tracking_uri") is not None


def _trust_in(root: LocatedDict, model: type[Section]) -> list[Problem]:
    """A file cannot trust code: it may be a stranger's."""
    if "trust" not in root or "trust" not in model.model_fields:
        return []
    return [Problem(root.written["trust"].where, "trust", "would let a file run code; give --trust to the command")]


def _merge_overrides(root: LocatedDict, tokens: Sequence[str]) -> list[Problem]:
    overrides, problems = parse_overrides(tokens)
    for path in _replaced_horizons(overrides):
        _drop(root, path)
    for override in overrides:
        if override.path in _TWO_NAMES:  # the command line wins, by whichever name
            _drop(root, _TWO_NAMES[override.path])
        if problem := apply_override(root, override):
            problems.append(problem)
    return problems


def _replaced_horizons(overrides: Sequence[Override]) -> list[tuple[str, str]]:
    """What ends the run by the file, where the command line says what does."""
    paths = {f"step_scheduler.{name}": name for name in HORIZONS}
    given = {paths[one.path] for one in overrides if one.path in paths and one.value is not None}
    return [("step_scheduler", name) for name in replaced_horizons(given)]


def _drop(root: LocatedDict, parts: Sequence[str]) -> None:
    node: Any = root
    for part in parts[:-1]:
        node = node.get(part) if isinstance(node, LocatedDict) else None
    if isinstance(node, LocatedDict):
        node.remove(parts[-1])


def _flag(model: type[Section], key: str, value: Any) -> tuple[Override, list[Problem]]:
    """What an option sets: text as it stands where a field takes any text, else read as a file's is."""
    field = field_at(model, tuple(key.split(".")))
    if not isinstance(value, str) or field is None or takes_as_written(field, value):
        return Override(key, value, Written(COMMAND_LINE)), []
    value, written, problems = parse_value(value, COMMAND_LINE)
    return Override(key, value, written), problems


def _by_its_option(problem: Problem, names: Mapping[str, str]) -> Problem:
    """A problem of the command line in the words of its help: ``--val-tokens``, not ``val_tokens``."""
    if problem.where != COMMAND_LINE or not names:
        return Problem(problem.where, problem.key, _QUOTED.sub(r"\1", problem.text))
    text = _QUOTED.sub(lambda found: names.get(found[1], found[1]), problem.text)
    name = names.get(problem.key, "")
    if text.startswith("is missing"):
        return Problem("", "", f"{name} {text}")
    return Problem("", name or problem.key, text)


def _check_targets(data: Mapping[str, Any], trust: Sequence[str], *, known: Sequence[Problem]) -> list[Problem]:
    """Phase 1 for open sections, also where closed ones are wrong.

    Where anything is, also phase 2 of what only that knows, at the cost of importing it: all problems at once.
    """
    places: list[tuple[str, str, Target]] = []
    for key, value in data.items():
        role = role_of_section(key)
        if role is None or not isinstance(value, Mapping):
            continue
        with contextlib.suppress(ValueError):  # the schema has reported it
            places.append((key, role.name, Target.parse(value, default_name=role.default_target)))

    named = [check_target(target, name, key=key, trust=trust, imports=False) for key, name, target in places]
    if not known and not any(checked.problems for checked in named):
        return []
    problems: list[Problem] = []
    for (key, name, target), checked in zip(places, named, strict=True):
        more = [] if checked.is_complete else check_target(target, name, key=key, trust=trust).problems
        told = {(problem.where, problem.key) for problem in more}
        problems += [*more, *(one for one in checked.problems if (one.where, one.key) not in told)]
    return problems


# ------------------------------------------------------------------------------------------- back to YAML


def to_dict(config: Section) -> dict[str, Any]:
    """Plain values of the effective configuration, as a file would give them.

    What came from the environment is shown as the placeholder that was written; secrets are blanked; ignored
    keys are left out unless somebody set them.
    """
    return _section_to_dict(config, (), config._placeholders)


def _section_to_dict(section: Section, path: KeyPath, written: Mapping[KeyPath, Placeholder]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        if reason_ignored(field) and name not in section.model_fields_set:
            continue
        keys = keys_of(type(section), name)
        value = getattr(section, name)
        if keys[0].endswith("_*"):
            for suffix, target in value.items():
                shown[keys[0][:-1] + suffix] = _shown(target, (*path, keys[0][:-1] + suffix), written)
        else:
            used = next((key for key in keys if (*path, key) in written), keys[0])
            shown[keys[0]] = _shown(value, (*path, used), written)
    return shown


def _shown(value: Any, path: KeyPath, written: Mapping[KeyPath, Placeholder]) -> Any:
    if path in written:
        return written[path]
    if isinstance(value, Section):
        return _section_to_dict(value, path, written)
    if isinstance(value, Target):
        value = {TARGET_KEY: value.name, **value.arguments}
    if isinstance(value, Mapping):
        return {key: _shown(item, (*path, key), written) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shown(item, (*path, index), written) for index, item in enumerate(value)]
    return REDACTED if value is not None and path and is_secret(path[-1]) else value


def to_yaml(config: Section) -> str:
    """The effective configuration as YAML that `load_config` reads back to an equal one."""
    return yaml.dump(to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would take for something else; short lists go on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal values out twice: anchors would puzzle a reader of the file."""
        return True


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    if isinstance(value, Placeholder):
        return dumper.represent_scalar(_TEXT, str(value), style='"' if value.quoted else None)
    text = value.replace("$", "$$") if _would_expand(value) else value
    needs_quotes = not isinstance(yaml_tree.resolve_scalar(text), str)
    return dumper.represent_scalar(_TEXT, text, style="'" if needs_quotes else None)


def _would_expand(text: str) -> bool:
    try:
        return yaml_tree.expand_environment(text) != text
    except ValueError:
        return True


def _represent_list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.SequenceNode:
    flat = all(not isinstance(item, (Mapping, list, Placeholder)) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flat)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(Placeholder, _represent_text)
_Dumper.add_representer(list, _represent_list)
