"""What a tracker is: a tool that draws a run's numbers elsewhere (W&B, TensorBoard, MLflow, Comet, Trackio).

A tracker is a small class. Its ``__init__`` imports the package, and starts or continues the tool's run; each method
may take its time and may raise: ``background`` keeps both away from training.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One record of ``metrics.jsonl`` on its way to a tracker.

    Attributes:
        prefix: ``train``, ``val``, ``val_NAME`` or ``eval``.
        time: when it was logged, in seconds since 1970.
    """

    prefix: str
    record: Record
    time: float

    @property
    def step(self) -> int:
        """The update it is about."""
        return int(self.record["step"])

    def numbers(self) -> dict[str, float]:
        """Its numbers by name, ``train/loss``; those of sources apart, ``train/loss/web``.

        Text, truth values and missing values stay at home; NaN and infinities are numbers.
        """
        by_source = {f"loss/{name}": loss for name, loss in self.record.get("loss_by_source", {}).items()}
        return {
            f"{self.prefix}/{key}": value
            for key, value in {**self.record, **by_source}.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and key != "step"
        }

    def samples(self) -> list[tuple[str, str]]:
        """Prompts and what the model wrote after them."""
        return [(str(one["prompt"]), str(one["text"])) for one in self.record.get("samples", ())]


class Tracker(Protocol):
    """Where entries go. Its methods are called in one thread, the one it was made in."""

    @property
    def last_step(self) -> int | None:
        """The last update that the tool surely holds of the run that is continued; None: it cannot say."""

    def log(self, entry: Entry) -> None:
        """Send one entry."""

    def rewind(self, step: int) -> None:
        """The run has gone back to ``step``: what was sent past it is void."""

    def flush(self) -> None:
        """No entry waits just now: what was sent may go out."""

    def close(self, *, ok: bool) -> None:
        """Finish the tool's run; ``ok=False``: as failed."""


class Forgetful:
    """Base of trackers whose tools cannot take anything back, nor say what they hold."""

    last_step: int | None = None

    def rewind(self, step: int) -> None:
        """What was sent past ``step`` stays there."""

    def flush(self) -> None:
        """The tool sends when it thinks best."""


def flatten(config: Mapping[str, Any], depth: int | None = None) -> dict[str, Any]:
    """A nested configuration as parameters with dotted names; what is not set (None) is left out.

    Args:
        depth: how many levels of sections are opened; what lies deeper is one parameter, as JSON. None: all.
    """
    return dict(_leaves(config, depth, ""))


def _leaves(value: Any, depth: int | None, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value and (not name or depth is None or depth > 0):
        deeper = depth if not name or depth is None else depth - 1
        for key, inner in value.items():
            yield from _leaves(inner, deeper, f"{name}.{key}" if name else str(key))
    elif isinstance(value, str | int | float):
        yield name, value
    elif value is not None:
        yield name, json.dumps(value, ensure_ascii=False, default=str)
