"""Packed rows are trained on as padded ones are, and a run that packs goes on exactly where it stopped."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from tests.distributed.ranks import run_ranks
from tests.models.layers.test_document_attention import MODELS, build
from tests.promises.packed_runs import TRUST, configuration, row
from tests.promises.spread_runs import log_into, weights_hash

from automodel_cli.assembly.reporter import Reporter
from automodel_cli.batch import IGNORE_INDEX
from automodel_cli.config.load import load_config
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.data.collate import default_collate
from automodel_cli.data.packing import batch_of_packs, best_fit, row_of
from automodel_cli.errors import AutomodelError, ConfigError
from automodel_cli.recipes.pretrain import PretrainRecipe
from automodel_cli.train.losses import MaskedCrossEntropy

pytestmark = pytest.mark.usefixtures("one_thread")


# ---------------------------------------------------------------------------------- against padding


def nll_by_row(model, batch):
    """Loss of each label token, [label tokens], in the order of rows."""
    logits = model(batch)
    losses = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), batch.labels, ignore_index=IGNORE_INDEX, reduction="none"
    )
    return losses[batch.labels != IGNORE_INDEX]


@pytest.mark.parametrize("name", MODELS)
def test_loss_of_each_token_and_gradients_are_those_of_padding(name):
    model, items = build(name), [row(number) for number in range(40)]
    rows = [row_of(item) for item in items]
    packs = best_fit([len(one) for one in rows], 64)
    order = [number for pack in packs for number in pack]
    packed = batch_of_packs([[rows[number] for number in pack] for pack in packs], 64)
    padded = default_collate([items[number] for number in order])
    assert len(packs) < len(rows) / 3
    torch.testing.assert_close(nll_by_row(model, packed), nll_by_row(model, padded), atol=1e-5, rtol=1e-5)

    found = []
    for batch in (packed, padded):
        model.zero_grad()
        loss = model(batch, head_loss=MaskedCrossEntropy()) / (batch.labels != IGNORE_INDEX).sum()
        loss.backward()
        found.append([loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_models_that_cannot_keep_rows_apart_say_why(tmp_path):
    own = {"_target_": f"{Path(__file__).with_name('own_model.py')}:OwnModel", "vocab_size": 61, "width": 16}
    mamba = {
        "_target_": "transformers.AutoModelForCausalLM.from_config",
        "config": {"_target_": "transformers.MambaConfig", "vocab_size": 61, "hidden_size": 8},
    }
    mamba["config"] |= {"num_hidden_layers": 1, "state_size": 4}
    bloom = {**mamba, "config": {"_target_": "transformers.BloomConfig", "vocab_size": 61, "hidden_size": 8}}
    bloom["config"] |= {"n_layer": 1, "n_head": 2}
    for model, why in (
        (own, "its forward takes no mask"),
        (mamba, "carries a state from token to token"),
        (bloom, "takes no position_ids"),
    ):
        with pytest.raises(ConfigError, match=f"cannot keep documents in one row apart: .*{why}"):
            recipe(configuration(tmp_path, "Rows", model=model)).plan()


# --------------------------------------------------------------------------------------------- runs


def recipe(path, *overrides, world=None):
    own_model = str(Path(__file__).with_name("own_model.py"))
    trust = (*TRUST, own_model)
    said, shown = [], {}
    cfg = load_config(PretrainConfig, path, list(overrides), trust=trust)
    reporter = Reporter(say=said.append, table=lambda title, rows: shown.update(rows))
    one = PretrainRecipe(cfg, trust=trust, reporter=reporter, world=world)
    one.said, one.shown = said, shown
    return one


def trained(one, checkpoint=None):
    """Losses of the updates that ``one`` does, and the hash of the weights after the last."""
    one.setup()
    if checkpoint:
        one.load_checkpoint(str(checkpoint))
    losses = {}
    with log_into(lambda record: losses.update({record["step"]: record["loss"]})):
        one.run_train_validation_loop()
    return losses, weights_hash(one.model)


@pytest.mark.parametrize(
    ("dataset", "sections", "stops"),
    [
        ("Rows", {"dataloader": {"shuffle": True}}, [2, 6]),
        ("Rows", {"dataloader": {"shuffle": True, "num_workers": 2}}, [4]),
        ("Stateful", {}, [2, 6]),
        ("Sharded", {}, [4]),
    ],
)
def test_stopped_and_resumed_equals_undisturbed(tmp_path, dataset, sections, stops):
    losses, weights = trained(recipe(configuration(tmp_path, dataset, **sections)))
    assert list(losses) == list(range(1, 9))
    for stop in stops:
        elsewhere = f"checkpoint.checkpoint_dir={tmp_path}/from{stop}"
        again = recipe(tmp_path / "config.yaml", elsewhere)
        checkpoint = tmp_path / "run" / f"step_{stop:08d}"
        assert (checkpoint / "loader.json").stat().st_size < 2000
        rest = {step: loss for step, loss in losses.items() if step > stop}
        assert trained(again, checkpoint) == (rest, weights)


def stop_and_resume(world, folder):
    """Losses and weights of an undisturbed run and of a resumed one, by data set."""
    found = {}
    for dataset in ("Rows", "Stateful", "Sharded"):
        place = Path(folder, dataset)
        place.mkdir(exist_ok=True)
        world.barrier()
        path = configuration(place, dataset) if world.is_main else place / "config.yaml"
        world.barrier()
        whole, weights = trained(recipe(path, world=world))
        elsewhere = f"checkpoint.checkpoint_dir={place}/resumed"
        rest = trained(recipe(path, elsewhere, world=world), place / "run" / "step_00000006")
        found[dataset] = [[*whole.values()], weights, [*rest[0].values()], rest[1]]
    return found


def test_two_ranks_resume_exactly_and_are_one_run():
    with tempfile.TemporaryDirectory() as folder:
        by_rank = run_ranks(2, stop_and_resume, folder)
        for dataset, (losses, weights, rest, resumed) in by_rank[0].items():
            assert len(losses) == 8, dataset
            assert rest == losses[6:], dataset
            assert resumed == weights == by_rank[1][dataset][1], dataset


def test_data_that_ends_early_is_saved(tmp_path):
    """Epochs of an iterable data set cannot be counted: its end is the run's."""
    scheduler = {"max_steps": 100, "num_epochs": 1, "ckpt_every_steps": "final"}
    one = recipe(configuration(tmp_path, "Stateful", step_scheduler=scheduler), "checkpoint.save_consolidated=final")
    losses, _ = trained(one)
    last = max(losses)
    assert last < 100
    assert any(f"the data ended after step {last} of 100" in line for line in one.said)
    assert (tmp_path / "run" / "LATEST").read_text().startswith(f"step_{last:08d}")
    assert (tmp_path / "run" / f"step_{last:08d}" / "hf" / "config.json").is_file()
    # A save that fell due there anyway did not know yet that it was the last.
    often = {**scheduler, "ckpt_every_steps": last}
    path = configuration(tmp_path, "Stateful", step_scheduler=often)
    trained(recipe(path, "checkpoint.save_consolidated=final", f"checkpoint.checkpoint_dir={tmp_path}/often"))
    assert (tmp_path / "often" / f"step_{last:08d}" / "hf" / "config.json").is_file()


# ---------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("dataset", "sections", "message"),
    [
        ("Rows", {"packed_sequence": {"packed_sequence_size": 32}}, "longer than the model's context of 24"),
        (
            "Rows",
            {"packed_sequence": {"packed_sequence_size": 8, "drop_long_samples": False}},
            r"row \d+ of the data has \d+ tokens, packed_sequence_size is 8",
        ),
        ("Stateful", {"step_scheduler": {"max_steps": None}}, "set step_scheduler.max_steps"),
        ("Rows", {"packed_sequence": {"packed_sequence_size": 1}}, "can be packed|global batch"),
    ],
)
def test_dry_run_refuses_what_cannot_be_packed(tmp_path, dataset, sections, message):
    with pytest.raises(AutomodelError, match=message):
        recipe(configuration(tmp_path, dataset, **sections)).plan()


def test_token_files_have_nothing_to_pack(tiny_training):
    with pytest.raises(ConfigError, match="reads token files in full windows, there is nothing to pack"):
        tiny_training.recipe(packed_sequence={"packed_sequence_size": 32})


def test_the_plan_says_how_full_packs_are(tmp_path):
    plans = []
    for scheduler, processes in (({"max_steps": None}, 1), ({"max_steps": None}, 2), ({}, 1)):
        one = recipe(configuration(tmp_path, "Rows", step_scheduler=scheduler))
        one.plan(processes)
        plans.append(one.shown["packing"])
    counted, counted_for_two, looked_at = plans
    assert counted == counted_for_two == looked_at.removeprefix("first ")
    assert "packs of 24 tokens" in counted
    assert "filled by 60 rows" in counted
