"""The stages of a mixture: from shares of a run, steps and tokens to numbers of samples."""

from __future__ import annotations

import math
from collections.abc import Mapping

from automodel_cli.batch_sizes import BatchSizes
from automodel_cli.data.arguments import MixtureArguments, StageArguments
from automodel_cli.data.mixture.checked import checked
from automodel_cli.data.mixture.order import Stage
from automodel_cli.data.position import MOST_SAMPLES
from automodel_cli.errors import ConfigError

_MOST_STAGES = 100  # of one configuration; a plan keeps those of all before it (history.MOST_STAGES)


def stages_of(options: MixtureArguments, weights: Mapping[str, float]) -> list[Stage]:
    """The stages in order; ``weights`` are those of the sources, in their order.

    Raises:
        ConfigError: weights of nothing or of unknown sources, ends that do not ascend, or an end that depends on a
            length of the run that is not known.
    """
    _check_weights("dataset.sources", weights)
    given = list(options.stages or [{}])
    if len(given) > _MOST_STAGES:
        raise ConfigError(f"dataset.stages has {len(given)} stages", f"give it up to {_MOST_STAGES}; a ramp is one")
    found: list[Stage] = []
    first, before = 0, tuple(weights.values())
    for number, raw in enumerate(given):
        key = f"dataset.stages[{number}]"
        stage = checked(StageArguments, raw, key)
        own = _weights_of(stage, key, weights)
        last = number == len(given) - 1
        end = _end(stage, key, options, last=last)
        if end is not None and end <= first:
            raise ConfigError(
                f"{key} ends with sample {end:,}, the stage before it with {first:,}", "let the ends of stages ascend"
            )
        if stage.ramp and end is None:
            raise ConfigError(f"{key} is a ramp without an end", "give it until, until_step or until_tokens")
        found.append(Stage(first, own, before if stage.ramp else None))
        first, before = end or first, own
        if last and stage.ramp:
            found.append(Stage(first, own))
    return found


def _weights_of(stage: StageArguments, key: str, weights: Mapping[str, float]) -> tuple[float, ...]:
    if stage.weights is None:
        return tuple(weights.values())
    unknown = sorted(set(stage.weights) - set(weights))
    if unknown:
        raise ConfigError(
            f"{key}.weights names {unknown[0]!r}, which is no source", f"sources are {', '.join(weights)}"
        )
    _check_weights(f"{key}.weights", stage.weights)
    return tuple(float(stage.weights.get(name, 0.0)) for name in weights)


def _check_weights(key: str, weights: Mapping[str, float]) -> None:
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"{key}: the weight of {name} is {weight}", "give 0 or more")
    total = sum(weights.values())
    if not 0 < total < math.inf:
        raise ConfigError(f"{key}: the weights add up to {total:g}", "give weights from 0 to 1, one of them above 0")


def _end(stage: StageArguments, key: str, options: MixtureArguments, *, last: bool) -> int | None:
    """The sample before which the stage ends, a whole number of updates; None: it has no end."""
    ends = {name: getattr(stage, name) for name in ("until", "until_step", "until_tokens")}
    ends = {name: value for name, value in ends.items() if value is not None}
    if len(ends) > 1:
        raise ConfigError(f"{key} has {' and '.join(ends)}", "give one of them")
    if not ends:
        if last:
            return None
        raise ConfigError(f"{key} has no end, and another stage follows", "give it until, until_step or until_tokens")
    ((name, value),) = ends.items()
    sizes = BatchSizes.of(options.global_batch_size or 1)
    most = {"until": 1, "until_step": MOST_SAMPLES // max(sizes.numbers), "until_tokens": MOST_SAMPLES}[name]
    if not 0 < value <= most:
        raise ConfigError(
            f"{key}.{name} is {value:g}", "until is a share of the run from 0 to 1; steps and tokens are 1 or more"
        )
    if name == "until_step":
        return sizes.samples(int(value))
    if name == "until_tokens":
        return sizes.samples(_nearest_update(sizes, value / options.seq_len))
    if last and value == 1:
        return None if not stage.ramp or options.max_steps is None else sizes.samples(options.max_steps)
    if options.max_steps is None:
        raise ConfigError(
            f"{key}.until is a share of the run, whose length is not known before it is read",
            "set step_scheduler.max_steps (or max_tokens), or give until_step or until_tokens",
        )
    return sizes.samples(step_of_share(value, options.max_steps, sizes))


def step_of_share(share: float, steps: int, sizes: BatchSizes) -> int:
    """The update with which a ``share`` of the samples of ``steps`` updates ends."""
    return _nearest_update(sizes, share * sizes.samples(steps)) if sizes.changes else max(round(share * steps), 1)


def _nearest_update(sizes: BatchSizes, samples: float) -> int:
    """The update whose end is nearest to ``samples``, the first at least."""
    updates = sizes.updates(int(samples))
    whole = sizes.samples(updates)
    return max(updates + round((samples - whole) / sizes.at(whole)), 1)
