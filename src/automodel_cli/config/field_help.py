"""The docstrings under fields, read from the source when somebody asks.

pydantic can collect them while classes are made (``use_attribute_docstrings``), which costs every command 75 ms; they
are needed by the documentation and by one kind of error.
"""

from __future__ import annotations

import ast
import functools
import inspect
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from automodel_cli.config.sections import Section


def help_of(section: type[Section], field: str) -> str:
    """What the docstring under a field says, on one line; empty where it has none."""
    for owner in section.__mro__:
        if field in vars(owner).get("__annotations__", {}):
            return _docstrings(inspect.getfile(owner)).get((owner.__qualname__, field), "")
    return ""


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
