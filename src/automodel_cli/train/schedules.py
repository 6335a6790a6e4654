"""Learning rate and weight decay as pure functions of the number of updates already done.

Update number n (counted from 1) uses ``lr(n - 1)``. With warm-up W, end of decay E, and i updates done:

    i < W             init_lr + (max_lr - init_lr) * i / W
    constant          max_lr from then on
    i > E             min_lr for ever
    otherwise         min_lr + coefficient * (max_lr - min_lr), with r = (i - W) / (E - W) and coefficient
                      cosine (1 + cos(pi r)) / 2; linear 1 - r
    WSD               1 until E - D, then with q = (i - E + D) / D: linear 1 - q; cosine (1 + cos(pi q)) / 2;
                      exponential 2 * 0.5^q - 1; minus_sqrt 1 - sqrt(q)
    inverse-square-root   max(min_lr, max_lr * sqrt(max(W, 1)) / sqrt(max(i, 1)))

The keys and their defaults are NeMo's. nanoGPT's ``get_lr`` is ``init_lr=0, lr_warmup_steps=warmup_iters,
lr_decay_steps=lr_decay_iters, lr_decay_style=cosine``, to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from automodel_cli.errors import ConfigError


def _cosine(ratio: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * ratio))


# Falls from 1 at ratio 0 to 0 at ratio 1.
_FALL: dict[str, Callable[[float], float]] = {
    "linear": lambda ratio: 1.0 - ratio,
    "cosine": _cosine,
    "exponential": lambda ratio: 2.0 * 0.5**ratio - 1.0,
    "minus_sqrt": lambda ratio: 1.0 - math.sqrt(ratio),
}

# A group's own factor on what is scheduled; without one all groups have the same.
_MULTIPLIERS = {"lr": "lr_mult", "weight_decay": "wd_mult"}


@dataclass(frozen=True)
class Schedule:
    """What the learning rate and the weight decay are after a number of updates; see the table above.

    ``start_wd`` and ``end_wd`` None leave each group's weight decay as it was built.
    """

    max_lr: float
    init_lr: float = 0.0
    min_lr: float = 0.0
    warmup_steps: int = 0
    decay_steps: int = 0
    style: str = "constant"
    wsd_decay_steps: int = 0
    wsd_style: str = "exponential"
    start_wd: float | None = None
    end_wd: float | None = None
    wd_incr_steps: int = 0
    wd_incr_style: str = "constant"

    @classmethod
    def from_keys(
        cls,
        *,
        lr: float,
        total_steps: int,
        weight_decay: float | None = None,
        lr_decay_style: str = "cosine",
        lr_warmup_steps: int | None = None,
        lr_decay_steps: int | None = None,
        init_lr: float | None = None,
        max_lr: float | None = None,
        min_lr: float | None = None,
        wsd_decay_steps: int | None = None,
        lr_wsd_decay_style: str | None = None,
        start_wd: float | None = None,
        end_wd: float | None = None,
        wd_incr_steps: int | None = None,
        wd_incr_style: str | None = None,
    ) -> Schedule:
        """The schedule that an ``lr_scheduler`` section means for a run of ``total_steps`` updates.

        Defaults: warm-up min(1000, total // 10) from 0.1 x lr; cosine to 0.01 x lr at the last step. ``lr``
        and ``weight_decay`` are the optimizer's own.

        Raises:
            ConfigError: warm-up or final decay are longer than the schedule.
        """
        peak = lr if max_lr is None else max_lr
        moves_wd = start_wd is not None or end_wd is not None
        warmup = min(1000, total_steps // 10) if lr_warmup_steps is None else lr_warmup_steps
        # A run may end within its warm-up (a trial with few steps): the decay is then still to come.
        decay = max(total_steps, warmup + 1) if lr_decay_steps is None else lr_decay_steps
        schedule = cls(
            max_lr=peak,
            init_lr=0.1 * peak if init_lr is None else init_lr,
            min_lr=0.01 * peak if min_lr is None else min_lr,
            warmup_steps=warmup,
            decay_steps=decay,
            style=lr_decay_style,
            wsd_decay_steps=wsd_decay_steps or 0,
            wsd_style=lr_wsd_decay_style or "exponential",
            start_wd=weight_decay if moves_wd and start_wd is None else start_wd,
            end_wd=weight_decay if moves_wd and end_wd is None else end_wd,
            wd_incr_steps=total_steps if wd_incr_steps is None else wd_incr_steps,
            wd_incr_style=wd_incr_style or "constant",
        )
        _refuse_lengths(schedule)
        return schedule

    def lr(self, updates_done: int) -> float:
        """The learning rate that update number ``updates_done + 1`` uses."""
        if updates_done < self.warmup_steps:
            return self.init_lr + (self.max_lr - self.init_lr) * updates_done / self.warmup_steps
        if self.style == "constant":
            return self.max_lr
        if updates_done > self.decay_steps:
            return self.min_lr
        if self.style == "inverse-square-root":
            rise = math.sqrt(max(self.warmup_steps, 1)) / math.sqrt(max(updates_done, 1))
            return max(self.min_lr, self.max_lr * rise)
        return self.min_lr + self._coefficient(updates_done) * (self.max_lr - self.min_lr)

    def _coefficient(self, updates_done: int) -> float:
        start, fall = self.warmup_steps, self.style
        if self.style == "WSD":
            start, fall = self.decay_steps - self.wsd_decay_steps, self.wsd_style
        if updates_done <= start:
            return 1.0
        return _FALL[fall]((updates_done - start) / (self.decay_steps - start))

    def wd(self, updates_done: int) -> float | None:
        """The weight decay of update number ``updates_done + 1``, or None to leave it alone."""
        if self.start_wd is None or self.end_wd is None:
            return None
        if self.wd_incr_style == "constant" or updates_done >= self.wd_incr_steps:
            return self.end_wd
        ratio = updates_done / self.wd_incr_steps
        rise = ratio if self.wd_incr_style == "linear" else 1.0 - _cosine(ratio)
        return self.start_wd + rise * (self.end_wd - self.start_wd)

    def values(self, updates_done: int) -> dict[str, float]:
        """What update number ``updates_done + 1`` uses, by its name in parameter groups."""
        lr, wd = self.lr(updates_done), self.wd(updates_done)
        return {"lr": lr} if wd is None else {"lr": lr, "weight_decay": wd}

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Set what is scheduled in every group for update ``step + 1``; returns the base learning rate.

        A group gets a value times its own multiplier, so groups keep their ratios, and nothing that it does not have.
        """
        values = self.values(step)
        for group in optimizer.param_groups:
            for key in values.keys() & group.keys():
                group[key] = values[key] * group.get(_MULTIPLIERS.get(key, ""), 1.0)
        return values["lr"]

    def settings(self) -> dict[str, Any]:
        """All of it as JSON, for the checkpoint to show what changed."""
        return asdict(self)

    def describe(self) -> str:
        """``cosine 0.0006 -> 6e-05, warm-up 715 updates from 6e-05, decay ends at 19073``."""
        if self.style == "constant" and not self.warmup_steps:
            return f"constant {self.max_lr:g}"
        warmup = f"warm-up {self.warmup_steps} updates from {self.init_lr:g}"
        if self.style == "constant":
            return f"constant {self.max_lr:g}, {warmup}"
        wsd = f" (last {self.wsd_decay_steps} updates, {self.wsd_style})" if self.style == "WSD" else ""
        fall = f"{self.style} {self.max_lr:g} -> {self.min_lr:g}{wsd}"
        return f"{fall}, {warmup}, decay ends at {self.decay_steps}"


def base_value(optimizer: torch.optim.Optimizer, key: str) -> float:
    """The ``lr`` or ``weight_decay`` that groups have multiples of, of a newly built optimizer.

    That of a group with the multiplier 1; else the optimizer's default, else the highest of a group.
    """
    multiplier = _MULTIPLIERS[key]
    values = [group[key] for group in optimizer.param_groups if group.get(multiplier) == 1.0 and key in group]
    if not values and optimizer.defaults.get(key) is not None:
        values = [optimizer.defaults[key]]
    return float((values or [max(group.get(key) or 0.0 for group in optimizer.param_groups)])[0])


def store_lr_multipliers(optimizer: torch.optim.Optimizer) -> None:
    """Store each group's learning rate and weight decay as multiples of the optimizer's own.

    Call it once, on a newly built optimizer: afterwards the schedule moves all groups and keeps their ratios.
    Groups that already say ``lr_mult`` or ``wd_mult`` keep them.
    """
    for key, multiplier in _MULTIPLIERS.items():
        base = base_value(optimizer, key)
        for group in optimizer.param_groups:
            group.setdefault(multiplier, float(group.get(key) or 0.0) / base if base else 1.0)


def contradictions(schedule: Schedule, total_steps: int) -> list[str]:
    """A line for each setting that hardly means what it does in a run of ``total_steps`` updates."""
    if schedule.style == "constant" and not schedule.warmup_steps:
        return []
    warmup, decay, peak = schedule.warmup_steps, schedule.decay_steps, schedule.max_lr
    notes = []
    if schedule.min_lr > peak and schedule.style != "constant":
        notes.append(f"lr_scheduler.min_lr {schedule.min_lr:g} is above the highest rate {peak:g}: the rate climbs")
    if schedule.init_lr > peak and warmup:
        notes.append(f"lr_scheduler.init_lr {schedule.init_lr:g} is above the highest rate {peak:g}: it falls at first")
    if warmup >= total_steps:
        notes.append(f"the warm-up takes {warmup} updates, the run has {total_steps}: the rate {peak:g} is not reached")
    elif decay > total_steps and schedule.style != "constant":
        last = schedule.lr(total_steps - 1)
        notes.append(
            f"lr_scheduler.lr_decay_steps {decay} is beyond the run's {total_steps} updates: the rate ends at {last:g}"
        )
    return notes


def _refuse_lengths(schedule: Schedule) -> None:
    """Check that the parts of the schedule find room in it."""
    warmup, decay, last = schedule.warmup_steps, schedule.decay_steps, schedule.wsd_decay_steps
    problems = []
    if schedule.style != "constant" and warmup >= max(decay, 1):
        problems.append(f"lr_warmup_steps {warmup} leaves nothing of lr_decay_steps {decay}")
    if schedule.style == "WSD" and not 0 < last <= decay - warmup:
        problems.append(f"wsd_decay_steps is {last}, expected 1 to {decay - warmup} for style WSD")
    if problems:
        raise ConfigError("lr_scheduler: " + "; ".join(problems), "correct the lr_scheduler section")
