"""Settings of ``automodel sweep fit`` and ``automodel sweep plot``."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from automodel_cli.config.schema.base import Count, JsonOutput, Positive, Section, TypeName, Whole

Level = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False), TypeName("a number between 0 and 1")]


def _above_0(value: Any) -> float:
    """A number of a list; what is wrong with one is wrong with the option.

    Raises:
        ValueError: no number above 0.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"expected a number above 0, found {value!r}")
    return number


def _budgets(value: Any) -> Any:
    return tuple(_above_0(one) for one in value) if isinstance(value, list | tuple) else (_above_0(value),)


def _pairs(value: Any) -> Any:
    """``["124e6:2.5e9"]`` as pairs of numbers."""
    given = value if isinstance(value, list | tuple) else [value]
    pairs = [str(one).split(":") for one in given]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"expected PARAMS:TOKENS, two numbers with a colon between, found {given!r}")
    return tuple((_above_0(params), _above_0(tokens)) for params, tokens in pairs)


Budgets = Annotated[tuple[float, ...], BeforeValidator(_budgets), TypeName("numbers above 0")]
Pairs = Annotated[
    tuple[tuple[float, float], ...], BeforeValidator(_pairs), TypeName("PARAMS:TOKENS, two numbers above 0")
]


class SweepPoints(Section):
    """Which points a law is fitted to, and how."""

    results: str
    """Folder of a sweep, its results.jsonl, or a CSV file with the columns params, tokens, loss and perhaps budget."""
    params: Literal["scaling", "non_embedding", "total"] = "scaling"
    """Which count is the size: block matrices and head, all but embeddings, or all; of rows that have several."""
    metric: Literal["loss", "bpb"] = "loss"
    """What is fitted: validation loss in nats per token, or bits per byte."""
    where: tuple[str, ...] = ()
    """Use only rows with COLUMN=VALUE (all of these, if several); empty: all."""
    budget: Budgets = ()
    """Budgets in FLOPs to give the best size, tokens and loss for; empty: those of the points."""
    level: Level = 0.9
    """Share of intervals that should hold the truth."""
    bootstrap: Count = 1000
    """Number of resamples that intervals are made of."""
    seed: Whole = 0
    """Seed of the resampling."""
    huber_delta: Positive = 1e-3
    """Residuals of log loss beyond this count linearly, so that outliers pull less."""


class SweepFitConfig(SweepPoints, JsonOutput):
    """Settings of `automodel sweep fit`: a scaling law from the points of a sweep."""

    predict: Pairs = ()
    """PARAMS:TOKENS of models to predict the loss of; empty: none."""


class SweepPlotConfig(SweepPoints):
    """Settings of `automodel sweep plot`: isoFLOP curves, and optimal size and loss against compute."""

    output: str | None = None
    """File to write, .png, .svg or .pdf, with what is drawn beside it as NAME_points.csv; null: `scaling.png` beside
    the results."""
    title: str | None = None
    """Title of the figure; null: the results' name."""
