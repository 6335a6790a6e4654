"""What a run has read of which source, through changes of the mixture: the plan in its checkpoints.

A plan is a *segment* (sources, stages, and where it began) and the segments before it. When a run goes on with other
weights, with a source more or one less, a new segment begins: each source that is still there goes on at its window,
one that comes back where it was left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from automodel_cli.data.mixture.order import ALGORITHM, MixtureOrder, Stage
from automodel_cli.data.position import MOST_SAMPLES, MOST_SOURCES, Number
from automodel_cli.errors import DataError
from automodel_cli.json_files import Count, FileModel, Items

MOST_STAGES = 1000  # of all segments of a plan
Weights = dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]


class PlannedStage(FileModel):
    """Weights from a sample on."""

    from_sample: Number
    weights: Weights
    ramp_from: Weights | None = None

    def of(self, names: Sequence[str]) -> Stage:
        """The same with the weights in the order of ``names``."""
        ramp_from = None if self.ramp_from is None else _row(self.ramp_from, names)
        return Stage(self.from_sample, _row(self.weights, names), ramp_from)


class Segment(FileModel):
    """A mixture from a sample on; ``given`` are the windows that each source had given before, absent ones too."""

    from_sample: Number = 0
    given: dict[str, Number] = Field(default_factory=dict)
    sources: dict[str, dict[str, Any]]
    stages: Items[PlannedStage]

    def order(self) -> MixtureOrder:
        """The order that it is."""
        names = list(self.sources)
        stages = [stage.of(names) for stage in self.stages]
        return MixtureOrder(stages, self.from_sample, [self.given.get(name, 0) for name in names])

    def given_at(self, sample: int) -> dict[str, int]:
        """Windows that each source has given before ``sample``; of absent ones those before the segment."""
        found = self.order().given(sample).tolist()
        return {**self.given, **dict(zip(self.sources, found, strict=True))}


class MixturePlan(Segment):
    """The plan of a run: its present segment, and those before it."""

    kind: Literal["mixture"]
    order_by: Literal["deadlines/1"] = Field(alias="order")
    seq_len: Count
    history: Items[Segment] = ()

    def last_plan_of(self, name: str) -> dict[str, Any] | None:
        """The plan of a source when it was last there; None for one that never was."""
        segments = (self, *reversed(self.history))
        return next((segment.sources[name] for segment in segments if name in segment.sources), None)


@dataclass(frozen=True)
class DataChange:
    """How a mixture differs from that of the checkpoint, from sample ``first`` on: a row for each source."""

    first: int
    rows: Sequence[Sequence[str]]

    headings = ("source", "windows read", "weight before", "weight now", "what happens")


@dataclass(frozen=True)
class WindowsRead:
    """Windows ``first`` to ``end`` of a source, read by samples ``from_sample`` to ``to_sample`` of a run.

    A source's windows are counted on from pass to pass; ``available`` are those of one pass (None: not known).
    """

    from_sample: int
    to_sample: int
    source: str
    first: int
    end: int
    available: int | None


def windows_read(plan: Any, samples: int) -> list[WindowsRead]:
    """What a run with the stored ``plan`` has read after ``samples`` samples, in order; one source if no mixture.

    Raises:
        DataError: the plan is that of a mixture and means nothing.
    """
    known = plan if isinstance(plan, Mapping) else {}
    found = read_plan(plan, {}, known.get("seq_len", 0), samples)
    if found is None and known.get("kind") == "mixture":
        raise DataError("the stored plan of the mixture is damaged", "look at another checkpoint of the run")
    if found is None:
        return [WindowsRead(0, samples, "data", 0, samples, _windows_of(known))]
    segments = [*found.history, found]
    ends = [segment.from_sample for segment in segments[1:]] + [samples]
    return [
        WindowsRead(segment.from_sample, end, name, segment.given.get(name, 0), given[name], _windows_of(source))
        for segment, end in zip(segments, ends, strict=True)
        for given in [segment.given_at(end)]
        for name, source in segment.sources.items()
    ]


@dataclass(frozen=True)
class Shares:
    """What each source is of the samples from ``first`` on, by name; ``moving``: what it is to become, by a ramp."""

    first: int
    of: Mapping[str, float]
    moving: bool


def shares_read(plan: Any, samples: int) -> list[Shares]:
    """The stages that a run with the stored ``plan`` has been in after ``samples`` samples; none if no mixture."""
    found = read_plan(plan, {}, plan.get("seq_len", 0), samples) if isinstance(plan, Mapping) else None
    if found is None:
        return []
    segments = [*found.history, found]
    ends = [segment.from_sample for segment in segments[1:]] + [samples]
    shares = []
    for segment, end in zip(segments, ends, strict=True):
        stage_ends = [stage.from_sample for stage in segment.stages[1:]] + [end]
        for stage, stage_end in zip(segment.stages, stage_ends, strict=True):
            first, total = max(segment.from_sample, stage.from_sample), sum(stage.weights.values())
            if first < min(end, stage_end):
                of = {name: weight / total for name, weight in stage.weights.items()}
                shares.append(Shares(first, of, stage.ramp_from is not None))
    return shares


def _windows_of(plan: Mapping[str, Any]) -> int | None:
    found = plan.get("windows")
    return found if isinstance(found, int) and 0 < found <= MOST_SAMPLES else None


def stage_plans(stages: Sequence[Stage], names: Sequence[str]) -> list[dict[str, Any]]:
    """Stages as JSON values."""
    return [
        {
            "from_sample": stage.first,
            "weights": dict(zip(names, stage.weights, strict=True)),
            **({"ramp_from": dict(zip(names, stage.ramp_from, strict=True))} if stage.ramp_from else {}),
        }
        for stage in stages
    ]


def as_json(segment: Segment) -> dict[str, Any]:
    """A segment, or what of a plan is one, as JSON values."""
    return segment.model_dump(mode="json", exclude_unset=True, include=set(Segment.model_fields))


def read_segments(stored: Sequence[Mapping[str, Any]]) -> list[Segment]:
    """The segments that ``as_json`` wrote."""
    return [Segment.model_validate(one) for one in stored]


def read_plan(stored: Any, sources: Mapping[str, dict[str, Any]], seq_len: int, samples: int) -> MixturePlan | None:
    """The plan of a run after ``samples`` samples, as a mixture's; None where no mixture can go on from it.

    That of a single data set which is one of ``sources`` now (their plans by name) is a mixture of that one.
    """
    alone = next((name for name, plan in sources.items() if plan == stored), None)
    if alone is not None:
        segment = {"sources": {alone: stored}, "stages": [{"from_sample": 0, "weights": {alone: 1.0}}]}
        stored = {"kind": "mixture", "order": ALGORITHM, "seq_len": seq_len, **segment}
    try:
        found = MixturePlan.model_validate(stored)
        _check(found, samples)
    except (ValidationError, _Senseless):
        return None
    return found if found.seq_len == seq_len else None


class _Senseless(Exception):
    """A plan that has the right types and no meaning."""


def _check(plan: MixturePlan, samples: int) -> None:
    segments = (*plan.history, plan)
    begins = [segment.from_sample for segment in segments]
    if begins != sorted(begins) or begins[-1] > samples or sum(len(one.stages) for one in segments) > MOST_STAGES:
        raise _Senseless
    for segment in segments:
        firsts = [stage.from_sample for stage in segment.stages]
        ramps = [stage.ramp_from for stage in segment.stages]
        rows = [weights for stage in segment.stages for weights in (stage.weights, stage.ramp_from) if weights]
        if not 0 < len(segment.sources) <= MOST_SOURCES or firsts[:1] != [0] or sorted(set(firsts)) != firsts:
            raise _Senseless
        if ramps[-1] is not None or any(set(row) != set(segment.sources) for row in rows):
            raise _Senseless
        if not all(0 < sum(row.values()) < math.inf for row in rows):
            raise _Senseless


def change_of(
    stored: MixturePlan, sources: Mapping[str, dict[str, Any]], order: MixtureOrder, sample: int
) -> DataChange:
    """What is another now than in the checkpoint, ``sample`` samples into the run.

    Raises:
        DataError: a name means another source than it did.
    """
    before, now = _weights_at(stored.order(), list(stored.sources), sample), _weights_at(order, list(sources), sample)
    given = stored.given_at(sample)
    rows = []
    for name in dict.fromkeys((*stored.sources, *sources)):
        known = stored.last_plan_of(name)
        if name in sources and known is not None and known != sources[name]:
            differ = sorted(key for key in {*known, *sources[name]} if known.get(key) != sources[name].get(key))
            raise DataError(
                f"source {name} is not what it was in the checkpoint: {', '.join(differ)} differ",
                "restore it, or give the new one another name",
            )
        rows.append(
            (name, f"{given.get(name, 0):,}", before.get(name, "-"), now.get(name, "-"), _what(name, stored, sources))
        )
    return DataChange(sample, rows)


def _what(name: str, stored: MixturePlan, sources: Mapping[str, Any]) -> str:
    if name not in sources:
        return "is left out"
    if name in stored.sources:
        return "goes on"
    return "comes back" if stored.last_plan_of(name) is not None else "is new"


def _weights_at(order: MixtureOrder, names: Sequence[str], sample: int) -> dict[str, str]:
    weights = order.stage_at(sample).weights
    return {name: f"{weight / sum(weights):.4g}" for name, weight in zip(names, weights, strict=True)}


def _row(weights: Weights, names: Sequence[str]) -> tuple[float, ...]:
    return tuple(weights[name] for name in names)
