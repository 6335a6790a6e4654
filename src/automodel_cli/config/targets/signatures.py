"""What arguments a callable takes: our own read from source without importing it, foreign ones from the object.

Only plain types are checked (numbers, text, lists of them and so on): those are what a file can hold. Anything else,
a tensor or a function say, is left to the callable itself.
"""

from __future__ import annotations

import ast
import collections.abc
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Field, TypeAdapter, ValidationError

import automodel_cli
from automodel_cli.config.explain import describe_type
from automodel_cli.config.other_names import suggestion
from automodel_cli.config.schema.base import not_a_bool
from automodel_cli.config.targets.target import describe_value

_Number = (Annotated[int, not_a_bool], Annotated[float, not_a_bool, Field(allow_inf_nan=False)])
_PLAIN: dict[str, Any] = {
    "int": _Number[0],
    "float": _Number[1],
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
_LISTS = {"list", "tuple", "Sequence", "Iterable", "Collection"}


@dataclass(frozen=True)
class Parameter:
    """One argument: its plain type (Any where it is not plain), whether it has to be given, and its default's text."""

    name: str
    annotation: Any = Any
    required: bool = False
    default: str = ""


@dataclass(frozen=True)
class CallSignature:
    """The arguments of a callable that can be given by name; ``open`` where it takes others as well."""

    parameters: Mapping[str, Parameter]
    open: bool = False


@dataclass(frozen=True)
class ArgumentProblem:
    """What is wrong with one argument."""

    name: str
    text: str


def check_arguments(
    signature: CallSignature,
    arguments: Mapping[str, Any],
    *,
    callee: str,
    supplied: tuple[str, ...] = (),
    opaque: Callable[[Any], bool],
) -> tuple[dict[str, Any], list[ArgumentProblem]]:
    """Arguments with their values converted to the declared plain types, and all that is wrong with them.

    Args:
        supplied: names that the run gives itself; in a file they are an error, and they are not missing.
        opaque: true for values that are not known yet (nested targets), which pass unchecked.
    """
    converted: dict[str, Any] = {}
    problems: list[ArgumentProblem] = []
    known = [name for name in signature.parameters if name not in supplied]
    for name, value in arguments.items():
        if name in supplied:
            problems.append(ArgumentProblem(name, "is supplied by the run; leave it out"))
        elif name not in signature.parameters:
            converted[name] = value
            if not signature.open:
                text = f"{callee} takes no such argument{suggestion(name, known)}"
                problems.append(ArgumentProblem(name, text))
        else:
            converted[name], text = _convert(signature.parameters[name], value, opaque)
            problems += [ArgumentProblem(name, text)] if text else []
    for name, parameter in signature.parameters.items():
        if parameter.required and name not in arguments and name not in supplied:
            problems.append(ArgumentProblem(name, f"is missing: {callee} needs it"))
    return converted, problems


def _convert(parameter: Parameter, value: Any, opaque: Callable[[Any], bool]) -> tuple[Any, str]:
    if parameter.annotation is Any or opaque(value):
        return value, ""
    try:
        return TypeAdapter(parameter.annotation).validate_python(value), ""
    except ValidationError:
        return value, f"expected {describe_type(parameter.annotation)}, found {describe_value(value)}"


# --------------------------------------------------------------------------------------- from source


def from_source(path: Path, qualified_name: str) -> CallSignature | None:
    """Read a function's or class's arguments from a source file; None where it is not defined there plainly."""
    module = _parsed(path, path.stat().st_mtime_ns)
    node: Any = module
    for part in qualified_name.split("."):
        node = next((item for item in node.body if getattr(item, "name", None) == part), None)
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            return None
    if isinstance(node, ast.ClassDef):
        return _class_signature(node, module)
    is_method = "." in qualified_name
    return _function_signature(node, module, skip_first=is_method)


@functools.lru_cache(maxsize=32)
def _parsed(path: Path, modified_ns: int) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _class_signature(node: ast.ClassDef, module: ast.Module) -> CallSignature | None:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return _function_signature(item, module, skip_first=True)
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
        return CallSignature(
            {
                ast.unparse(item.target): Parameter(
                    ast.unparse(item.target),
                    _from_ast(item.annotation, module),
                    item.value is None,
                    _text(item.value),
                )
                for item in fields
            }
        )
    for base in node.bases:
        parent = next(
            (b for b in module.body if isinstance(b, ast.ClassDef) and b.name == ast.unparse(base)), None
        )
        if parent is not None:
            return _class_signature(parent, module)
    return None if node.bases else CallSignature({})


def _function_signature(
    node: ast.FunctionDef | ast.AsyncFunctionDef, module: ast.Module, *, skip_first: bool
) -> CallSignature:
    arguments = node.args
    positional = arguments.args
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    defaults += arguments.defaults
    pairs = list(zip(positional, defaults, strict=True))[1 if skip_first else 0 :]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    parameters = {
        argument.arg: Parameter(
            argument.arg, _annotation(argument, default, module), default is None, _text(default)
        )
        for argument, default in pairs
    }
    return CallSignature(parameters, open=arguments.kwarg is not None)


def _text(default: ast.expr | None) -> str:
    text = "" if default is None else ast.unparse(default)
    return {"None": "null", "True": "true", "False": "false"}.get(text, text.strip("'"))


def source_of(target: str) -> Path:
    """The file that one of our own targets is defined in."""
    module = target.rpartition(".")[0]
    return Path(automodel_cli.__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")


def documented(path: Path, name: str) -> dict[str, str]:
    """What a docstring's ``Args:`` say of each argument of a function or class."""
    node = next(
        (item for item in _parsed(path, path.stat().st_mtime_ns).body if getattr(item, "name", "") == name),
        None,
    )
    text = (ast.get_docstring(node) or "") if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else ""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    entries = re.findall(
        r"^    (\w[\w, ]*): (.*?)(?=^    \w|\Z)", section[1] if section else "", re.MULTILINE | re.DOTALL
    )
    return {name: " ".join(about.split()) for names, about in entries for name in names.split(", ")}


def _annotation(argument: ast.arg, default: ast.expr | None, module: ast.Module) -> Any:
    if argument.annotation is None:
        return Any
    annotation = _from_ast(argument.annotation, module)
    default_is_none = isinstance(default, ast.Constant) and default.value is None
    return _union([annotation, None]) if default_is_none else annotation


def _from_ast(node: ast.expr, module: ast.Module, depth: int = 0) -> Any:
    """The plain type that an annotation's source says; Any for whatever is not plain."""
    if depth > 8:
        return Any
    if isinstance(node, ast.Constant):
        if node.value is None:
            return None
        if isinstance(node.value, str):  # a quoted annotation
            return _from_ast(ast.parse(node.value, mode="eval").body, module, depth + 1)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _union([_from_ast(side, module, depth + 1) for side in (node.left, node.right)])
    if isinstance(node, ast.Subscript):
        return _subscript(node, module, depth)
    name = ast.unparse(node).rpartition(".")[2]
    if name in _NEVER_IN_A_FILE:
        return _Never
    if name in _PLAIN:
        return _PLAIN[name]
    meaning = _alias_in(module, name)
    return _from_ast(meaning, module, depth + 1) if meaning is not None else Any


def _subscript(node: ast.Subscript, module: ast.Module, depth: int) -> Any:
    name = ast.unparse(node.value).rpartition(".")[2]
    items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if name == "Literal":
        values = [item.value for item in items if isinstance(item, ast.Constant)]
        return Literal[tuple(values)] if len(values) == len(items) else Any
    if name == "Optional":
        return _union([_from_ast(items[0], module, depth + 1), None])
    if name == "Union":
        return _union([_from_ast(item, module, depth + 1) for item in items])
    if name in _LISTS:
        inner = [_from_ast(item, module, depth + 1) for item in items if not _is_ellipsis(item)]
        return _sequence_of(inner, is_tuple=name == "tuple", is_open=len(inner) < len(items))
    return _PLAIN.get(name, Any)


def _is_ellipsis(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is Ellipsis


def _alias_in(module: ast.Module, name: str) -> ast.expr | None:
    """The right-hand side of a module-level ``Name = Literal[...]``."""
    for item in module.body:
        if isinstance(item, ast.Assign) and any(ast.unparse(target) == name for target in item.targets):
            return item.value
    return None


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
            _object_annotation(hints.get(parameter.name, parameter.annotation), parameter.default),
            parameter.default is inspect.Parameter.empty,
        )
        for parameter in signature.parameters.values()
        if parameter.kind in named
    }
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
    return CallSignature(parameters, open=takes_any)


def _hints(function: Any) -> dict[str, Any]:
    target = vars(function).get("__init__", function) if isinstance(function, type) else function
    try:
        return typing.get_type_hints(target)
    except Exception:  # hints of foreign code may name what does not exist
        return {}


def _object_annotation(hint: Any, default: Any) -> Any:
    """The plain type of one argument; where none is written, a default that is true or false says it."""
    if hint is inspect.Parameter.empty:
        return bool if isinstance(default, bool) else Any
    annotation = _from_text(hint) if isinstance(hint, str) else _from_type(hint)
    return _union([annotation, None]) if default is None else annotation


def _from_text(hint: str) -> Any:
    """An annotation that Python could not resolve (another one beside it names what does not exist), from its text."""
    try:
        return _from_ast(ast.parse(hint, mode="eval").body, ast.Module([], []))
    except SyntaxError:
        return Any


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
