"""Validation errors in terms of the file: place, key, found, expected, nearest key."""

from __future__ import annotations

import types
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from automodel_cli.config.field_help import help_of
from automodel_cli.config.other_names import counterpart
from automodel_cli.config.problems import Problem, folded, nearest
from automodel_cli.config.schema.base import Section, TypeName, keys_of, reason_ignored
from automodel_cli.config.schema.other_sections import UNSUPPORTED_SECTIONS
from automodel_cli.config.targets.target import Located, LocatedDict, Target, describe_value, is_secret
from automodel_cli.config.yaml_tree import KeyPath, has, place_of

_FAR_CUTOFF = 0.8  # between names of different sections likeness says less
_PLAIN_NAMES = {
    bool: "true or false",
    str: "text",
    int: "a whole number",
    float: "a number",
    type(None): "null",
    Target: "a mapping with _target_",
    Any: "any value",
}


def explain(model: type[Section], error: ValidationError, root: LocatedDict) -> list[Problem]:
    """One problem for each key that is wrong, in the order of the file's tree."""
    by_path: dict[KeyPath, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        by_path.setdefault(_path_in_tree(details, root), []).append(details)
    return [_explain_one(model, path, errors, root) for path, errors in by_path.items()]


def _path_in_tree(details: ErrorDetails, root: LocatedDict) -> KeyPath:
    """The error's location without the labels that unions and shorthands put into it."""
    path: list[str | int] = []
    node: Any = root
    for part in _joined_validation_names(details["loc"]):
        if has(node, part):
            node = node[part]
        elif not (details["type"] == "missing" and isinstance(node, dict)):
            break
        path.append(part)
    return tuple(path)


def _joined_validation_names(location: Sequence[str | int]) -> Iterable[str | int]:
    parts = list(location)
    if len(parts) > 1 and str(parts[0]).endswith("_*"):
        return [str(parts[0])[:-1] + str(parts[1]), *parts[2:]]
    return parts


def _explain_one(model: type[Section], path: KeyPath, errors: Sequence[ErrorDetails], root: LocatedDict) -> Problem:
    where, key = place_of(root, path), ".".join(map(str, path))
    kind = errors[0]["type"]
    own_words = [str(e["ctx"]["error"]) for e in errors if e["type"] == "value_error" and "ctx" in e]
    if kind == "extra_forbidden":
        return Problem(where, key, unknown_key(model, path))
    if kind == "missing":
        owner, name = _place_in(model, path)
        meaning = help_of(owner, name) if owner and name else ""
        return Problem(where, key, f"is missing: {meaning}".rstrip(": "))
    if own_words:
        is_single = key in root and not isinstance(root[key], Located)  # dataset=shakespeare
        other = counterpart(key) if is_single else ""
        return Problem(where, key, "; ".join(filter(None, (own_words[0], other))))
    field = _deepest_field(model, errors[0]["loc"])
    expected = describe_type(field.annotation, field.metadata) if field else errors[0]["msg"]
    return Problem(where, key, f"expected {expected}, found {_found(root, path)}")


def _deepest_field(model: type[Section], location: Sequence[str | int]) -> FieldInfo | None:
    """The field an error is about: ``clip_grad_norm: -1`` is about ``clip_grad_norm.max_norm``."""
    parts = tuple(_joined_validation_names(location))
    fields = (field_at(model, parts[:length]) for length in range(len(parts), 0, -1))
    return next((field for field in fields if field is not None), None)


def _found(root: LocatedDict, path: KeyPath) -> str:
    node: Any = root
    placeholder = None
    for part in path:
        placeholder = node.written[part].placeholder if isinstance(node, Located) else None
        node = node[part]
    if is_secret(path[-1]) and not isinstance(node, Located):
        return "a secret"
    return describe_value(node) if placeholder is None else placeholder


def unknown_key(model: type[Section], path: KeyPath) -> str:
    """``unknown key`` and what was probably meant: what others call so, a near key here, or one in another section."""
    name = str(path[-1])
    if len(path) == 1 and name in UNSUPPORTED_SECTIONS:
        return UNSUPPORTED_SECTIONS[name]
    section, _ = _place_in(model, path)
    match = nearest(name, section.keys() if section else ())
    if not (match and folded(match) == folded(name)) and (other := counterpart(name)):
        return other
    if match:
        return f"unknown key, did you mean {'.'.join(map(str, (*path[:-1], match)))}?"
    elsewhere = {key.rpartition(".")[2]: key for key in reversed(all_keys(model, with_old=False))}
    if name in elsewhere:
        return f"unknown key here, did you mean {elsewhere[name]}?"
    far = nearest(name, elsewhere, cutoff=_FAR_CUTOFF)
    return f"unknown key, did you mean {elsewhere[far]}?" if far else "unknown key"


def all_keys(model: type[Section], prefix: str = "", *, with_old: bool = True) -> list[str]:
    """Dotted names of all keys of a configuration, depth first; ``with_old``: those without effect too."""
    found = []
    for name, field in model.model_fields.items():
        if reason_ignored(field) and not with_old:
            continue
        for key in keys_of(model, name):
            found.append(prefix + key)
        if section := section_of(field.annotation):
            found += all_keys(section, f"{prefix}{keys_of(model, name)[0]}.", with_old=with_old)
    return found


def keep_text(model: type[Section], node: LocatedDict) -> None:
    """Give text fields the text that was written: ``name: 123``, ``id: 0042``, ``strategy: none`` need no quotes."""
    for name, field in model.model_fields.items():
        for key in keys_of(model, name):
            child = node.get(key)
            section = section_of(field.annotation)
            if isinstance(child, LocatedDict) and section is not None:
                keep_text(section, child)
            elif key in node.written and (text := node.written[key].text) is not None:
                node[key] = text if _is_text_all_the_same(field, child, text) else child


def _is_text_all_the_same(field: FieldInfo, value: Any, text: str) -> bool:
    """Whether what reads like a number or null is text here: ``name: 123``, and ``eot: none`` where that is a word."""
    if type(value) in (int, float):
        return _takes_only_text(field)
    return value is None and _is_a_word_of(field, text)


def takes_as_written(field: FieldInfo, text: str) -> bool:
    """Whether a field takes any text, or this very word."""
    return _takes_only_text(field) or _is_a_word_of(field, text)


def _is_a_word_of(field: FieldInfo, text: str) -> bool:
    return text != "null" and text in _alternatives(field.annotation, field.metadata)


def _takes_only_text(field: FieldInfo) -> bool:
    return set(_alternatives(field.annotation, field.metadata)) in ({"text"}, {"text", "null"})


def field_at(model: type[Section], path: KeyPath) -> FieldInfo | None:
    """The field that the last component of ``path`` sets, None below open sections and lists."""
    section, name = _place_in(model, path)
    return section.model_fields[name] if section and name else None


def _place_in(model: type[Section], path: KeyPath) -> tuple[type[Section] | None, str | None]:
    """The section that ``path`` leads into, and the field of it that its last component sets, if any."""
    section: type[Section] | None = model
    name, entries = None, None
    for number, part in enumerate(path):
        if number and not isinstance(path[number - 1], int):
            annotation: Any = section.model_fields[name].annotation if section and name else None
            section, entries = entries or section_of(annotation), _entries_of(annotation)
        name = section.field_of(part) if section and not isinstance(part, int) else None
    return section, name


def _entries_of(annotation: Any) -> type[Section] | None:
    """The section of each entry of ``dict[str, TaskConfig]``, whose keys are names and no fields."""
    return section_of(get_args(annotation)[1]) if get_origin(annotation) is dict else None


def alternatives(annotation: Any) -> list[Any]:
    """The types of which a value may be one, unions and annotations taken apart."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return alternatives(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [inner for part in get_args(annotation) for inner in alternatives(part)]
    return [annotation]


def choices(annotation: Any) -> list[str]:
    """The words that a field takes, where it takes words of a list."""
    literals = [inner for inner in alternatives(annotation) if get_origin(inner) is Literal]
    words = [word for literal in literals for word in get_args(literal)]
    return [word if isinstance(word, str) else describe_value(word) for word in words]


def section_of(annotation: Any) -> type[Section] | None:
    """The closed section inside an annotation such as ``WandbConfig | None`` or ``tuple[Override, ...]``."""
    for inner in alternatives(annotation):
        if get_origin(inner) in (tuple, list):
            return section_of(get_args(inner)[0])
        if isinstance(inner, type) and issubclass(inner, Section):
            return inner
    return None


def describe_type(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Description of a type: ``a whole number from 1 up, final or null``."""
    words = list(dict.fromkeys(_alternatives(annotation, metadata)))
    if len(words) > 1 and words[0] == "true or false":
        words[:1] = ["true", "false"]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _alternatives(annotation: Any, metadata: Iterable[Any] = ()) -> list[str]:
    for item in reversed(list(metadata)):  # the outermost says most
        if isinstance(item, TypeName):
            return [item.text]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _alternatives(arguments[0], arguments[1:])
    if origin in (Union, types.UnionType):
        return [word for argument in arguments for word in _alternatives(argument)]
    if origin is Literal:
        return [value if isinstance(value, str) else describe_value(value) for value in arguments]
    if origin is tuple and Ellipsis not in arguments:
        return [f"a list of {len(arguments)} ({describe_type(arguments[0])} each)"]
    if origin in (tuple, list):
        return [f"a list of {describe_type(arguments[0])}" if arguments else "a list"]
    if origin is dict or section_of(annotation):
        return ["a mapping"]
    name = _PLAIN_NAMES.get(annotation, getattr(annotation, "__name__", "a value"))
    return [" ".join([name, *_range(metadata)])]


def _range(metadata: Iterable[Any]) -> list[str]:
    """Description of the bounds of a number, for types without a ``TypeName``: ``above 0 and up to 1``."""
    bounds = [bound for item in metadata for bound in getattr(item, "metadata", [item])]
    words = [
        f"{word} {getattr(bound, attribute)}"
        for attribute, word in (("gt", "above"), ("ge", "from"), ("lt", "and below"), ("le", "and up to"))
        for bound in bounds
        if getattr(bound, attribute, None) is not None
    ]
    return [" ".join(words).removeprefix("and ")] if words else []
