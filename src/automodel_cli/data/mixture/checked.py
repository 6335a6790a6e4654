"""Values of a file as the arguments that a class declares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, TypeVar

from automodel_cli.errors import ConfigError
from automodel_cli.json_files import validated

Arguments = TypeVar("Arguments")


def checked(kind: type[Arguments], given: Mapping[str, Any], key: str) -> Arguments:
    """``given``, which stands at ``key`` of a configuration, as a ``kind`` (a dataclass).

    Raises:
        ConfigError: an argument is unknown, missing or of another type.
    """
    known = [field.name for field in fields(kind) if field.name != "_"]  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            near = get_close_matches(str(name), known, 1)
            raise ConfigError(
                f"{key}.{name} is not known", f"did you mean {near[0]}?" if near else f"it takes {', '.join(known)}"
            )
    return validated(dict(given), kind, key, ConfigError, hint="docs/config.md says what it takes")
