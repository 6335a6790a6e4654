"""Types of fields as a parser of command lines sees them: switches, words of a list, one value or several."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin


def kind_of(annotation: Any) -> Any:
    """What the parser has to know of a field's type: a switch, several values, a pair, or one text."""
    kinds = [inner for inner in alternatives(annotation) if inner is not type(None)]
    if kinds == [bool]:
        return bool
    origin, inner = get_origin(kinds[0]), get_args(kinds[0])
    if origin is tuple and len(inner) == 2 and inner[1] is not Ellipsis:
        return tuple[str, str]
    return list[str] if origin in (tuple, list) else str


def choices(annotation: Any) -> list[str]:
    """The words that a field takes, where it takes words of a list."""
    return [
        word for inner in alternatives(annotation) if get_origin(inner) is Literal for word in get_args(inner)
    ]


def alternatives(annotation: Any) -> list[Any]:
    """The types of which a value may be one, unions and annotations taken apart."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return alternatives(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [inner for part in get_args(annotation) for inner in alternatives(part)]
    return [annotation]
