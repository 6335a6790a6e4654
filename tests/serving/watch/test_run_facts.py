"""What lies in a run folder, and what of it is not believed."""

from __future__ import annotations

import json

import yaml
from tests.serving.watch.conftest import XSS

from automodel_cli.files import exclusive_lock
from automodel_cli.serving.watch.run_facts import RunFacts, flattened, scores_of


def facts_of(folder, plan_of=lambda _: {}):
    facts = RunFacts(folder, plan_of)
    facts.update()
    return facts.value


def test_of_a_real_run(undisturbed):
    found = facts_of(undisturbed.run, lambda path: {"steps": 7, "name": path.name})
    assert found["plan"] == {"steps": 7, "name": "config.yaml"}
    assert found["config"]["checkpoint.checkpoint_dir"] == str(undisturbed.run)
    newest = found["saves"][-1]
    assert newest["step"] == 12 and "LATEST" in newest["marks"] and newest["bytes"] > 0 and newest["loss"] > 0
    assert found["machine"]["versions.torch"] and found["facts"]["batch.global"]
    assert not found["training"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_it_is_looked_at_again_only_where_something_has_changed(tmp_path):
    calls = []
    facts = RunFacts(tmp_path, lambda path: calls.append(path) or {})
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    assert facts.update() and not facts.update() and len(calls) == 1
    (tmp_path / "results.json").write_text('{"loss": 3.5}')
    assert facts.update() and len(calls) == 1
    assert facts.value["results"] == [{"name": "results.json", "scores": {"loss": [3.5, None]}}]
    with exclusive_lock(tmp_path / ".lock", busy="never"):
        assert facts.update() and facts.value["training"]


def test_secrets_are_masked(tmp_path):
    (tmp_path / "config.yaml").write_text("wandb:\n  api_key: abc\nhub:\n  url: https://me:secret@host/x\n")
    config = facts_of(tmp_path)["config"]
    assert "abc" not in str(config) and "secret" not in str(config)


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    run, outside = tmp_path / "run", tmp_path / "outside"
    run.mkdir()
    outside.mkdir()
    (outside / "secret.yaml").write_text("password_of_the_house: 1\n")
    (outside / "results.json").write_text('{"loss": 1.5}')
    (run / "config.yaml").symlink_to(outside / "secret.yaml")
    (run / "results.json").symlink_to(outside / "results.json")
    (run / "step_00000001").symlink_to(outside)
    found = facts_of(run)
    assert found["config"] == {} and found["results"] == [] and found["saves"] == []


def test_damaged_files_are_left_out(tmp_path):
    (tmp_path / "config.yaml").write_text("a: [1, 2")
    (tmp_path / "results_x.json").write_text("{")
    (tmp_path / "branch.json").write_text("[" * 100_000)
    (tmp_path / "LATEST").write_text("nonsense")
    step = tmp_path / "step_00000001"
    step.mkdir()
    (step / "manifest.json").write_text("{}")
    found = facts_of(tmp_path)
    assert (found["config"], found["results"], found["lineage"], found["saves"]) == ({}, [], {}, [])


def test_texts_stay_as_they_are(tmp_path):
    texts = [text for text in XSS if "\ud800" not in text]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"texts": dict(enumerate(texts))}))
    assert list(facts_of(tmp_path)["config"].values()) == texts


def test_flat_and_bounded():
    assert flattened({"a": {"b": 1, "c": {}}, "d": [1, 2], "e": None, "f": True}) == {
        "a.b": "1", "a.c": "{}", "d": "[1, 2]", "e": "null", "f": "true",
    }  # fmt: skip
    assert len(flattened({str(n): n for n in range(10_000)})) == 2000
    assert len(flattened({"a": "x" * 10_000})["a"]) < 600


def test_scores_with_their_errors():
    results = {
        "loss": 3.5,
        "perplexity": float("inf"),
        "tasks": {"arc": {"accuracy": 0.25, "stderr": 0.01, "count": 7}, "odd": {"accuracy": "x", "stderr": 1}},
        "means": {"core": {"score": 0.1, "stderr": None, "tasks": 22}},
        "harness": {"t": {"metrics": {"acc,none": {"value": 0.5, "stderr": 0.2}}}},
    }
    assert scores_of(results) == {
        "loss": [3.5, None],
        "arc": [0.25, 0.01],
        "core": [0.1, None],
        "harness t metrics acc,none": [0.5, 0.2],
    }


def test_numbers_that_python_does_not_write(tmp_path):
    (tmp_path / "config.yaml").write_text(f"a: 0x{'f' * 10_000}\nb: [0x{'f' * 10_000}]\nc: 1\n")
    (tmp_path / "results.json").write_text(f'{{"loss": {"9" * 400}, "x": {{"score": 1, "stderr": {"9" * 400}}}}}')
    found = facts_of(tmp_path)
    assert found["config"] == {"a": "a number of many digits", "b": "a number of many digits", "c": "1"}
    assert found["results"][0]["scores"] == {"x": [1.0, None]}


def test_no_plan_is_made_of_what_is_no_configuration_of_ours(tmp_path):
    calls = []
    (tmp_path / "config.yaml").write_text("\n".join(f"key{i}: {i}" for i in range(3000)))
    assert len(facts_of(tmp_path, lambda path: calls.append(path) or {})["config"]) == 2000 and not calls
    (tmp_path / "config.yaml").write_text("#" * (1 << 20))
    assert facts_of(tmp_path)["config"] == {}


def test_secrets_of_a_branch_are_masked(tmp_path):
    (tmp_path / "branch.json").write_text('{"parent": {"run": "a", "step": 7}, "asked": {"wandb.api_key": "abc"}}')
    lineage = facts_of(tmp_path)["lineage"]
    assert lineage["parent.run"] == "a" and lineage["parent.step"] == "7" and "abc" not in str(lineage)
