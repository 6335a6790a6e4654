"""Tasks and samples during training: what is logged, and that training goes on as if nothing had been asked."""

from __future__ import annotations

import json

import pytest
import torch
from tests.evaluation.small_bundle import write_bundle

from automodel_cli.checkpoint import layout
from automodel_cli.corpus.tokenizer import ByteTokenizer
from automodel_cli.errors import ConfigError
from automodel_cli.evaluation import span_scores

MODEL = {
    "_target_": "automodel_cli.models.gpt2.build_gpt2_model",
    "vocab_size": 257,
    "n_positions": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "dropout": 0.1,  # training draws random numbers, which an evaluation must not move
}


@pytest.fixture
def sections(tmp_path):
    """Sections of a run whose data is bytes, and an evaluation every four updates."""
    ByteTokenizer().save(tmp_path / "tokenizer")
    return {
        "model": MODEL,
        "tokenizer": str(tmp_path / "tokenizer"),
        "evaluation": {
            "every_steps": 4,
            "tasks": ["copa", "winogrande", "bigbench_repeat_copy_logic", "core"],
            "bundle": str(write_bundle(tmp_path / "bundle")),
            "max_per_task": 3,
            "prompts": ["Ann saw"],
            "max_new_tokens": 5,
        },
    }


def finished(tiny_training, **sections):
    recipe = tiny_training.recipe(fresh=True, **sections)
    recipe.run_train_validation_loop()
    return recipe


def records(tiny_training, kind):
    lines = (tiny_training.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def test_training_goes_on_as_if_nothing_had_been_asked(tiny_training, sections):
    with_it = finished(tiny_training, **sections)
    losses = [record["loss"] for record in records(tiny_training, "train")]
    assert [record["step"] for record in records(tiny_training, "eval")] == [4, 8, 12]
    without = finished(tiny_training, **{**sections, "evaluation": None})
    assert losses == [record["loss"] for record in records(tiny_training, "train")]  # to the last bit
    for one, other in zip(with_it.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(one, other)
    states = [recipe.optimizer.state_dict()["state"] for recipe in (with_it, without)]
    for number, state in states[0].items():
        for name, value in state.items():
            assert torch.equal(value, states[1][number][name])


def test_what_is_logged_and_shown(tiny_training, sections):
    recipe = finished(tiny_training, **sections)
    record = records(tiny_training, "eval")[-1]
    assert 0 <= record["accuracy/copa"] <= 1 and 0 <= record["accuracy/winogrande"] <= 1
    assert record["core_tasks"] == record["evaluated_tasks"] == 5 and record["core"] is not None
    assert record["seconds"] > 0 and record["epoch"] >= 0
    (sample,) = record["samples"]
    assert sample["prompt"] == "Ann saw" and isinstance(sample["text"], str)
    validated = [record["step"] for record in records(tiny_training, "val")]
    assert {4, 8, 12} <= set(validated)  # an evaluation begins with the validation loss
    assert any(line.startswith("[sample] 'Ann saw'") for line in recipe.said)
    assert any(line.startswith("[eval] step 12") and "core" in line for line in recipe.said)
    assert any("no data for" in line and "hellaswag" in line for line in recipe.said)
    assert any(row[0] == "copa" for table in recipe.tables for row in table)


def test_a_signal_ends_an_evaluation_and_is_answered(tiny_training, sections, monkeypatch):
    recipe = tiny_training.recipe(fresh=True, **sections)
    score = span_scores.SpanScorer.score

    def interrupted(self, *arguments, **options):
        recipe.stop.name = "SIGTERM"
        return score(self, *arguments, **options)

    monkeypatch.setattr(span_scores.SpanScorer, "score", interrupted)
    result = recipe.run_train_validation_loop()
    assert result.exit_code == 75 and result.step == 4
    assert layout.list_steps(tiny_training.run) and not records(tiny_training, "eval")
    assert recipe.model.training is True or not any(m.training for m in recipe.model.modules())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"evaluation": {"tasks": "copa", "bundle": "nowhere"}}, "no task data at nowhere"),
        ({"evaluation": {"tasks": "coppa"}}, "coppa"),
        ({"evaluation": {"tasks": "copa,chatcore"}}, "chatcore is not asked during training"),
        ({"tokenizer": None}, "without a tokenizer"),
    ],
)
def test_what_is_wrong_is_said_before_training(tiny_training, sections, change, said):
    given = {key: {**sections[key], **value} if isinstance(value, dict) else value for key, value in change.items()}
    with pytest.raises(ConfigError) as error:
        tiny_training.recipe(fresh=True, **{**sections, **given})
    assert said in error.value.message
