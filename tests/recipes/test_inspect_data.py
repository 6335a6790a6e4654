"""What inspect-data says a run was trained on, against the batches that the run has had."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from tests.conftest import TinyTraining, write_tokens

from automodel_cli.config.schema.results import InspectDataConfig
from automodel_cli.errors import CheckpointError, ConfigError, DataError
from automodel_cli.recipes import inspect_data
from automodel_cli.recipes.pretraining import loop
from automodel_cli.serving.watch.runs import RunSet

pytestmark = pytest.mark.usefixtures("one_thread")
CONSTANT = {"lr_decay_style": "constant"}


@pytest.fixture
def seen(monkeypatch) -> dict[int, list[list[int]]]:
    """Step -> the rows of its batch, as training had them."""
    rows: dict[int, list[list[int]]] = {}
    honest = loop.one_update

    def one_update(progress, microbatches):
        rows[progress.run.state.step + 1] = [row.tolist() for batch in microbatches for row in batch.input_ids]
        return honest(progress, microbatches)

    monkeypatch.setattr(loop, "one_update", one_update)
    return rows


def shown(path, **what) -> dict:
    return inspect_data.run(InspectDataConfig(run=str(path), full=True, **what))


def ids(found: dict) -> list[list[int]]:
    return [row["ids"][:-1] for row in found["rows"]]


def from_files(found: dict) -> list[list[int]]:
    """The same rows, read by hand from where they are said to lie."""
    rows = []
    for row in found["rows"]:
        pieces = [(piece["file"], piece["first_token"], piece["end_token"]) for piece in row["pieces"]]
        tokens = [np.fromfile(file, "<u2", offset=1024)[first:end] for file, first, end in pieces]
        rows.append(np.concatenate(tokens).tolist())
    return rows


def mixture(run: TinyTraining, **weights: float) -> dict[str, object]:
    files = {"train": "train.bin", "val": "val.bin"}
    sources = {name: {"file_pattern": str(run.data / files[name]), "weight": weights[name]} for name in weights}
    return {"_target_": "Mixture", "seq_len": 32, "sources": sources}


def test_every_step_of_a_run_that_went_on_with_other_batches(tiny_training, seen):
    sizes = {"global_batch_size": 12}
    tiny_training.recipe("step_scheduler.max_steps=4", lr_scheduler=CONSTANT).run_train_validation_loop()
    resumed = tiny_training.recipe("step_scheduler.max_steps=7", lr_scheduler=CONSTANT, step_scheduler=sizes)
    resumed.run_train_validation_loop()
    assert [len(seen[step]) for step in (4, 5)] == [8, 12]
    for step, rows in seen.items():
        found = shown(tiny_training.run, step=step)
        assert ids(found) == rows and found["trained"]
        assert from_files(found) == [row["ids"] for row in found["rows"]]
    later = shown(tiny_training.run, step=9)
    assert not later["trained"] and later["first_sample"] == 4 * 8 + 4 * 12
    assert ids(shown(tiny_training.run / "step_00000004", step=3)) == seen[3]
    assert ids(shown(tiny_training.folder / "config.yaml", step=1))[:8] == seen[1]  # which has 12 an update now


def test_documents_are_those_of_the_index(tiny_training, seen):
    tiny_training.recipe("step_scheduler.max_steps=2").run_train_validation_loop()
    for row in shown(tiny_training.run, step=2)["rows"]:
        (piece,) = row["pieces"]
        first, last = piece["first_token"] // 50, (piece["end_token"] - 1) // 50  # write_tokens: one each 50 tokens
        assert piece["documents"] == [{"number": n, "start": 50 * n} for n in range(first, last + 1)]


def test_a_mixture_before_and_after_it_was_changed(tiny_training, seen):
    def train(steps: int, *overrides: str, **weights: float) -> None:
        recipe = tiny_training.recipe(
            f"step_scheduler.max_steps={steps}",
            *overrides,
            dataset=mixture(tiny_training, **weights),
            lr_scheduler=CONSTANT,
        )
        recipe.run_train_validation_loop()

    train(4, train=3, val=1)
    train(9, "checkpoint.accept_data_change=true", train=1, val=1)
    for step, rows in seen.items():
        found = shown(tiny_training.run, step=step)
        assert ids(found) == rows
        names = [{piece["source"] for piece in row["pieces"]} for row in found["rows"]]
        assert names.count({"val"}) == (2 if step <= 4 else 4)
    newest = tiny_training.run / "step_00000009"  # knows the mixture before by its history
    assert all(ids(shown(newest, step=step)) == rows for step, rows in seen.items())
    train(12, "checkpoint.accept_data_change=true", train=1)
    with pytest.raises(DataError, match="of source val too, which is there no more"):
        shown(tiny_training.run / "step_00000012", step=7)
    assert ids(shown(tiny_training.run, step=7)) == seen[7]  # a checkpoint of then is there
    (watched,) = RunSet([tiny_training.run]).find()
    events = [event for event in watched.read_all().details()["events"] if event["kind"] == "data"]
    assert [(event["step"], event["text"]) for event in events] == [(5, "train 0.5, val 0.5"), (10, "train 1")]
    assert all(event["time"] for event in events)


def test_rows_of_a_rank(tiny_training, seen):
    tiny_training.recipe("step_scheduler.max_steps=1").run_train_validation_loop()
    assert ids(shown(tiny_training.run, step=1, rank=0)) == seen[1]
    with pytest.raises(ConfigError, match="rank 1: the run has 1 data-parallel ranks"):
        shown(tiny_training.run, step=1, rank=1)
    assert inspect_data._of_rank(2, 40, 48, ranks=4) == (44, 46)


def test_samples_by_number(tiny_training, seen):
    tiny_training.recipe("step_scheduler.max_steps=2").run_train_validation_loop()
    found = shown(tiny_training.run, samples="8:16")
    assert ids(found) == seen[2] and found["step"] is None
    with pytest.raises(ConfigError, match="samples 9:9 are 0"):
        shown(tiny_training.run, samples="9:9")
    with pytest.raises(ValueError, match="give `step` or `samples`"):
        InspectDataConfig(run="a")


def test_what_is_no_run(tmp_path):
    with pytest.raises(CheckpointError, match="there is no"):
        shown(tmp_path / "absent", step=1)
    with pytest.raises(CheckpointError, match="is no run folder"):
        shown(tmp_path, step=1)


def test_other_data_than_the_checkpoints(tmp_path, tiny_tokens):
    run = TinyTraining(tmp_path, tmp_path / "data")
    shutil.copytree(tiny_tokens, run.data)
    run.recipe("step_scheduler.max_steps=1").run_train_validation_loop()
    write_tokens(run.data / "train.bin", tokens=20_000, seed=5)
    with pytest.raises(DataError, match="trained on other data"):
        shown(run.run, step=1)
