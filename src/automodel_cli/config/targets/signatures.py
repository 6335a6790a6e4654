"""What arguments a callable takes.

Those of our own targets are declared in modules without torch. Of other callables they are read from the object, and
before that is imported their names from its source file. Only plain types are checked (numbers, text, lists of them and
so on): those are what a file can hold. Anything else, a tensor or a function say, is left to the callable itself.
"""

from __future__ import annotations

import ast
import builtins
import collections.abc
import functools
import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Field, TypeAdapter, ValidationError

from automodel_cli.config.explain import describe_type
from automodel_cli.config.other_names import suggestion
from automodel_cli.config.schema.base import not_a_bool
from automodel_cli.config.targets.target import describe_value

NUMBER = Annotated[float, not_a_bool, Field(allow_inf_nan=False)]
_PLAIN: dict[str, Any] = {
    "int": Annotated[int, not_a_bool],
    "float": NUMBER,
    "bool": bool,
    "str": str,
    "Path": str,
    "PathLike": str,
    "None": None,
    "list": list[Any],
    "tuple": tuple[Any, ...],
    "dict": dict[str, Any],
    "Mapping": dict[str, Any],
    "Sequence": list[Any],
}
_NEVER_IN_A_FILE = ("Tensor",)  # alternatives that only code can give
_SPELLED = {None: "null", True: "true", False: "false"}


@dataclass(frozen=True)
class Parameter:
    """One argument: its plain type (Any where it is not plain), whether it has to be given, and texts for people."""

    name: str
    annotation: Any = Any
    required: bool = False
    default: str = ""
    meaning: str = ""


@dataclass(frozen=True)
class CallSignature:
    """The arguments of a callable that can be given by name; ``open`` where it takes others as well."""

    parameters: Mapping[str, Parameter]
    open: bool = False


def check_arguments(
    signature: CallSignature,
    arguments: Mapping[str, Any],
    *,
    callee: str,
    supplied: tuple[str, ...] = (),
    opaque: Callable[[Any], bool],
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Arguments with their values converted to the declared plain types, and ``(name, text)`` of all that is wrong.

    Args:
        supplied: names that the run gives itself; in a file they are an error, and they are not missing.
        opaque: true for values that are not known yet (nested targets), which pass unchecked.
    """
    converted: dict[str, Any] = {}
    problems: list[tuple[str, str]] = []
    known = [name for name in signature.parameters if name not in supplied]
    for name, value in arguments.items():
        if name in supplied:
            problems.append((name, "is supplied by the run; leave it out"))
        elif name not in signature.parameters:
            converted[name] = value
            if not signature.open:
                text = f"{callee} takes no such argument{suggestion(name, known)}"
                problems.append((name, text))
        else:
            converted[name], text = _convert(signature.parameters[name], value, opaque)
            problems += [(name, text)] if text else []
    for name, parameter in signature.parameters.items():
        if parameter.required and name not in arguments and name not in supplied:
            problems.append((name, f"is missing: {callee} needs it"))
    return converted, problems


def _convert(parameter: Parameter, value: Any, opaque: Callable[[Any], bool]) -> tuple[Any, str]:
    if parameter.annotation is Any or opaque(value):
        return value, ""
    try:
        return TypeAdapter(parameter.annotation).validate_python(value), ""
    except ValidationError:
        return value, f"expected {describe_type(parameter.annotation)}, found {describe_value(value)}"


# ------------------------------------------------------------------------------------------ of our own


def declaring(schema: str) -> Any:
    """What ``package.module.Name`` declares arguments with; its module imports no torch."""
    module, _, name = schema.rpartition(".")
    return getattr(importlib.import_module(module), name)


@functools.cache
def declared(schema: str) -> CallSignature:
    """The arguments that ``package.module.Name`` declares, with what its docstring's ``Args:`` say of them."""
    if not schema:
        return CallSignature({}, open=True)
    found = declaring(schema)
    signature, texts = from_callable(found), _meanings(inspect.getdoc(found) or "")
    assert signature is not None
    parameters = {
        name: replace(parameter, meaning=texts.get(name, "")) for name, parameter in signature.parameters.items()
    }
    return replace(signature, parameters=parameters)


def _meanings(text: str) -> dict[str, str]:
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    entries = re.findall(
        r"^    (\w[\w, ]*): (.*?)(?=^    \w|\Z)", section[1] if section else "", re.MULTILINE | re.DOTALL
    )
    return {name: " ".join(about.split()) for names, about in entries for name in names.split(", ")}


# ---------------------------------------------------------------------------- names, from a source file


def names_in_source(path: Path, qualified_name: str) -> CallSignature | None:
    """Names of a function's or class's arguments, without types; None where it is not defined there plainly."""
    module: Any = _parsed(path, path.stat().st_mtime_ns)
    found, owner = module, module
    for part in qualified_name.split("."):
        owner, found = found, _defined(found, part)
        if found is None:
            return None
    if isinstance(found, ast.ClassDef):
        return _names_of_class(found, module)
    return _names_of_function(found, is_method=isinstance(owner, ast.ClassDef))


@functools.lru_cache(maxsize=32)
def _parsed(path: Path, modified_ns: int) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _defined(owner: Any, name: str) -> Any:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return next((item for item in owner.body if isinstance(item, kinds) and item.name == name), None)


def _names_of_class(node: ast.ClassDef, module: ast.Module) -> CallSignature | None:
    if (constructor := _defined(node, "__init__")) is not None:
        return _names_of_function(constructor, is_method=True)
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
        return _without_types({ast.unparse(item.target): item.value is None for item in fields})
    bases = (_defined(module, ast.unparse(base)) for base in node.bases)
    if (parent := next(filter(None, bases), None)) is not None:
        return _names_of_class(parent, module)
    return None if node.bases else CallSignature({})


def _names_of_function(node: Any, *, is_method: bool) -> CallSignature:
    arguments: ast.arguments = node.args
    positional = [argument.arg for argument in arguments.args]
    first_default = len(positional) - len(arguments.defaults)
    required = {name: number < first_default for number, name in enumerate(positional)}
    if is_method:
        required.pop(positional[0], None)
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        required[argument.arg] = default is None
    return _without_types(required, is_open=arguments.kwarg is not None)


def _without_types(required: Mapping[str, bool], *, is_open: bool = False) -> CallSignature:
    return CallSignature({name: Parameter(name, required=needed) for name, needed in required.items()}, open=is_open)


# --------------------------------------------------------------------------------------- from objects


def from_callable(function: Callable[..., Any]) -> CallSignature | None:
    """Read a live callable's arguments; None where Python cannot tell them (some built-ins)."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    hints = _hints(function)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = {
        parameter.name: Parameter(
            parameter.name,
            _annotation(hints.get(parameter.name, parameter.annotation), parameter.default),
            parameter.default is inspect.Parameter.empty,
            _spelled(parameter.default),
        )
        for parameter in signature.parameters.values()
        if parameter.kind in named
    }
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
    return CallSignature(parameters, open=takes_any)


def _spelled(default: Any) -> str:
    """A default as a file has it."""
    if default is inspect.Parameter.empty:
        return ""
    return _SPELLED[default] if default is None or isinstance(default, bool) else str(default)


def _hints(function: Any) -> dict[str, Any]:
    """Annotations of code that is imported already, evaluated; Any for those that name what does not exist."""
    target = inspect.unwrap(getattr(function, "__init__") if isinstance(function, type) else function)  # noqa: B009
    names = _AnyElse({**vars(typing), **vars(builtins), **getattr(target, "__globals__", {})})
    return {name: _evaluated(hint, names) for name, hint in getattr(target, "__annotations__", {}).items()}


class _AnyElse(dict[str, Any]):
    """Names, and Any for others."""

    def __missing__(self, name: str) -> Any:
        return Any


def _evaluated(hint: Any, names: _AnyElse) -> Any:
    try:
        while isinstance(hint, str):
            hint = eval(hint, {}, names)
    except Exception:
        return Any
    return hint


def _annotation(hint: Any, default: Any) -> Any:
    """The plain type of one argument; where none is written, a default that is true or false says it."""
    if hint is inspect.Parameter.empty:
        return bool if isinstance(default, bool) else Any
    annotation = _from_type(hint)
    return _union([annotation, None]) if default is None else annotation


def _from_type(hint: Any) -> Any:
    """The plain type that a live annotation means; Any for whatever is not plain."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is None or hint is type(None):
        return None
    if origin in (Union, types.UnionType):
        return _union([_from_type(argument) for argument in arguments])
    if origin is Literal:
        return hint
    if origin in (list, tuple, collections.abc.Sequence, collections.abc.Iterable):
        inner = [_from_type(argument) for argument in arguments if argument is not Ellipsis]
        return _sequence_of(inner, is_tuple=origin is tuple, is_open=Ellipsis in arguments)
    name = getattr(origin or hint, "__name__", "")
    if name in _NEVER_IN_A_FILE:
        return _Never
    return _PLAIN.get(name, Any)


class _Never:
    """Stands for a type that no value of a file can have; unions drop it."""


def _union(members: list[Any]) -> Any:
    kept = [member for member in members if member is not _Never]
    if not kept or any(member is Any for member in kept):
        return Any
    return Union[tuple(kept)]  # noqa: UP007


def _sequence_of(items: list[Any], *, is_tuple: bool, is_open: bool) -> Any:
    if is_tuple and items and not is_open:
        return tuple[tuple(items)]  # type: ignore[misc]
    item = _union(items) if items else Any
    return tuple[item, ...] if is_tuple else list[item]  # type: ignore[valid-type]
