"""What a run folder says a run came to: the numbers of its row, from ``metrics.jsonl``. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from automodel_cli.errors import DataError
from automodel_cli.metrics.log_file import METRICS_NAME, decode_line, is_sound, lines_of
from automodel_cli.metrics.read import Columns, RunMetrics, read_metrics

_COMPILED = 3.0  # an interval so many times as slow as the median compiled, as the first of a start does


def outcome(folder: Path) -> dict[str, float | int | None]:
    """``tokens, steps, val_loss, val_bpb, core, compute_s, step_s, mfu`` of the finished run in ``folder``.

    Raises:
        DataError: no metrics, or no validation at the last step.
    """
    metrics = read_metrics(folder)
    train = metrics.train
    if not train:
        raise DataError(f"{folder / METRICS_NAME} has no update", "the run has not trained")
    step, tokens = int(train["step"][-1]), int(train["tokens_seen"][-1])
    return {
        "tokens": tokens,
        "steps": step,
        **_validation(metrics, step),
        "core": _core(folder),
        **_times(train, step, tokens),
    }


def last_update(folder: Path) -> tuple[int, float | None]:
    """Step and loss of the newest update in the log of a run under way; 0 where there is none."""
    try:
        train = read_metrics(folder).train
    except DataError:
        return 0, None
    return (int(train["step"][-1]), float(train["loss"][-1])) if train else (0, None)


def _validation(metrics: RunMetrics, step: int) -> Mapping[str, float | None]:
    scores = metrics.validation.get("default") or next(iter(metrics.validation.values()), {})
    if not scores or int(scores["step"][-1]) != step:
        raise DataError(f"{metrics.path} has no validation at its last step, {step}", "set val_every_steps: final")
    return {"val_loss": _last(scores, "loss"), "val_bpb": _last(scores, "bits_per_byte")}


def _last(columns: Columns, name: str) -> float | None:
    value = float(columns[name][-1]) if name in columns else float("nan")
    return value if np.isfinite(value) else None


def _core(folder: Path) -> float | None:
    records = [
        record for line, _ in lines_of(folder / METRICS_NAME) if is_sound(line) and (record := decode_line(line))
    ]
    scores = [record["core"] for record in records if record.get("kind") == "eval" and "core" in record]
    return scores[-1] if scores else None


def _times(train: Columns, step: int, tokens: int) -> dict[str, float | None]:
    """Of the intervals between log lines; where one compiled it counts as the median does."""
    if "tps" not in train or not (known := np.isfinite(train["tps"]) & (train["tps"] > 0)).any():
        return {}
    per_step = tokens / step / train["tps"][known]
    steps = np.diff(train["step"], prepend=0)[known]
    median = float(np.median(per_step[1:] if per_step.size > 1 else per_step))
    compiled = per_step > _COMPILED * median
    compiled[0] = per_step.size > 1
    seconds = np.where(compiled, median, per_step)
    mfu = train["mfu"][known][~compiled] if "mfu" in train else np.array([])
    mfu = mfu[np.isfinite(mfu)]
    compute_s = float((seconds * steps).sum() * step / steps.sum())
    return {"compute_s": compute_s, "step_s": median, "mfu": float(mfu.mean()) if mfu.size else None}
