"""YAML as plain values that remember where and how each was written.

Steps: PyYAML composes nodes with line numbers; scalars are read by YAML 1.2's rules (so ``3e-4`` is a number and
``yes`` is text); ``${NAME}`` and ``${NAME,default}`` take environment variables, and what was written is kept so
that a saved configuration shows the placeholder, not the secret. ``none`` and ``None`` are null, also in quotes,
because users' files say ``dp_size: none``. Tags that would build objects are refused.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from automodel_cli.config.problems import Problem, raise_problems
from automodel_cli.config.targets.target import Located, LocatedDict, LocatedList, Placeholder, Written
from automodel_cli.errors import ConfigError
from automodel_cli.json_files import MAX_NESTING, read_bytes
from automodel_cli.text import first_line

_NULL = frozenset({"", "~", "null", "Null", "NULL", "none", "None"})
_QUOTED_NULL = frozenset({"none", "None"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
_INT = re.compile(r"[-+]?[0-9][0-9_]*\Z")
_OCTAL = re.compile(r"0o[0-7]+\Z")
_HEX = re.compile(r"0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_SPECIAL_FLOATS = {".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf, ".nan": math.nan}
_ENVIRONMENT = re.compile(r"\$(\$)|\$\{([^{}]*)\}|\$([A-Z_][A-Z0-9_]*)")
_PLACEHOLDER = re.compile(r"(?:oc\.env:)?([A-Za-z_][A-Za-z0-9_]*)(?:,(.*))?\Z", re.DOTALL)
_UNTAGGED = "?"
_TAG_PREFIX = "tag:yaml.org,2002:"
_MAX_BYTES = 8 << 20
_MAX_WHOLE = 2**64  # seeds and sizes fit; of thousands of digits Python makes an exception, or takes minutes
_MAX_DIGITS = 40
_INHERITED = re.compile(r"/dev/(?:fd/\d+|stdin)\Z")  # `-c <(envsubst < run.yaml)`, `-c /dev/stdin`
_MAX_NODES = 100_000  # aliases multiply: a file of a few lines can describe more values than memory holds

KeyPath = tuple[str | int, ...]
Read = tuple[Any, Written]  # a value, and how it was written


def resolve_scalar(text: str) -> Any:
    """What an unquoted YAML 1.2 scalar means: null, a truth value, a number or the text itself."""
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _INT.match(text):
        return int(text.replace("_", ""))
    if _OCTAL.match(text) or _HEX.match(text):
        return int(text, 0)
    if _FLOAT.match(text):
        return float(text)
    return _SPECIAL_FLOATS.get(text.lower(), text)


def _refuse_long_number(text: str) -> None:
    """Raise a ValueError for a number that no setting could take."""
    if len(text) > _MAX_DIGITS and any(kind.match(text) for kind in (_INT, _OCTAL, _HEX, _FLOAT)):
        raise ValueError(f"a number of {len(text):,} characters, expected at most {_MAX_DIGITS}")
    value = resolve_scalar(text)
    if type(value) is int and abs(value) >= _MAX_WHOLE:
        raise ValueError("a whole number of more than 64 bits")


def read_file(path: Path | str) -> tuple[LocatedDict, list[Problem]]:
    """The mapping in a YAML file and what is wrong with it beyond its keys.

    Raises:
        ConfigError: the file cannot be read or is not YAML, or is no mapping.
    """
    hint = "give the path of a YAML file after -c"
    if not os.path.exists(path):  # noqa: PTH110  # false, not an exception, for a name that the system refuses
        raise ConfigError(f"there is no file {path}", hint)
    if _INHERITED.match(str(path)):
        data = _read_inherited(path, hint)
    else:
        data = read_bytes(path, ConfigError, max_bytes=_MAX_BYTES, hint=hint)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}", "is it a YAML file?") from None
    return parse_document(text, str(path))


def _read_inherited(path: Path | str, hint: str) -> bytes:
    """A pipe that the user's own shell holds open: waited for, which no other pipe is."""
    try:
        with open(path, "rb") as handle:  # noqa: PTH123
            data = handle.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", hint) from None
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"{path} has more than {_MAX_BYTES:,} bytes", hint)
    return data


def parse_document(text: str, source: str) -> tuple[LocatedDict, list[Problem]]:
    """The mapping that a YAML document is; an empty document is an empty one."""
    reader = _Reader(source)
    root, _ = reader.read(text)
    if root is None:
        root = LocatedDict(where=source)
    if not isinstance(root, LocatedDict):
        raise ConfigError(f"{source}: expected keys and values, found a list or a single value")
    return root, reader.problems


def parse_value(text: str, where: str) -> tuple[Any, Written, list[Problem]]:
    """One value as given on the command line.

    Text that opens with a bracket, a brace or a quote is YAML; anything else is one unquoted scalar, so that
    globs, colons and hashes need no second quoting.
    """
    reader = _Reader(where)
    if text[:1] in ("[", "{", '"', "'"):
        return *reader.read(text, where_is_final=True), reader.problems
    return *reader.scalar(text, where, plain=True), reader.problems


class _Loader(yaml.SafeLoader):
    """Composes nodes without YAML 1.1's guesses: an untagged node keeps the tag ``?``."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        """Leave the meaning of untagged scalars to ``resolve_scalar``."""
        return _UNTAGGED


class _Reader:
    """Turns composed PyYAML nodes into values; collects problems instead of stopping at the first."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: list[Problem] = []
        self._count = 0
        self._final_where: str | None = None

    def read(self, text: str, *, where_is_final: bool = False) -> Read:
        self._final_where = self.source if where_is_final else None
        try:
            self._check_depth(text)
            composed = yaml.compose(text, Loader=_Loader)
        except yaml.YAMLError as error:
            raise_problems([self._syntax_problem(error)])
        if composed is None:
            return None, Written(self.source)
        return self._node(composed, ())

    def _check_depth(self, text: str) -> None:
        """Look at the nesting before anything recurses into it."""
        depth = 0
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_NESTING:
                self._refuse_depth(self._where(event))

    def _refuse_depth(self, where: str) -> None:
        raise_problems([Problem(where, "", f"nested deeper than {MAX_NESTING} levels")])

    def _syntax_problem(self, error: yaml.YAMLError) -> Problem:
        mark = getattr(error, "problem_mark", None)
        where = f"{self.source}:{mark.line + 1}" if mark and not self._final_where else self.source
        text = getattr(error, "problem", None) or first_line(error)
        return Problem(where, "", f"not valid YAML: {text}")

    def _where(self, node: yaml.Node | yaml.Event) -> str:
        mark: Any = node.start_mark
        return self._final_where or f"{self.source}:{mark.line + 1}"

    def _node(self, node: yaml.Node, open_nodes: tuple[int, ...]) -> Read:
        self._count += 1
        if self._count > _MAX_NODES or id(node) in open_nodes:
            raise ConfigError(f"{self.source}: aliases expand to too many values", "write the values out")
        if len(open_nodes) > MAX_NESTING:  # through aliases, which the text does not show
            self._refuse_depth(self._where(node))
        open_nodes = (*open_nodes, id(node))
        if isinstance(node, yaml.MappingNode):
            self._check_tag(node, "map")
            return self._mapping(node, open_nodes), Written(self._where(node))
        if isinstance(node, yaml.SequenceNode):
            self._check_tag(node, "seq")
            items = LocatedList(where=self._where(node))
            for index, item in enumerate(node.value):
                items.put(index, *self._node(item, open_nodes))
            return items, Written(items.where)
        assert isinstance(node, yaml.ScalarNode)
        return self._tagged_scalar(node)

    def _check_tag(self, node: yaml.Node, *allowed: str) -> str | None:
        """The short name of a tag somebody wrote; a tag that is not plain data is a problem."""
        if node.tag == _UNTAGGED:
            return None
        tag = str(node.tag).removeprefix(_TAG_PREFIX)
        if tag not in allowed:
            self.problems.append(Problem(self._where(node), "", f"the tag {tag} is not allowed: values are plain data"))
        return tag

    def _mapping(self, node: yaml.MappingNode, open_nodes: tuple[int, ...]) -> LocatedDict:
        result, merged = LocatedDict(where=self._where(node)), LocatedDict()
        for key_node, value_node in node.value:
            where = self._where(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(Problem(where, "", "a key must be a single value"))
                continue
            key = str(key_node.value)
            value, written = self._node(value_node, open_nodes)
            if key == "<<" and key_node.style is None:
                self._merge(value, merged, written.where)
                continue
            if key in result:
                first = result.written[key].where
                self.problems.append(Problem(where, key, f"given twice, first at {first}"))
            written.where = where
            result.put(key, value, written)
        for key, value in merged.items():
            if key not in result:
                result.put(key, value, merged.written[key])
        return result

    def _merge(self, value: Any, merged: LocatedDict, where: str) -> None:
        """Add to ``merged`` what it does not have yet of the mapping or mappings behind a ``<<``."""
        for part in value if isinstance(value, list) else [value]:
            if not isinstance(part, LocatedDict):
                self.problems.append(Problem(where, "<<", "expected a mapping to merge"))
                continue
            for key, item in part.items():
                if key not in merged:
                    merged.put(key, item, part.written[key])

    def _tagged_scalar(self, node: yaml.ScalarNode) -> Read:
        where = self._where(node)
        tag = self._check_tag(node, "str", "int", "float", "bool", "null")
        if tag == "str":
            return str(node.value), Written(where)
        return self.scalar(str(node.value), where, plain=node.style is None or tag is not None)

    def scalar(self, text: str, where: str, *, plain: bool) -> Read:
        """Read a scalar; ``plain`` (unquoted) ones may be numbers, truth values or null."""
        try:
            expanded = expand_environment(text)
            if plain:
                _refuse_long_number(expanded)
        except ValueError as error:
            self.problems.append(Problem(where, "", str(error)))
            return None, Written(where)
        value = resolve_scalar(expanded) if plain else None if expanded in _QUOTED_NULL else expanded
        placeholder = None
        if any(match[1] is None for match in _ENVIRONMENT.finditer(text)):  # others are $$
            placeholder = Placeholder(text)
            placeholder.quoted = not plain
        return value, Written(where, expanded, placeholder)


def expand_environment(text: str) -> str:
    """Replace ``${NAME}``, ``${NAME,default}`` and ``$NAME``; ``$$`` is a dollar sign, ``$5`` stays.

    Raises:
        ValueError: a variable is not set and has no default, or a placeholder names no variable.
    """
    return _ENVIRONMENT.sub(_value_of, text)


def _value_of(match: re.Match[str]) -> str:
    """What stands for a ``$$`` or a placeholder."""
    dollar, braced, bare = match.groups()
    if dollar:
        return "$"
    parsed = _PLACEHOLDER.match(braced if braced is not None else bare)
    if parsed is None:
        raise ValueError(f"${{{braced}}} names no environment variable; references to keys are not supported")
    name, default = parsed.groups()
    value = os.environ.get(name, default)
    if value is None:
        raise ValueError(f"environment variable {name} is not set; set it, or write ${{{name},default}}")
    return value


def placeholders(node: Any, prefix: KeyPath = ()) -> dict[KeyPath, Placeholder]:
    """``path -> what was written`` for each value that came from the environment."""
    found: dict[KeyPath, Placeholder] = {}
    for key, written in node.written.items() if isinstance(node, Located) else ():
        if written.placeholder is not None:
            found[(*prefix, key)] = written.placeholder
        found |= placeholders(node[key], (*prefix, key))  # type: ignore[index]
    return found


def has(node: Any, part: str | int) -> bool:
    """Whether ``node`` is a mapping with this key, or a list with this index."""
    if isinstance(node, list):
        return isinstance(part, int) and part < len(node)
    return isinstance(node, Mapping) and part in node


def place_of(node: Any, path: KeyPath) -> str:
    """Where the value at ``path`` was written; where it is missing, its nearest ancestor's place."""
    where: str = node.where
    for part in path:
        if not has(node, part):
            break
        if isinstance(node, Located) and part in node.written:
            where = node.written[part].where
        node = node[part]
    return where
