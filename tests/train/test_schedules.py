"""Schedules against formulas written here, at the corners and over whole runs."""

import math

import pytest
import torch

from automodel_cli.errors import ConfigError
from automodel_cli.train.optimizers import build_adamw
from automodel_cli.train.schedules import Schedule, contradictions, store_lr_multipliers

LR = 6e-4


def nanogpt_lr(it, *, learning_rate, warmup_iters, lr_decay_iters, min_lr):
    """What the NanoGPT guide's listing computes, written out."""
    if it < warmup_iters:
        return learning_rate * it / warmup_iters
    if it > lr_decay_iters:
        return min_lr
    decay_ratio = (it - warmup_iters) / (lr_decay_iters - warmup_iters)
    coeff = 0.5 * (1.0 + math.cos(math.pi * decay_ratio))
    return min_lr + coeff * (learning_rate - min_lr)


@pytest.mark.parametrize(("warmup", "decay"), [(20, 600), (0, 50), (1, 2), (2000, 5000)])
def test_nanogpt_get_lr_is_reproduced_bit_for_bit_at_every_step(warmup, decay):
    schedule = Schedule.from_keys(
        lr=LR, total_steps=decay, lr_warmup_steps=warmup, lr_decay_steps=decay, init_lr=0.0, min_lr=6e-5
    )
    for it in range(decay + 20):
        expected = nanogpt_lr(it, learning_rate=LR, warmup_iters=warmup, lr_decay_iters=decay, min_lr=6e-5)
        assert schedule.lr(it) == expected


def test_defaults_are_nemos():
    schedule = Schedule.from_keys(lr=LR, total_steps=18500)
    assert (schedule.warmup_steps, schedule.decay_steps, schedule.style) == (1000, 18500, "cosine")
    assert (schedule.init_lr, schedule.min_lr) == (0.1 * LR, 0.01 * LR)
    assert Schedule.from_keys(lr=LR, total_steps=500).warmup_steps == 50


def test_the_seed_logs_first_learning_rates():
    """The Megatron guide: lr 6e-4, warm-up 700, min_lr 0: update 1 uses 6e-5, update 2 uses 6.08e-05."""
    schedule = Schedule.from_keys(lr=6e-4, total_steps=18500, lr_warmup_steps=700, min_lr=0.0)
    assert schedule.lr(0) == pytest.approx(6e-5)
    assert f"{schedule.lr(1):.2e}" == "6.08e-05"


def fall(style, ratio):
    return {
        "cosine": (1 + math.cos(math.pi * ratio)) / 2,
        "linear": 1 - ratio,
        "exponential": 2 * 0.5**ratio - 1,
        "minus_sqrt": 1 - ratio**0.5,
    }[style]


@pytest.mark.parametrize("style", ["constant", "cosine", "linear", "WSD", "inverse-square-root"])
def test_corners(style):
    """Step 1, end of warm-up, middle, last, last + 1 of a run of 100 updates with 10 of warm-up."""
    schedule = Schedule.from_keys(
        lr=1.0,
        total_steps=100,
        lr_decay_style=style,
        lr_warmup_steps=10,
        wsd_decay_steps=20,
        lr_wsd_decay_style="linear",
    )
    assert schedule.lr(0) == pytest.approx(0.1)
    assert schedule.lr(5) == pytest.approx(0.55)
    assert schedule.lr(10) == pytest.approx(1.0)
    at = {
        "constant": (1.0, 1.0, 1.0, 1.0),
        "cosine": [0.01 + 0.99 * fall("cosine", r) for r in (0.5, 89 / 90, 1.0, 1.0)],
        "linear": [0.01 + 0.99 * fall("linear", r) for r in (0.5, 89 / 90, 1.0, 1.0)],
        "WSD": (1.0, 0.01 + 0.99 * fall("linear", 19 / 20), 0.01, 0.01),
        "inverse-square-root": ((10 / 55) ** 0.5, (10 / 99) ** 0.5, (10 / 100) ** 0.5, 0.01),
    }[style]
    assert [schedule.lr(step) for step in (55, 99, 100, 101)] == pytest.approx(list(at))


@pytest.mark.parametrize("wsd_style", ["linear", "cosine", "exponential", "minus_sqrt"])
def test_wsd_is_flat_then_falls_in_each_style(wsd_style):
    schedule = Schedule.from_keys(
        lr=2.0,
        total_steps=1000,
        lr_decay_style="WSD",
        lr_warmup_steps=100,
        min_lr=0.5,
        wsd_decay_steps=200,
        lr_wsd_decay_style=wsd_style,
    )
    assert {schedule.lr(step) for step in range(100, 801)} == {2.0}
    for step in (801, 900, 999, 1000):
        assert schedule.lr(step) == pytest.approx(0.5 + 1.5 * fall(wsd_style, (step - 800) / 200))
    assert schedule.lr(1000) == pytest.approx(0.5)
    assert schedule.lr(5000) == 0.5


def test_weight_decay_moves_only_when_asked():
    assert Schedule.from_keys(lr=1.0, total_steps=10, weight_decay=0.1).wd(3) is None
    keys = {"lr": 1.0, "total_steps": 10, "start_wd": 0.0, "end_wd": 0.4, "lr_warmup_steps": 1}
    linear = Schedule.from_keys(**keys, wd_incr_style="linear")
    assert [linear.wd(step) for step in (0, 5, 10, 11)] == pytest.approx([0.0, 0.2, 0.4, 0.4])
    cosine = Schedule.from_keys(**keys, wd_incr_style="cosine")
    assert [cosine.wd(step) for step in (0, 5, 10)] == pytest.approx([0.0, 0.2, 0.4])


def test_apply_keeps_the_ratios_of_groups():
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
    optimizer = build_adamw(
        [
            {"params": weights[:1], "weight_decay": 0.1},
            {"params": weights[1:2], "lr": 1.0, "weight_decay": 0.0, "lr_mult": 0.5, "wd_mult": 0.0},
            {"params": weights[2:], "lr": 4.0},
        ],
        lr=2.0,
        weight_decay=0.1,
    )
    store_lr_multipliers(optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [2.0, 1.0, 4.0]
    schedule = Schedule.from_keys(lr=2.0, total_steps=100, start_wd=0.2, end_wd=0.2, lr_warmup_steps=10)
    assert schedule.apply(optimizer, 10) == 2.0
    assert [group["lr"] for group in optimizer.param_groups] == [2.0, 1.0, 4.0]
    assert [group["weight_decay"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.0, 0.2])
    lr = schedule.apply(optimizer, 60)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([lr, lr / 2, lr * 2])


def test_ratios_of_a_foreign_optimizer_are_remembered_once():
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": weights[:1]}, {"params": weights[1:], "lr": 0.3}], lr=0.1)
    store_lr_multipliers(optimizer)
    Schedule(max_lr=0.05).apply(optimizer, 0)
    store_lr_multipliers(optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.15])


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"lr_warmup_steps": 100, "lr_decay_steps": 100}, "lr_warmup_steps"),
        ({"lr_decay_style": "WSD"}, "wsd_decay_steps"),
        ({"lr_decay_style": "WSD", "wsd_decay_steps": 99}, "wsd_decay_steps"),
    ],
)
def test_impossible_settings_are_named(keys, named):
    with pytest.raises(ConfigError, match=named):
        Schedule.from_keys(lr=1.0, total_steps=100, **keys)


def test_settings_and_description_say_what_it_is():
    schedule = Schedule.from_keys(lr=LR, total_steps=100)
    assert Schedule(**schedule.settings()) == schedule
    assert schedule.describe() == "cosine 0.0006 -> 6e-06, warm-up 10 updates from 6e-05, decay ends at 100"
    assert Schedule(max_lr=2e-4).describe() == "constant 0.0002"


def test_a_short_trial_may_end_within_its_warm_up():
    schedule = Schedule.from_keys(lr=1.0, total_steps=20, lr_warmup_steps=700, init_lr=0.0)
    assert [schedule.lr(done) for done in (0, 7, 19)] == pytest.approx([0.0, 0.01, 19 / 700])


def test_a_trial_shorter_than_its_warmup_is_allowed():
    schedule = Schedule.from_keys(lr=1.0, total_steps=5, lr_warmup_steps=100, init_lr=0.0)
    assert [schedule.lr(step) for step in (0, 4)] == [0.0, 0.04]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"min_lr": 1e-3}, "min_lr 0.001 is above the highest rate 0.0003"),
        ({"init_lr": 1e-3, "lr_warmup_steps": 5}, "init_lr 0.001 is above"),
        ({"lr_warmup_steps": 100}, "the warm-up takes 100 updates, the run has 100"),
        ({"lr_warmup_steps": 200, "lr_decay_steps": 300}, "the warm-up takes 200"),
        ({"lr_decay_steps": 1000}, "lr_decay_steps 1000 is beyond the run's 100 updates"),
    ],
)
def test_settings_that_contradict_each_other_are_said(keys, says):
    notes = contradictions(Schedule.from_keys(lr=3e-4, total_steps=100, **keys), 100)
    assert len(notes) == 1
    assert says in notes[0]


@pytest.mark.parametrize("total", [1, 2, 9, 100])
def test_plain_settings_contradict_nothing(total):
    assert contradictions(Schedule.from_keys(lr=3e-4, total_steps=total), total) == []
    assert contradictions(Schedule(max_lr=3e-4), total) == []
