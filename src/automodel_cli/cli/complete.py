"""What a shell offers behind commands that take overrides: keys of the configuration, their words, launch flags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from automodel_cli.cli.argv import LAUNCH_FLAGS
from automodel_cli.config import lookup
from automodel_cli.config.explain import field_at
from automodel_cli.config.schema import PretrainConfig


def overrides(incomplete: str, before: Sequence[str]) -> list[Any]:
    """Candidates for a word, as click's items.

    Args:
        incomplete: what is typed of it; after ``--section.key`` its value.
        before: the words before it that are no options of the command itself.
    """
    from typer._click.shell_completion import CompletionItem

    return [CompletionItem(word) for word in words(incomplete, before)]


def words(incomplete: str, before: Sequence[str]) -> list[str]:
    """The same as plain words."""
    from automodel_cli.cli.options import choices

    key = before[-1].removeprefix("--") if before and before[-1].startswith("--") else ""
    if key and "=" not in key and not incomplete.startswith("-"):
        field = field_at(PretrainConfig, tuple(key.split(".")))
        return [word for word in choices(field.annotation) if word.startswith(incomplete)] if field else []
    dashes = "--" if incomplete.startswith("-") else ""
    keys = [setting.key for setting in lookup.pretrain_settings()]
    names = [f"{dashes}{key}{'' if dashes else '='}" for key in dict.fromkeys(keys)]
    names += [f"--{flag}" for flag in LAUNCH_FLAGS]
    return [name for name in names if name.startswith(incomplete) and (incomplete or dashes)]
