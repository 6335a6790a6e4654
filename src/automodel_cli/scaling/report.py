"""An analysis as plain JSON: what ``automodel sweep fit --json`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from automodel_cli.scaling.analysis import Analysis, Optimum, Prediction

TERMS = ("E", "A", "B", "alpha", "beta")


def as_json(found: Analysis, optima: Sequence[Optimum], predictions: Sequence[Prediction]) -> dict[str, Any]:
    """All numbers; an interval is an object of ``value``, ``low`` and ``high``."""
    points, bias = found.points, found.bias
    return {
        "points": len(points),
        "level": found.level,
        "resamples": found.laws.alpha.size,
        "seed": found.seed,
        "cost": {"factor": found.cost.factor, "power": found.cost.power, "spread": found.cost.spread},
        "law": {
            **{name: asdict(found.term(name)) for name in TERMS},
            "huber_delta": found.delta,
            "objective": float(found.law.objective),
        },
        "exponents": {
            **{name: asdict(found.exponent(name)) for name in "abc"},
            "a_of_parabolas": asdict(found.parabola_exponent()),
        },
        "parabolas": [
            {
                "budget": one.budget,
                "points": int(points.of_budget(number).sum()),
                "sizes": one.sizes,
                "flag": one.flag,
                "params": asdict(found.vertex(number)),
                "loss": one.loss,
            }
            for number, one in enumerate(found.parabolas)
        ],
        "bias": {
            "a_of_parabolas": bias.exponent,
            "a_of_law": bias.law_exponent,
            "size_ratios": bias.size_ratios.tolist(),
            "notable": bias.is_notable,
        },
        "back_test": asdict(found.back_test) if found.back_test else None,
        "optima": [asdict(one) for one in optima],
        "predictions": [asdict(one) for one in predictions],
        "notes": found.notes(),
    }
