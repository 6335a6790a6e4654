"""Losses by source of a run: NeMo's domains, held-out files by source, losses that cannot tell, best by the mean."""

from __future__ import annotations

import numpy as np
import pytest
from tests.conftest import TinyTraining
from tests.token_files import write_megatron_file

from automodel_cli.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def blend(tmp_path):
    """Sections of a run on two Megatron files, with domains and a validation set for each."""
    for number, name in enumerate(("web", "code")):
        ids = np.cumsum(np.random.default_rng(number).integers(0, 3 + 4 * number, 4000)) % 64
        write_megatron_file(
            tmp_path / name, [[ids[at : at + 100].tolist()] for at in range(0, 4000, 100)], dtype="int32"
        )
    kind = {"_target_": "MegatronPretraining", "seq_length": 32, "split": "90,10,0"}
    weights = {"web": (3, 1), "code": (1, 3)}
    held_out = {"splits_to_build": "validation", "order": "file"}
    return {
        "dataset": {**kind, "paths": [str(tmp_path / name) for name in weights]},
        "domain_mixture": {
            "domains": [
                {"name": name, "sampling_weight": read, "objective_weight": wanted, "path": str(tmp_path / name)}
                for name, (read, wanted) in weights.items()
            ]
        },
        "validation_dataset": None,
        **{f"validation_dataset_{name}": {**kind, **held_out, "paths": str(tmp_path / name)} for name in weights},
    }


def run_of(folder: TinyTraining, *overrides: str, **sections):
    recipe = folder.recipe("step_scheduler.max_steps=4", "model.dropout=0", *overrides, **sections)
    return recipe, recipe.run_train_validation_loop()


def test_domains_are_reported_and_their_mean_decides_what_is_best(tiny_training, blend):
    recipe, result = run_of(tiny_training, "checkpoint.best_metric_key=weighted", **blend)
    for record in tiny_training.records():
        losses, tokens = record["loss_by_source"], record["tokens_by_source"]
        assert sum(tokens.values()) == record["num_label_tokens"] == 256
        assert record["loss"] == pytest.approx(sum(losses[name] * tokens[name] for name in tokens) / 256, rel=1e-6)
        assert record["weighted"] == pytest.approx((losses["web"] + 3 * losses["code"]) / 4)
    assert sum(record["tokens_by_source"]["web"] for record in tiny_training.records()) == 3 * 256
    assert set(result.val_losses) == {"web", "code", "weighted"}
    mean = (result.val_losses["web"] + 3 * result.val_losses["code"]) / 4
    assert result.val_losses["weighted"] == pytest.approx(mean)
    best = [record["name"] for record in tiny_training.records("val") if record["best"]]
    assert set(best) == {"weighted"} and recipe.state.best_val_loss == result.val_losses["weighted"]


def test_domains_read_what_a_blend_of_these_weights_reads_and_train_for_another_mean(tiny_training, blend, tmp_path):
    recipe, _ = run_of(tiny_training, **blend)
    domains = blend.pop("domain_mixture")["domains"]
    paths = [item for domain in domains for item in (str(domain["sampling_weight"]), domain["path"])]
    plain = TinyTraining(tmp_path / "plain", tiny_training.data)
    plain.folder.mkdir()
    other, _ = run_of(plain, **{**blend, "dataset": {**blend["dataset"], "paths": paths}})
    assert recipe.loader.plan == other.loader.plan
    first, other_first = tiny_training.records()[0], plain.records()[0]
    assert first["loss"] == other_first["loss"] and first["grad_norm"] != other_first["grad_norm"]
    assert "weighted" not in other_first


@pytest.mark.parametrize("name", ["web", "weighted"])
def test_what_cannot_be_weighted_is_refused_or_said(tiny_training, blend, name):
    if name == "weighted":
        blend["validation_dataset_weighted"] = blend["validation_dataset_web"]
        with pytest.raises(ConfigError, match="'weighted' is the name of the mean"):
            run_of(tiny_training, **blend)
        return
    loss = {"loss_fn": {"_target_": "torch.nn.CrossEntropyLoss"}}
    with pytest.raises(ConfigError, match="CrossEntropyLoss gives one sum"):
        run_of(tiny_training, **blend, **loss)
    del blend["validation_dataset_code"]
    recipe, result = run_of(tiny_training, **blend)
    assert "note: no weighted validation loss: there is no validation_dataset_code" in recipe.said
    assert list(result.val_losses) == ["web"]


def test_a_loss_that_cannot_tell_says_so_once(tiny_training):
    sources = {
        name: {"file_pattern": str(tiny_training.data / f"{name}.bin"), "weight": 1} for name in ("train", "val")
    }
    sections = {
        "dataset": {"_target_": "Mixture", "seq_len": 32, "sources": sources},
        "validation_dataset": None,
        "validation_sources": {"val": sources["val"]["file_pattern"]},
        "loss_fn": {"_target_": "torch.nn.CrossEntropyLoss"},
    }
    recipe, result = run_of(tiny_training, **sections)
    assert recipe.said.count("note: no loss by source: CrossEntropyLoss gives only the sum over all tokens") == 1
    assert "loss_by_source" not in tiny_training.records()[0] and list(result.val_losses) == ["val"]
