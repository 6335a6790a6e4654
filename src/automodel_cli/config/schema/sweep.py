"""Settings of ``automodel sweep run``, ``fit`` and ``plot``, and of ``automodel race``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from automodel_cli.config.schema.base import Count, JsonOutput, NotNegative, Positive, Section, TypeName, Whole
from automodel_cli.config.yaml_tree import parse_value

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


def _set_by_key(value: Any) -> Any:
    """``["optimizer.lr=1e-3"]``, as a command line has it, as a mapping of dotted keys to values."""
    if isinstance(value, Mapping):
        return dict(value)
    pairs = [str(one).partition("=") for one in (value if isinstance(value, list | tuple) else [value])]
    if bad := [key for key, equals, _ in pairs if not (key and equals)]:
        raise ValueError(f"expected KEY=VALUE, found {bad[0]!r}")
    return {key: parse_value(text, "")[0] for key, _, text in pairs}


def _grid(value: Any) -> Any:
    """Every key with the tuple of its values; a single one stands for itself."""
    given = _set_by_key(value)
    return {key: tuple(one) if isinstance(one, list | tuple) else (one,) for key, one in given.items()}


def _harmless(value: dict[str, Any]) -> dict[str, Any]:
    """Launch flags that a file may have: with others it could join a stranger's rendezvous, whose state is unpickled.

    Raises:
        ValueError: another flag.
    """
    if foreign := sorted(value.keys() - LAUNCH_IN_FILES):
        raise ValueError(f"{foreign[0]} could join a stranger's processes; give it on the command line: --{foreign[0]}")
    return value


LAUNCH_IN_FILES = frozenset({"nproc-per-node", "standalone"})
"""Launch flags that concern this machine alone."""
KeyValues = Annotated[dict[str, Any], BeforeValidator(_set_by_key), TypeName("dotted keys and their values")]
Grid = Annotated[dict[str, tuple[Any, ...]], BeforeValidator(_grid), TypeName("dotted keys and lists of values")]

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
    bootstrap: Annotated[Count, Field(le=100_000)] = 1000
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


class Processes(Section):
    """How the processes of several runs are started."""

    panels: ClassVar = {"Processes": "jobs launch stop_timeout trust"}

    jobs: Count = 1
    """Runs at a time; on a machine with GPUs each gets its own."""
    launch: Annotated[KeyValues, AfterValidator(_harmless)] = Field(default_factory=dict)
    """Launch flags of every run (`nproc-per-node: 8`, `standalone: true`). All of them can be given on the command line
    as they are: `--nproc-per-node 8`."""
    stop_timeout: Positive = 120.0
    """Seconds that runs get to save when they are stopped."""
    trust: tuple[str, ...] = ()
    """Allow your own code (my_module, path/file.py) or the code of a Hub repository, on the command line
    only; empty: none."""


class SweepRunConfig(Processes):
    """Settings of `automodel sweep run`: one training run for each point of a grid."""

    panels: ClassVar = {"Grid": "depths budgets ratios grid seeds set", **Processes.panels}

    base: str
    """YAML file of the training run that the grid varies."""
    output_dir: str
    """Folder of the sweep: a run folder for each run, and results.jsonl. A sweep that is found there goes on."""
    depths: tuple[Count, ...] = ()
    """Values of `model.depth`; empty: as the base says."""
    budgets: Budgets = ()
    """Values of `step_scheduler.target_flops`; empty: as the base says."""
    ratios: tuple[Positive, Positive] | None = None
    """Leave out runs whose tokens per parameter lie outside of these two; null: none are."""
    grid: Grid = Field(default_factory=dict)
    """Values of any other keys (`optimizer.lr: [1e-3, 2e-3]`); all combinations are run."""
    seeds: tuple[Whole, ...] = ()
    """Values of `rng.seed`; empty: as the base says."""
    set: KeyValues = Field(default_factory=dict)
    """Keys of the base to change in all runs."""
    dry_run: bool = False
    """Show the runs and exit."""


class RaceConfig(Processes, JsonOutput):
    """Settings of `automodel race`: whether the training run of B.yaml is better than that of A.yaml."""

    panels: ClassVar = {"Test": "metric minutes seeds margin alpha set", **Processes.panels}

    a: str
    """YAML file of the run to beat."""
    b: str
    """YAML file of the run that may be better."""
    metric: Literal["val_bpb", "val_loss", "core"] = "val_bpb"
    """What is compared at the end of each run."""
    minutes: Positive | None = None
    """Start no pair that would not end within so many minutes, judged by the longest so far; null: no limit."""
    seeds: Annotated[Count | Literal["auto"], TypeName("a whole number from 1 up, or auto")] = "auto"
    """Pairs at most; auto: until there is a verdict, 30 at most."""
    margin: NotNegative = 0.0005
    """Relative difference that does not matter: the race ends when the interval lies within."""
    alpha: Level = 0.05
    """Probability of a verdict where there is no difference, however often one looks."""
    set: KeyValues = Field(default_factory=dict)
    """Keys to change in both files."""
    output_dir: str | None = None
    """Folder of the runs; a race that is found there goes on. null: `runs/race_A_B`."""
