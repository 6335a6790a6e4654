"""The reference of all keys, made from the schema: ``python -m automodel_cli.config.docs > docs/config.md``.

A test compares the file with what this makes, so the two cannot drift apart.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from automodel_cli import doors, transformers_calls
from automodel_cli.config import depth
from automodel_cli.config.explain import describe_type, section_of
from automodel_cli.config.field_help import help_of
from automodel_cli.config.lookup import COMMANDS
from automodel_cli.config.schema.base import Section, keys_of, reason_ignored
from automodel_cli.config.schema.other_sections import UNSUPPORTED_SECTIONS
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.config.targets import aliases
from automodel_cli.config.targets.roles import Role, role_of_section
from automodel_cli.config.targets.signatures import declared
from automodel_cli.config.targets.target import describe_value

COMMAND = "python -m automodel_cli.config.docs > docs/config.md"

_INTRODUCTION = f"""# Configuration

<!-- Made from the schema, do not edit. Regenerate with `make docs`, or:
     {COMMAND} -->

Every command reads a YAML file (`-c FILE`) and the command line. A value is looked for in this order: flags,
overrides, file, default. Everything that is wrong is reported together, with file, line and the nearest valid key; the
exit code is 2. `automodel pretrain llm -c FILE --print-config` prints the effective configuration, which can be
used as a file again; the same text is saved with every run.

## Rules

- **Overrides**: `--section.key VALUE`, `--section.key=VALUE` or `section.key=VALUE`; a bare `--section.key` is true.
  Values are read as in the file: `null`, `true`, `3e-4`, `[0.9, 0.95]`. Lists by index: `--dataset.file_pattern.0 x`.
- **Numbers** follow YAML 1.2: `3e-4` is a number, `1_000` too; `yes` and `on` are text. `none` means `null`.
- **Off** is `null`, "only at the end" is `final`. No -1, 0 or 999999 means something else.
- **Environment**: `${{NAME}}` and `${{NAME,default}}` anywhere in a value. What is printed and saved is the
  placeholder, never the secret. `$$` is a dollar sign.
- **`_target_`** names a callable; the other keys of its section are its arguments, checked against its signature
  before anything is built. Sections below a target may have targets of their own.
- **Trust**: a file may only name what its section allows (the lists below). Your own code, as `my_module.Name` or
  `path/file.py:Name`, needs `--trust my_module` or `--trust path/file.py`; so does `trust_remote_code: true`, with the
  repository's name. Nothing that is not trusted is imported, let alone called.
- **Old names**: targets of NeMo AutoModel (`nemo_automodel...`) mean their counterparts here.
- **Ignored keys** of older files are listed below the table of their section. Their values are checked, and a run says
  once why they have no effect.

## `automodel pretrain llm`

Only `model` and `dataset` are needed.
"""


def render() -> str:
    """The whole page."""
    parts = [_INTRODUCTION, *_pretrain_parts()]
    for command, model in COMMANDS:
        parts += [f"## `{command}`\n", f"{_summary(model)}\n", *_keys(model)]
    return "\n".join(parts).rstrip() + "\n"


def _pretrain_parts() -> Iterator[str]:
    single: list[str] = []
    sections: list[str] = []
    for name, field in PretrainConfig.model_fields.items():
        if name == "named_validation_datasets":
            continue
        if role := role_of_section(name):
            sections += _open_section(name, role, help_of(PretrainConfig, name))
        elif section := section_of(field.annotation):
            sections += _closed_section(name, section)
        else:
            single.append(name)
    yield "### Single keys\n"
    yield from _keys(PretrainConfig, only=single)
    yield from sections
    yield from _refused_sections()
    yield from _old_names()
    yield from _doors()


def _closed_section(name: str, section: type[Section]) -> Iterator[str]:
    yield f"### `{name}`\n"
    yield f"{_summary(section)}\n"
    yield from _keys(section)
    for field_name, field in section.model_fields.items():
        if inner := section_of(field.annotation):
            yield f"`{name}.{field_name}`: {_summary(inner)}\n"
            yield from _keys(inner)


def _open_section(name: str, role: Role, description: str) -> Iterator[str]:
    yield f"### `{name}`\n"
    yield f"{description}\n"
    if name.startswith("validation_"):
        yield f"It takes what `{name.removeprefix('validation_')}` takes.\n"
        return
    yield "Allowed without `--trust`:\n"
    yield "\n".join(f"- {line}" for line in _allowed(role)) + "\n"
    for target, schema in role.ours.items():
        yield from _arguments(target, schema, role)
    if name == "model":
        rows = [(f"`{one.name}`", one.default or "needed", one.meaning) for one in depth.settings()]
        yield "Instead of layers, width and heads, `build_gpt_model` (which `_target_` then means) takes:\n"
        yield _table(rows, heading=("key", "default", "meaning"))


def _allowed(role: Role) -> Iterator[str]:
    for target in role.ours:
        yield f"`{target}`"
    for name in role.functions:
        yield f"`{name}`"
    for rule in role.rules:
        what = f"subclasses of `{rule.base}`" if rule.base else "classes"
        calls = [f"`.{method}`" for method in rule.methods]
        ways = " and ".join([*(["the class itself"] if rule.constructor else []), *calls])
        yield f"{what} defined in `{rule.module.rstrip('.')}`: {ways}"


def _arguments(target: str, schema: str, role: Role) -> Iterator[str]:
    names = [
        f"`{name}`" + (" (needed)" if parameter.required else "")
        for name, parameter in declared(schema).parameters.items()
        if name not in role.injected
    ]
    yield f"Arguments of `{target.rpartition('.')[2]}`: {', '.join(names) or 'none'}.\n"


def _refused_sections() -> Iterator[str]:
    yield "### Sections of other tools\n"
    yield "Refused if they ask for something; dropped if they are null, empty or switched off.\n"
    rows = [(f"`{name}`", advice) for name, advice in UNSUPPORTED_SECTIONS.items()]
    yield _table(rows, heading=("section", "what to do"))


def _old_names() -> Iterator[str]:
    yield "### Names of older files\n"
    yield "`nemo_automodel.<any module>.NAME`, also spelled `nemo_AutoModel`:\n"
    rows = [
        (f"`{name}`", f"`{alias.name}`" + (f" ({alias.note})" if alias.note else ""))
        for name, alias in aliases.BY_TAIL.items()
    ]
    yield _table(rows, heading=("name", "means"))
    sections = [f"`{name}` in `{section}`" for name, section in aliases.SECTION_CLASSES.items()]
    yield f"As `_target_` of a section without targets: {', '.join(sections)}.\n"


def _doors() -> Iterator[str]:
    yield "### Arguments that decide whether code runs\n"
    yield (
        "Wherever one of these appears (in arguments of a `_target_`, below them, in an override, in a checkpoint's "
        "`config.json`), its value must be of exactly this kind: `no`, `off`, `0`, an empty text or list are neither "
        "true nor false. Any value but the one that keeps the door shut needs `--trust` in its source. Where a file "
        "gives none, the value in the last column is passed, whatever the library's default.\n"
    )
    rows = []
    for name, door in doors.DOORS.items():
        given = "true for a folder, else false" if callable(door.shut) else describe_value(door.shut)
        rows.append((f"`{name}`", door.takes, door.shut_text, f"`{given}`" if door.is_passed else ""))
    yield _table(rows, heading=("argument", "takes", "shut", "passed where absent"))
    yield (
        "`from_pretrained` of transformers is given only these arguments: "
        + ", ".join(f"`{name}`" for name in transformers_calls.MODEL_ARGUMENTS)
        + "; every other key must be a field of the model's configuration. Folders whose weights are only pickles "
        "are refused before transformers sees them.\n"
    )


def _keys(model: type[Section], only: Iterable[str] | None = None) -> Iterator[str]:
    """The table of a section's keys, and below it those that are ignored."""
    rows: list[tuple[str, ...]] = []
    ignored: dict[str, list[str]] = {}
    for name in model.in_order():
        field = model.model_fields[name]
        if only is not None and name not in only:
            continue
        if reason := reason_ignored(field):
            ignored.setdefault(reason, []).append(f"`{name}`")
            continue
        keys = " or ".join(f"`{key}`" for key in keys_of(model, name))
        takes = describe_type(field.annotation, field.metadata)
        rows.append((keys, takes, _default(field), help_of(model, name)))
    if rows:
        yield _table(rows)
    if ignored:
        listed = [f"{', '.join(names)} ({reason})" for reason, names in ignored.items()]
        yield f"Ignored keys of older files: {'; '.join(listed)}.\n"


def _default(field: Any) -> str:
    if field.is_required():
        return "needed"
    if field.default_factory is not None:
        return "its defaults"
    value = field.default
    if isinstance(value, (list, tuple)):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`" if isinstance(value, str) and value else f"`{describe_value(value)}`"


def _summary(model: type[Section]) -> str:
    return " ".join((model.__doc__ or "").split())


def _table(rows: Iterable[tuple[str, ...]], heading: tuple[str, ...] = ("key", "takes", "default", "meaning")) -> str:
    lines = [heading, tuple("---" for _ in heading), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(render())
