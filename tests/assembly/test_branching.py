"""The configuration of a branch: what follows from the trunk's length is held fast, and what cannot be is refused."""

from dataclasses import replace
from fractions import Fraction

import pytest
from tests.conftest import TinyTraining

from automodel_cli.assembly.branching import branch_config, changes_of, cooldown_steps, goes_another_way, read_trunk
from automodel_cli.config.schema.options import BranchOptions
from automodel_cli.errors import CheckpointError, ConfigError
from automodel_cli.train.schedules import Schedule

WSD = {"lr_decay_style": "WSD", "wsd_decay_steps": 2, "start_wd": 0.1, "end_wd": 0.2, "wd_incr_style": "linear"}


@pytest.fixture(scope="module")
def trunk(tmp_path_factory, tiny_tokens):
    """The checkpoint of update 4 of 8."""
    tiny = TinyTraining(tmp_path_factory.mktemp("trunk"), tiny_tokens)
    scheduler = {"max_steps": 8, "max_tokens": None, "ckpt_every_steps": 4, "val_every_steps": None}
    recipe = tiny.recipe(lr_scheduler=WSD, step_scheduler=scheduler)
    recipe.run_train_validation_loop()
    return read_trunk(tiny.run / "step_00000004")


def options(**more) -> BranchOptions:
    return BranchOptions(run="run", into="branch", **more)


def config(trunk, *overrides, **more):
    return branch_config(trunk, options(**more), overrides, {"checkpoint.checkpoint_dir": "branch"})


@pytest.mark.parametrize("step", [1, 3, 10, 700, 12_345, 10**9])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 1 / 3, 0.5, 0.9])
def test_a_cooldown_is_that_share_of_the_whole(step, share):
    """The smallest number of updates that is at least the share, in exact arithmetic."""
    found, exact = cooldown_steps(step, options(cooldown=share)), Fraction(str(share))
    assert Fraction(found, step + found) >= exact > Fraction(found - 1, step + found - 1)


def test_a_cooldown_begins_at_the_checkpoint_and_the_past_stays(trunk):
    cfg = config(trunk, cooldown=0.5, shape="linear")
    schedule = Schedule.from_keys(
        lr=0.01,
        total_steps=cfg.step_scheduler.max_steps,
        weight_decay=0.0,
        **cfg.lr_scheduler.model_dump(exclude={"use_checkpoint_opt_param_scheduler", "override_opt_param_scheduler"}),
    )
    assert cfg.step_scheduler.max_steps == 8 and not goes_another_way(trunk, schedule)
    assert [schedule.lr(done) == 0.01 for done in (3, 4, 5)] == [True, True, False]
    assert schedule.lr(7) == pytest.approx(0.0001 + 0.25 * (0.01 - 0.0001))
    assert [schedule.wd(done) for done in range(4)] == [trunk.schedule.wd(done) for done in range(4)]


def test_only_what_changes_is_told(trunk):
    """Warm-up and the rise of the weight decay are written out, which changes nothing."""
    cfg = config(trunk, "--step_scheduler.max_steps", "20")
    assert (cfg.lr_scheduler.lr_warmup_steps, cfg.lr_scheduler.wd_incr_steps) == (0, 8)
    assert changes_of(trunk, cfg) == ["step_scheduler.max_steps: 8 -> 20"]


def test_where_things_go_is_not_taken_over(trunk):
    wandb = {"project": "p", "id": "abc"}
    checkpoint = trunk.cfg.checkpoint.model_copy(update={"push_to_hub": "me/model", "restore_from": "elsewhere"})
    changed = trunk.cfg.model_copy(update={"checkpoint": checkpoint})
    cfg = config(replace(trunk, cfg=changed), f"--wandb={wandb}", cooldown_steps=2)
    assert cfg.checkpoint.push_to_hub is None and cfg.checkpoint.restore_from is None
    assert cfg.checkpoint.checkpoint_dir == "branch"


@pytest.mark.parametrize(
    ("schedule", "step", "why"),
    [
        ({"style": "cosine"}, 4, "its schedule is cosine"),
        ({"style": "inverse-square-root"}, 4, "inverse-square-root, which falls"),
        ({"warmup_steps": 6}, 4, "it warms up until step 6"),
        ({"wsd_decay_steps": 6}, 4, "its own decay has begun after step 3"),
        ({"wsd_decay_steps": 2, "decay_steps": 4}, 4, "take a step up to 3"),
    ],
)
def test_no_cooldown_of_a_rate_that_moves(trunk, schedule, step, why):
    other = replace(trunk, schedule=replace(trunk.schedule, **schedule), step=step)
    with pytest.raises(CheckpointError) as caught:
        config(other, cooldown=0.2)
    assert why in f"{caught.value.message} {caught.value.hint}"


def test_the_last_step_before_the_decay_will_do(trunk):
    edge = replace(trunk, schedule=replace(trunk.schedule, wsd_decay_steps=5))  # update 4 was the last at full height
    assert config(edge, cooldown_steps=1).step_scheduler.max_steps == 5
    constant = replace(trunk, schedule=replace(trunk.schedule, style="constant"))
    assert config(constant, cooldown_steps=1).lr_scheduler.lr_decay_style == "WSD"


@pytest.mark.parametrize(
    ("overrides", "more", "message"),
    [
        (["--step_scheduler.max_steps", "4"], {}, "would end with step 4, and begins after step 4"),
        (["--checkpoint.restore_from", "x"], {"cooldown": 0.2}, "restore_from"),
        (["--checkpoint.enabled", "false"], {"cooldown": 0.2}, "a branch is a run with checkpoints"),
        (["--lr_scheduler.wsd_decay_steps", "3"], {"cooldown": 0.5}, "--cooldown decides lr_scheduler.wsd_decay_steps"),
        (["--lr_scheduler.lr_wsd_decay_style", "linear"], {"cooldown": 0.5, "shape": "cosine"}, "lr_wsd_decay_style"),
        (["--step_scheduler.max_steps", "9"], {"cooldown": 0.5}, "--cooldown decides step_scheduler.max_steps"),
    ],
)
def test_contradictions_are_refused(trunk, overrides, more, message):
    with pytest.raises(ConfigError, match=message):
        config(trunk, *overrides, **more)


@pytest.mark.parametrize("given", [{"cooldown": 0.2, "cooldown_steps": 3}, {"shape": "linear"}, {"cooldown": 1.0}])
def test_options_that_contradict_each_other(given):
    with pytest.raises(ValueError, match=r"cooldown|less than 1"):
        options(**given)


def test_a_senseless_schedule_of_a_checkpoint_is_an_error(trunk):
    for wrong in ({"style": "spiral"}, {"wsd_style": "?", "wsd_decay_steps": 7}):
        other = replace(trunk, schedule=replace(trunk.schedule, **wrong))
        with pytest.raises(CheckpointError, match="makes no sense"):
            goes_another_way(other, trunk.schedule)
    assert goes_another_way(replace(trunk, step=10**15), Schedule(max_lr=0.02))  # and takes no time
