"""Results of an evaluation: a file for each, none over another's, none in folders of others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from automodel_cli.assembly.scoring import results_file
from automodel_cli.checkpoint.checkpointer import Checkpointer
from automodel_cli.checkpoint.hf.export import save_hf
from automodel_cli.cli import app
from automodel_cli.errors import ConfigError
from automodel_cli.models.gpt2 import build_gpt2_model


def found(*names: str, fingerprint: str = "a", seq_len: int = 8, **settings) -> dict:
    return {
        "format": "automodel-results/1",
        "checkpoint": {"path": "x", "step": 7, "fingerprint": fingerprint},
        "settings": {"seq_len": seq_len, "batch_size": 8, "device": "cpu", **settings},
        "sets": [{"data": name, "fingerprint": f"of {name}", "loss": 1.0} for name in names],
        "loss": 1.0,
    }


@pytest.fixture
def step(tmp_path) -> Path:
    model = build_gpt2_model(vocab_size=31, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    model.init_weights(0)
    arguments = {"state": {}, "loader_state": {}, "config_yaml": "", "facts": {"model": model.model_config()}}
    save_hf(model, tmp_path / "export")
    return Checkpointer(tmp_path / "run").save(7, model=model, optimizer=None, consolidate=True, **arguments)


def test_each_data_set_has_a_file_and_the_same_evaluation_keeps_its_own(step):
    def put(*names, **changes):
        return results_file.store(found(*names, **changes), None, step, names).name

    first = "results_step_00000007_val.json"
    assert put("data/val.bin") == first
    before = (step.parent / first).read_bytes()
    assert put("data/test.bin") == "results_step_00000007_test.json"
    assert put("data/val.bin", "test.bin") == "results_step_00000007_val+test.json"
    assert put("elsewhere/val.bin") == "results_step_00000007_val-2.json"
    assert put("data/val.bin", seq_len=4) == "results_step_00000007_val-3.json"
    assert put("data/val.bin", fingerprint="b") == "results_step_00000007_val-4.json"
    assert (step.parent / first).read_bytes() == before
    assert put("data/val.bin", batch_size=1, device="cuda") == first  # other settings of speed only
    assert json.loads((step.parent / first).read_text())["settings"]["batch_size"] == 1


@pytest.mark.parametrize("content", ["", "[]", '{"format": 3}', '{"sets": [1]}', "\xff"])
def test_a_file_that_is_no_result_is_left_alone(step, content):
    path = step.parent / "results_step_00000007_val.json"
    path.write_text(content, encoding="latin-1")
    assert results_file.store(found("val"), None, step, ["val"]).name == "results_step_00000007_val-2.json"
    assert path.read_text(encoding="latin-1") == content


def test_a_sealed_step_is_never_written_into(step, monkeypatch):
    listing = sorted(step.rglob("*"))
    path = results_file.store(found("val"), None, step / "hf", ["val"])
    assert path == step.parent / "results_step_00000007_val.json"
    monkeypatch.chdir(step)
    assert results_file.store(found("test"), None, Path("hf"), ["test"]).resolve().parent == step.parent
    assert sorted(step.rglob("*")) == listing


def test_folders_of_others_are_left_alone(step, tmp_path):
    export = tmp_path / "export"
    assert results_file.store(found("val"), None, export, ["val"]) == export / "results_val.json"
    cached = tmp_path / "hub/models--me--x/snapshots/1"
    cached.parent.mkdir(parents=True)
    export.rename(cached)
    foreign = tmp_path / "downloads"
    foreign.mkdir()
    lonely = step.rename(foreign / step.name)
    for folder in (cached, foreign, lonely):
        before = sorted(folder.rglob("*"))
        assert results_file.store(found("test"), None, folder, ["test"]) is None
        assert sorted(folder.rglob("*")) == before
    asked = tmp_path / "deep/o.json"
    results_file.check_output(str(asked))
    assert results_file.store(found("test"), str(asked), foreign, ["test"]) == asked and asked.is_file()


def test_names_become_parts_of_file_names():
    assert results_file.label(["a b/\u00e9t\u00e9 \x1b[1m*.bin"]) == "t-1m"
    assert results_file.label(["///"]) == results_file.label(["*"]) == "data"
    assert results_file.label([f"name{i:04}" for i in range(40)]) == "name0000+39_more"
    assert len(results_file.label(["x" * 500])) <= 80


def test_an_output_that_cannot_be_is_said_before_anything_is_computed(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    for output in (tmp_path, tmp_path / "file" / "o.json"):
        with pytest.raises(ConfigError):
            results_file.check_output(str(output))
    (tmp_path / "run").mkdir()
    assert app.run(["eval", str(tmp_path / "run"), "--data", "x", "-o", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ConfigError, match="cannot write --output"):
        results_file.check_output(str(tmp_path / "o.json"))
