"""Shell completion of overrides: keys of the configuration, their values, launch flags."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand

from automodel_cli.cli.argv import LAUNCH_FLAGS
from automodel_cli.config import lookup
from automodel_cli.config.explain import choices, field_at
from automodel_cli.config.schema.pretrain import PretrainConfig


def overrides(incomplete: str, before: Sequence[str]) -> list[str]:
    """Candidates for a word.

    Args:
        incomplete: what is typed of it; after ``--section.key`` of its value.
        before: the words before it that are no options of the command itself.
    """
    key = before[-1].removeprefix("--") if before and before[-1].startswith("--") else ""
    if key and "=" not in key and not incomplete.startswith("-"):
        field = field_at(PretrainConfig, tuple(key.split(".")))
        found = choices(field.annotation) if field else []
    elif incomplete.startswith("-"):
        found = [f"--{name}" for name in [*keys(""), *LAUNCH_FLAGS]]
    else:
        found = [f"{name}=" for name in keys("")] if incomplete else []
    return [word for word in found if word.startswith(incomplete)]


def keys(incomplete: str) -> list[str]:
    """The keys of a training run that begin so."""
    known = dict.fromkeys(setting.key for setting in lookup.pretrain_settings())
    return [key for key in known if key.startswith(incomplete)]


def item(word: str) -> Any:
    """A candidate as click's object, wherever this version of typer has it from."""
    kind = sys.modules[TyperCommand.__mro__[1].__module__.rpartition(".")[0] + ".shell_completion"]
    return kind.CompletionItem(word)
