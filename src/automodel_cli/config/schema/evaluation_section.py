"""The `evaluation:` section of a training run, and the types it shares with `automodel eval --tasks`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from automodel_cli.config.schema.base import Count, Interval, Section, TypeHelp, Whole


def split_words(value: Any) -> Any:
    """``"a,b"`` or a list of such as a flat tuple of names."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, Sequence):
        return given
    return tuple(word.strip() for text in given for word in str(text).split(",") if word.strip())


Words = Annotated[tuple[str, ...], BeforeValidator(split_words), TypeHelp("names, separated by commas")]
BatchSize = Annotated[Count | Literal["auto"], TypeHelp("a whole number from 1 up, or auto")]


class EvaluationConfig(Section):
    """What is asked of the model while it trains, beside its training loss: validation loss, tasks, samples."""

    every_steps: Interval = "final"
    """Updates between evaluations; `final`: only at the end; null: never. Each begins with a validation pass."""
    tasks: Words = ()
    """In-context tasks: `core`, `gauntlet` or names."""
    bundle: str = "eval_bundle"
    """Folder with their data."""
    max_per_task: Count | None = 100
    """Questions of a task at most; null: all."""
    num_fewshot: Whole | None = None
    """Worked examples before each question; null: as published."""
    batch_size: BatchSize = "auto"
    """Sequences computed at once; auto: as many as fit a number of tokens."""
    prompts: tuple[str, ...] = ()
    """Texts to continue, to look at."""
    max_new_tokens: Count = 32
    """Tokens to continue them by; the likeliest each time."""
