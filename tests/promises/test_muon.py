"""Training with muon_adamw is the same on any mesh, and goes on exactly with another number of ranks."""

import pytest
from tests.conftest import write_tokens
from tests.distributed.ranks import run_ranks
from tests.promises.elastic_runs import leg
from tests.promises.spread_runs import LLAMA, QWEN2, train

from automodel_cli.distributed.world import World

STEPS, STOP = 8, 5
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


@pytest.mark.parametrize("first", [{"distributed": {"strategy": "ddp"}}, {}], ids=["ddp", "fsdp2"])
def test_a_run_of_two_ranks_goes_on_in_one_process(folder, alone, first):
    """The state that each rank keeps a share of is whole in the checkpoint."""
    run = f"from {len(first)}"
    began = run_ranks(2, leg, folder, run, STOP, {**BASE, **first})[0]
    assert began["latest"] == f"step_{STOP:08d}"
    rest = leg(World.single(), folder, run, None, BASE)
    assert (began["began"], rest["began"]) == (0, STOP)
    losses = {**began["losses"], **rest["losses"]}
    found = [losses[str(step)] for step in range(1, STEPS + 1)]
    assert found == pytest.approx(alone["gpt2"]["losses"], rel=1e-4)
