"""The one door for JSON that lies on a disk: a file says what it likes, and nothing here believes it.

A file may be missing, a pipe, huge, cut off, not UTF-8, nested a million deep, or hold a text where a number
belongs; whoever reads it describes what it must hold as a pydantic model, and gets that or an error that names
the file, the place in it, what was found and what was expected. Rules for models of files:

- derive from :class:`FileModel` (frozen, no coercion of texts to numbers, unknown keys kept out or refused), or
  write a dataclass of the types below, which are strict of themselves;
- counts and sizes are :data:`Count`, numbers :data:`FiniteFloat`, hashes :data:`Xxh3`, names of files
  :data:`PlainName`: relative, below the folder of the file that names them; arrays are :data:`Items`;
- a size is believed only after it agrees with the bytes that are there.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, from_json

from automodel_cli.errors import AutomodelError, DataError
from automodel_cli.plain_text import without_controls

__all__ = [
    "MAX_JSON_BYTES", "MAX_NESTING", "Count", "FileModel", "FiniteFloat", "Items", "PlainName", "Xxh3",
    "open_to_read", "parse_json", "read_bytes", "read_json", "read_model", "read_yaml", "validated",
    "without_controls",
]  # fmt: skip

MAX_NESTING = 200
"""Deepest nesting of JSON (the parser's own limit) and of YAML that is read."""
MAX_JSON_BYTES = 256 << 20
"""Largest JSON file that is read whole; the largest tokenizers in use have 35 MB."""
_MAX_YAML_BYTES = 8 << 20
_SHOWN_CHARACTERS = 60
_RESTORE = "restore the file from a copy or make it anew"

_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}
Model = TypeVar("Model")  # a BaseModel, or a dataclass whose numbers are strict of themselves


class FileModel(BaseModel):
    """Base of the models of files: immutable, strict types, keys that it does not know are ignored.

    Formats of our own that carry a hash of themselves set ``extra="forbid"``.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


def _plain_name(name: str) -> str:
    """``name`` when it is relative, stays below its folder and holds no control character."""
    parts = name.split("/")
    if not name or name.startswith("/") or "\\" in name or any(part in ("", ".", "..") for part in parts):
        raise ValueError("expected a plain name below this folder, with forward slashes")
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        raise ValueError("expected a name without control characters")
    return name


Count = Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]
PlainName = Annotated[str, Field(strict=True, max_length=1024), AfterValidator(_plain_name)]
Item = TypeVar("Item")
Items = Annotated[tuple[Item, ...], Field(strict=False)]
"""An array of JSON as a tuple (strict models take no list for a tuple otherwise)."""
Xxh3 = Annotated[str, Field(pattern=r"^xxh3:[0-9a-f]{16}$")]


def read_bytes(
    path: Path | str,
    error: type[AutomodelError] = DataError,
    *,
    max_bytes: int = MAX_JSON_BYTES,
    hint: str = "",
) -> bytes:
    """The content of a regular file of at most ``max_bytes``; a pipe or device is refused, never waited for.

    Raises:
        error: missing, no regular file, not readable, or larger than ``max_bytes``.
    """
    shown, hint = without_controls(str(path)), hint or _RESTORE
    try:
        with open_to_read(path) as handle:
            size = os.fstat(handle.fileno()).st_size
            if size > max_bytes:
                raise error(f"{shown} has {size:,} bytes, expected at most {max_bytes:,}", hint)
            return handle.read(size)  # not of the limit: so much would be allocated
    except FileNotFoundError:
        raise error(f"{shown} does not exist", hint) from None
    except IsADirectoryError:
        raise error(f"{shown} is a folder, expected a regular file", hint) from None
    except (OSError, ValueError) as problem:  # ValueError: a null byte in the name
        reason = getattr(problem, "strerror", None) or str(problem)
        raise error(f"{shown} cannot be read: {reason}", hint) from None


def open_to_read(path: Path | str, *, buffering: int = -1) -> BinaryIO:
    """A regular file, for bytes. Never waits for the other end of a pipe.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    return open(path, "rb", buffering, opener=_open_regular)


def _open_regular(name: str, flags: int) -> int:
    descriptor = os.open(name, flags | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a folder is refused by open
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is a pipe or device, expected a regular file")
    return descriptor


def parse_json(
    data: bytes | str,
    where: Path | str,
    error: type[AutomodelError] = DataError,
    *,
    hint: str = "",
    allow_nan: bool = False,
) -> Any:
    """The value that ``data`` (UTF-8) spells; ``where`` names it in the error.

    Raises:
        error: not JSON, not UTF-8, nested beyond :data:`MAX_NESTING`, a number of thousands of digits, or NaN
            or infinity (unless ``allow_nan``).
    """
    try:
        return from_json(data, allow_inf_nan=allow_nan, cache_strings="keys")
    except ValueError as problem:
        reason = without_controls(str(problem))
        if "recursion limit" in reason:
            reason = f"nested deeper than {MAX_NESTING} levels"
        raise error(f"{where} is not valid JSON: {reason}", hint or _RESTORE) from None


def read_json(
    path: Path | str,
    error: type[AutomodelError] = DataError,
    *,
    hint: str = "",
    max_bytes: int = MAX_JSON_BYTES,
    allow_nan: bool = False,
) -> Any:
    """Read and parse ``path`` without saying what it must hold: for files that others define.

    Raises:
        error: as :func:`read_bytes` and :func:`parse_json`.
    """
    data = read_bytes(path, error, hint=hint, max_bytes=max_bytes)
    return parse_json(data, path, error, hint=hint, allow_nan=allow_nan)


def read_yaml(path: Path | str, error: type[AutomodelError] = DataError, *, hint: str = "") -> Any:
    """Read and parse a YAML file that is no configuration: plain values, no aliases (they unfold without bound).

    Raises:
        error: as :func:`read_bytes`; not YAML, not UTF-8, nested beyond :data:`MAX_NESTING`, or with an alias.
    """
    data = read_bytes(path, error, hint=hint, max_bytes=_MAX_YAML_BYTES)
    try:
        text = data.decode("utf-8")
        _check_events(text)
        return yaml.safe_load(text)
    except (ValueError, OverflowError, yaml.YAMLError) as problem:  # ValueError: a date that is none, UTF-8
        reason = " ".join(without_controls(str(problem)).split())
        raise error(f"{without_controls(str(path))} is not valid YAML: {reason[:200]}", hint or _RESTORE) from None


def _check_events(text: str) -> None:
    """Refuse, before anything is built, nesting that would exhaust the stack and aliases.

    Raises:
        ValueError: what is refused.
        yaml.YAMLError: no YAML.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"the alias *{event.anchor}, expected plain values")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_NESTING:
            raise ValueError(f"nested deeper than {MAX_NESTING} levels")


def read_model(
    path: Path | str, model: type[Model], error: type[AutomodelError] = DataError, *, hint: str = ""
) -> Model:
    """The JSON file ``path`` as a ``model``.

    Raises:
        error: as :func:`read_json`, or the content is not what the model describes.
    """
    return validated(read_json(path, error, hint=hint), model, path, error, hint=hint)


def validated(
    value: Any,
    model: type[Model],
    where: Path | str,
    error: type[AutomodelError] = DataError,
    *,
    hint: str = "",
) -> Model:
    """``value`` (parsed JSON or YAML) as a ``model``; ``where`` names it in the error.

    Raises:
        error: the first place where ``value`` is not what the model describes, and how many there are.
    """
    try:
        found: Model = _adapter(model).validate_python(value)
        return found
    except ValidationError as problem:
        problems = problem.errors(include_url=False)
        more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        raise error(f"{without_controls(str(where))}: {_sentence(problems[0])}{more}", hint or _RESTORE) from None


def _adapter(model: Any) -> TypeAdapter[Any]:
    """Made once: files of many small records are validated line by line."""
    if model not in _ADAPTERS:
        _ADAPTERS[model] = TypeAdapter(model)
    return _ADAPTERS[model]


def _sentence(problem: ErrorDetails) -> str:
    """One pydantic problem in our grammar: the place, what was expected, what was found."""
    place = without_controls("".join(_step(step) for step in problem["loc"]).removeprefix("."))
    expected = without_controls(problem["msg"]).removeprefix("Value error, ")
    expected = expected[:1].lower() + expected[1:]
    if problem["type"] == "missing":
        return f"{place!r} is missing"
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{place!r} is not a key of this format"
    return f"{place or 'the whole file'}: {expected}, found {_shown(problem['input'])}"


def _step(step: int | str) -> str:
    return f"[{step}]" if isinstance(step, int) else f".{step}"


def _shown(value: Any) -> str:
    """A short spelling of any value: containers by kind and size, texts and numbers cut."""
    if isinstance(value, dict | list | tuple):
        return f"{'a mapping' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and abs(value) >= 10**18:
        return "a number of many digits"
    text = without_controls(repr(value))
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
