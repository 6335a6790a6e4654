"""Random mixtures with changes on the way: killed anywhere, the undisturbed run; on 2 and 4 ranks the same losses.

``make torture`` tries 100 plans, a push a few of them.
"""

from __future__ import annotations

import importlib
import signal
from pathlib import Path

import pytest
from tests.conftest import TinyTraining
from tests.effort import in_a_push
from tests.promises import kill_at
from tests.promises.mixture_plans import ACCEPT, RunOfPlans, draw, write_sources

pytestmark = pytest.mark.usefixtures("one_thread")
PLANS = range(in_a_push(2, of=100))
NO_DROPOUT = {
    "_target_": "automodel_cli.models.gpt2.build_gpt2_model",
    "vocab_size": 64,
    "n_positions": 16,
    "n_embd": 32,
    "n_layer": 1,
    "n_head": 2,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    write_sources(folder)
    return folder


def training(folder: Path, data: Path) -> TinyTraining:
    folder.mkdir()
    return TinyTraining(folder, data)


def undisturbed(run: TinyTraining, plan: RunOfPlans) -> TinyTraining:
    for leg in plan.legs:
        run.recipe(ACCEPT, lr_scheduler={"lr_decay_style": "constant"}, **leg.sections).run_train_validation_loop()
    return run


def train_as_command(run: TinyTraining, plan: RunOfPlans, *arguments: str, kills: bool) -> int:
    """Every leg as the command that a user gives again and again; how many of them were killed."""
    killed = 0
    for leg, instants in zip(plan.legs, plan.kills, strict=True):
        config = run.config(lr_scheduler={"lr_decay_style": "constant"}, **leg.sections)
        for instant in instants if kills else ():
            done = run.train(ACCEPT, kill=instant, config=config)
            assert done.returncode in (0, -signal.SIGKILL), done.stderr
            killed += done.returncode != 0
        done = run.train(ACCEPT, *arguments, config=config)
        assert done.returncode == 0, done.stderr
    return killed


@pytest.mark.parametrize("seed", PLANS)
def test_killed_anywhere_the_run_is_the_undisturbed_one(seed, data, tmp_path):
    plan = draw(seed, data)
    whole = undisturbed(training(tmp_path / "whole", data), plan)
    killed = training(tmp_path / "killed", data)
    train_as_command(killed, plan, kills=True)
    last = plan.legs[-1].last
    assert len(whole.losses()) == last and killed.losses() == whole.losses()
    assert killed.weights(last) == whole.weights(last)


@pytest.mark.parametrize(
    ("seed", "ranks"), [(seed, ranks) for seed in PLANS for ranks in (2, 4)][: in_a_push(1, of=200)]
)
def test_several_ranks_have_the_same_losses(seed, ranks, data, tmp_path):
    plan = draw(seed, data)
    for leg in plan.legs:  # one row at a time: sizes of 4 divide by any number of ranks
        leg.sections["step_scheduler"]["local_batch_size"] = 1
        leg.sections.update(model=NO_DROPOUT, distributed={"strategy": "ddp"})
    one = undisturbed(training(tmp_path / "one", data), plan).losses()
    many = training(tmp_path / "many", data)
    train_as_command(many, plan, "--nproc-per-node", str(ranks), kills=False)
    assert many.losses() == pytest.approx(one, abs=1e-5)


@pytest.mark.parametrize("point", kill_at.POINTS)
def test_where_runs_are_killed_is_there(point):
    module, path = kill_at.POINTS[point]
    owner = importlib.import_module(module)
    for name in path.split("."):
        owner = getattr(owner, name)
    assert callable(owner)
