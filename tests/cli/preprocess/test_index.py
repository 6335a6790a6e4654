"""``automodel preprocess index``: the configuration, overrides as pretrain takes them, and what is printed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from tests.token_files import write_megatron_file

from automodel_cli.cli import app


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_megatron_file(tmp_path / "x_text_document", [[[1, 2, 3, 4, 5] * 8]] * 20, dtype="uint16")
    data = {
        "_target_": "automodel_cli.data.megatron_dataset.MegatronPretraining",
        "paths": str(tmp_path / "x_text_document"),
        "index_mapping_dir": str(tmp_path / "index"),
        "seq_length": 16,
        "split": "0.5, 0.5, 0",
    }
    body = {
        "model": {"_target_": "automodel_cli.models.gpt2.build_gpt2_model", "vocab_size": 64},
        "dataset": data,
        "validation_dataset": data,
        "step_scheduler": {"max_steps": 4, "global_batch_size": 2},
    }
    path = tmp_path / "cfg.yaml"
    path.write_text(yaml.safe_dump(body))
    return path


def test_built_once_then_there(config, capsys):
    assert app.run(["preprocess", "index", "-c", str(config)]) == 0
    first = capsys.readouterr().out
    assert "Megatron files" in first and "x_text_document" in first
    assert "training: 1 built in " in first and "validation: default: 1 built in" in first
    assert app.run(["preprocess", "index", str(config)]) == 0
    folder = config.parent / "index"
    assert f"training: 0 built, 1 there already, in {folder}" in capsys.readouterr().out


def test_overrides_are_those_of_pretrain(config, capsys):
    words = ["preprocess", "index", "-c", str(config), "--dataset.order", "stateless"]
    assert app.run([*words, "validation_dataset.seq_length=8"]) == 0
    out = capsys.readouterr().out
    assert "training: needs no index" in out
    assert "validation: default: 1 built" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "automodel preprocess index -c cfg.yaml"),
        (["--dataset.seq_lenght", "8"], "did you mean seq_length"),
        (["--dataset.paths", "/nowhere/x"], "cannot read /nowhere/x.bin"),
        (["--dataset.split", "0, 1, 0"], "leaves nothing to the train split"),
    ],
)
def test_mistakes(config, words, said, capsys):
    arguments = ["-c", str(config), *words] if words else []
    assert app.run(["preprocess", "index", *arguments]) != 0
    assert said in capsys.readouterr().err


def test_a_run_on_token_files_has_nothing_to_build(config, capsys, tmp_path):
    from tests.token_files import write_token_file

    write_token_file(tmp_path / "tokens.bin", np.array([1, 2, 3] * 100))
    body = yaml.safe_load(config.read_text())
    body["dataset"] = {
        "_target_": "automodel_cli.data.nanogpt_dataset.NanogptDataset",
        "file_pattern": str(tmp_path / "tokens.bin"),
        "seq_len": 16,
    }
    del body["validation_dataset"]
    config.write_text(yaml.safe_dump(body))
    assert app.run(["preprocess", "index", "-c", str(config)]) == 0
    assert capsys.readouterr().out == "training: needs no index\n"
