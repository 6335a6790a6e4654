"""A run whose mixture is changed on the way: stopped anywhere and resumed, it is the undisturbed run, bit for bit."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
from tests.conftest import TinyTraining, write_tokens
from tests.distributed.ranks import run_ranks
from tests.promises.spread_runs import OWN, TRUST, configuration, log_into, on_mesh

from automodel_cli.errors import DataError
from automodel_cli.metrics.log import MetricsLog
from automodel_cli.recipes.pretrain import PretrainRecipe

pytestmark = pytest.mark.usefixtures("one_thread")


def mixture(run: TinyTraining, **weights: float) -> dict[str, object]:
    files = {"train": "train.bin", "val": "val.bin"}
    sources = {name: {"file_pattern": str(run.data / files[name]), "weight": weights[name]} for name in weights}
    return {"_target_": "Mixture", "seq_len": 32, "sources": sources}


def train(run: TinyTraining, *overrides: str, steps: int, stop: bool = False, **weights: float):
    recipe = run.recipe(
        f"step_scheduler.max_steps={steps}",
        *overrides,
        dataset=mixture(run, **weights),
        lr_scheduler={"lr_decay_style": "constant"},
    )
    if stop:
        recipe.stop.name = "SIGTERM"  # heard after the next update
    recipe.run_train_validation_loop()
    return recipe


def test_stopped_before_at_and_after_a_change(tiny_training, tmp_path):
    accept = "checkpoint.accept_data_change=true"
    train(tiny_training, steps=4, train=3, val=1)
    train(tiny_training, accept, steps=9, train=1, val=1)
    stopped = TinyTraining(tmp_path / "stopped", tiny_training.data)
    stopped.folder.mkdir()
    for _ in range(2):
        train(stopped, steps=4, stop=True, train=3, val=1)
    train(stopped, steps=4, train=3, val=1)
    with pytest.raises(DataError, match="the mixture is not that of"):
        train(stopped, steps=9, train=1, val=1)
    changed = train(stopped, accept, steps=9, stop=True, train=1, val=1)
    assert any("goes on" in " ".join(row) for table in changed.tables for row in table)
    train(stopped, steps=9, train=1, val=1)  # the change is in the plan: nothing to accept any more
    assert len(stopped.losses()) == 9 and stopped.losses() == tiny_training.losses()
    assert stopped.weights(9) == tiny_training.weights(9)


WEB_AND_CODE = {
    "_target_": "Mixture",
    "seq_len": 15,
    "sources": {
        "code": {"file_pattern": "code.bin", "weight": 1, "objective_weight": 3},
        "web": {"file_pattern": "web.bin", "weight": 3, "objective_weight": 1},
    },
}
MESHES = {
    "fsdp2": {},
    "ddp": {"distributed": {"strategy": "ddp"}},
    "tp": {"distributed": {"tp_size": 2}},
    "cp": {"distributed": {"cp_size": 2}},
    "own": {"model": OWN},
    "compiled": {"compile": {"enabled": True, "backend": "eager"}},
}


def train_by_source(world, folder, meshes):
    """Records of updates, and of a validation on a mixture, of four updates on each mesh."""
    found = {}
    for name, sections in meshes.items():
        sources = {
            source: {**given, "file_pattern": f"{folder}/{given['file_pattern']}"}
            for source, given in WEB_AND_CODE["sources"].items()
        }
        dataset = {**WEB_AND_CODE, "sources": sources}
        settings = {"dataset": dataset, "validation_dataset": dataset, "step_scheduler": {"max_steps": 4}}
        cfg = configuration(Path(folder), **settings, **sections)
        recipe = PretrainRecipe(cfg, world=on_mesh(world, cfg), trust=TRUST)
        recipe.setup()
        records = []
        keep = mock.patch.object(MetricsLog, "validation", lambda log, record, kept=records: kept.append(record))
        with log_into(records.append), keep:
            recipe.run_train_validation_loop()
        found[name] = records
    return found


def test_losses_by_source_and_weights_of_tokens_are_the_same_on_any_mesh(tmp_path):
    for seed, name in enumerate(("web", "code")):
        write_tokens(tmp_path / f"{name}.bin", tokens=600 + 1000 * seed, seed=seed, vocab_size=61 - 20 * seed)
    (alone,) = run_ranks(1, train_by_source, str(tmp_path), {"fsdp2": {}, "own": MESHES["own"]})
    results = run_ranks(2, train_by_source, str(tmp_path), MESHES, timeout_s=300)
    for name, records in results[0].items():
        expected = alone.get(name, alone["fsdp2"])
        assert len(records) == len(expected) == 8  # two validations of two records
        for record, like in zip(records, expected, strict=True):
            assert record.get("tokens_by_source") == like.get("tokens_by_source"), name
            assert record["loss"] == pytest.approx(like["loss"], abs=1e-5), name
            assert record.get("loss_by_source", {}) == pytest.approx(like.get("loss_by_source", {}), abs=1e-5), name
            assert record.get("grad_norm", 0) == pytest.approx(like.get("grad_norm", 0), rel=1e-4), name
    first, whole, weighted = alone["fsdp2"][2], *alone["fsdp2"][-2:]
    assert first["tokens_by_source"] == {"code": 30, "web": 90}
    losses = first["loss_by_source"]
    assert first["loss"] == pytest.approx((losses["code"] + 3 * losses["web"]) / 4, rel=1e-6)
    assert first["weighted"] == pytest.approx((3 * losses["code"] + losses["web"]) / 4, rel=1e-6)
    assert set(whole["loss_by_source"]) == {"code", "web"} and whole["name"] == "default"
    assert weighted["name"] == "weighted"
    held_out = whole["loss_by_source"]
    assert weighted["loss"] == pytest.approx((3 * held_out["code"] + held_out["web"]) / 4)
