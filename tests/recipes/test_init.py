"""``automodel init``: the list, a file that is never written over, and one that trains on the data it was made for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from automodel_cli.cli import app
from automodel_cli.config.load import load_config
from automodel_cli.config.presets import PRESETS
from automodel_cli.config.schema.pretrain import PretrainConfig
from automodel_cli.corpus.formats.nanogpt_bin import MAGIC, VERSION

HEADER = np.array([MAGIC, VERSION, 0, 2, *[0] * 252], "<i4").tobytes()  # of no tokens


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_without_a_name_the_presets_are_listed(capsys):
    assert app.run(["init"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.split("\n\n")[0].splitlines()]
    assert listed == list(PRESETS)


def test_a_file_is_written_once(capsys):
    assert app.run(["init", "gpt2-small"]) == 0
    written = Path("gpt2-small.yaml").read_bytes()
    assert "fill in dataset.file_pattern" in capsys.readouterr().out
    assert app.run(["init", "quickstart", "-o", "gpt2-small.yaml"]) == 2
    assert "already exists" in capsys.readouterr().err and Path("gpt2-small.yaml").read_bytes() == written
    assert app.run(["init", "quickstart", "-o", "no/such/folder.yaml"]) == 2
    assert app.run(["init", "gpt5"]) == 2


@pytest.mark.parametrize("content", [b"", HEADER])
def test_a_file_without_tokens_is_refused_before_anything_is_written(content, capsys):
    Path("train.bin").write_bytes(content)
    assert app.run(["init", "gpt2-small", "--data", "train.bin"]) == 1
    assert "train.bin is empty, expected a file of token ids" in capsys.readouterr().err
    assert not Path("gpt2-small.yaml").exists()
    Path("train.bin").write_bytes(bytes(range(64)))
    assert app.run(["init", "gpt2-small", "--data", "train.bin", "--val-data", "later/*.bin"]) == 0


def test_it_fits_the_corpus_and_trains_as_it_is(capsys):
    Path("text.txt").write_text("To be, or not to be, that is the question.\n" * 400)
    words = "preprocess nanogpt --dataset text.txt --tokenizer char --val-fraction 0.2 --output-dir corpus"
    assert app.run(words.split()) == 0
    assert app.run(["init", "quickstart", "--data", "corpus", "-o", "run.yaml"]) == 0
    cfg = load_config(PretrainConfig, "run.yaml")
    assert cfg.model.arguments["vocab_size"] < 40
    assert cfg.validation_datasets["default"].arguments["file_pattern"] == "corpus/val.bin"
    small = "--model.n_layer 1 --model.n_embd 8 --model.n_head 1 --step_scheduler.max_steps 1 --dataset.seq_len 8"
    capsys.readouterr()
    assert app.run(["run.yaml", *small.split(), "--device", "cpu", "--compile", "false"]) == 0
    assert Path("checkpoints/run/LATEST").is_file()
