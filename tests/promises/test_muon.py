"""Training with muon_adamw is the same on any mesh, and goes on exactly with another number of ranks."""

import pytest
from tests.conftest import write_tokens
from tests.distributed.ranks import run_ranks
from tests.promises.elastic_runs import leg
from tests.promises.spread_runs import LLAMA, QWEN2, train

from automodel_cli.distributed.world import World

STEPS = 8
LEGS, LAST_LEG = (2, 4), 6  # after which updates a run is stopped
MUON = {
    "_target_": "muon_adamw",
    "lr": 0.02,
    "scalar_lr": 0.01,
    "weight_decay": 0.1,
    "cautious_weight_decay": True,
    "normuon_beta2": 0.95,
    "momentum_start": 0.85,
    "momentum_warmup_steps": 4,
    "orthogonalization_dtype": "float32",
}
BASE = {"optimizer": MUON, "step_scheduler": {"max_steps": STEPS}}
ALONE = {"gpt2": BASE, "llama": {**BASE, "model": LLAMA}, "qwen2": {**BASE, "model": QWEN2}}
TWO_RANKS = {
    "gpt2, ddp": {**BASE, "distributed": {"strategy": "ddp"}},
    "llama, fsdp2": {**ALONE["llama"]},
    "qwen2, tp": {**ALONE["qwen2"], "distributed": {"tp_size": 2}},
}
FOUR_RANKS = {"gpt2, hsdp": {**BASE, "distributed": {"dp_replicate_size": 2}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("muon")
    write_tokens(folder / "train.bin", tokens=5_000, seed=0, vocab_size=61)
    write_tokens(folder / "val.bin", tokens=500, seed=1, vocab_size=61)
    return str(folder)


@pytest.fixture(scope="module")
def alone(folder):
    return train(World.single(), folder, ALONE, STEPS)


@pytest.mark.parametrize(("ranks", "runs"), [(2, TWO_RANKS), (4, FOUR_RANKS)])
def test_losses_and_norms_are_those_of_one_process(folder, alone, ranks, runs):
    for name, found in run_ranks(ranks, train, folder, runs, STEPS)[0].items():
        expected = alone[name.partition(",")[0]]
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4), name
        assert found["norms"] == pytest.approx(expected["norms"], rel=1e-3), name


def two_meshes(world, folder):
    """The first legs of a run: FSDP2's shards, then whole weights on every rank."""
    meshes = zip(LEGS, ({}, {"distributed": {"strategy": "ddp"}}), strict=True)
    return [leg(world, folder, "chain", until, {**BASE, **mesh}) for until, mesh in meshes]


def test_fsdp2_then_ddp_then_one_process_then_four_ranks(folder, alone):
    """The state that each rank keeps a share of is whole in the checkpoint, which knows of no ranks."""
    began = run_ranks(2, two_meshes, folder)[0]
    (one,) = run_ranks(1, leg, folder, "chain", LAST_LEG, BASE)
    four = run_ranks(4, leg, folder, "chain", None, FOUR_RANKS["gpt2, hsdp"])[0]
    parts = [*began, one, four]
    assert [part["began"] for part in parts] == [0, *LEGS, LAST_LEG]
    losses = {step: loss for part in parts for step, loss in part["losses"].items()}
    found = [losses[str(step)] for step in range(1, STEPS + 1)]
    assert found == pytest.approx(alone["gpt2"]["losses"], rel=1e-4)
