"""Docstrings of fields, read from the source when they are asked for.

pydantic can collect them while classes are made (``use_attribute_docstrings``), which costs every command 75 ms; they
are needed by the documentation and by one kind of error.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automodel_cli.config.amounts import format_amount

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from automodel_cli.config.schema.base import Section


def help_of(section: type[Section], field: str) -> str:
    """What the docstring under a field says, on one line; empty where it has none."""
    for owner in section.__mro__:
        if field in vars(owner).get("__annotations__", {}):
            return _docstrings(inspect.getfile(owner)).get((owner.__qualname__, field), "")
    return ""


_NULL_MEANS = re.compile(r"[,;.]? *(?:null|empty): (.+?)(?=;|\. [A-Z(]|\.?$)")


def meaning_and_default(section: type[Section], name: str) -> tuple[str, str]:
    """What a field's docstring says, and its default as a user reads it.

    Of a default that is null or an empty list the docstring says what it stands for (``...; null: all.``): that is the
    default, and no part of the meaning. It is empty where the field has to be given, and for what is simply off.
    """
    text, default = help_of(section, name), _default_text(section.model_fields[name])
    if default == "null" and (found := _NULL_MEANS.search(text)):
        rest = text[: found.start()] + text[found.end() :]
        return rest if rest.endswith(".") else f"{rest}.", found[1]
    return text, "" if default in ("null", "false") else default


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    value: Any = field.get_default(call_default_factory=True)
    if value is None or value in ((), [], ""):
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value >= 10**6:
        return f"{value >> 20}MiB" if value % (1 << 20) == 0 else format_amount(value)
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


@functools.cache
def _docstrings(path: str) -> dict[tuple[str, str], str]:
    """``(class, field) -> docstring`` of a source file."""
    found = {}
    for node in ast.walk(ast.parse(Path(path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            for field, after in zip(node.body, node.body[1:], strict=False):
                if not isinstance(field, ast.AnnAssign) or not isinstance(after, ast.Expr):
                    continue
                if isinstance(after.value, ast.Constant):
                    found[node.name, ast.unparse(field.target)] = " ".join(str(after.value.value).split())
    return found
