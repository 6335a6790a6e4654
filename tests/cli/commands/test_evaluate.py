"""``automodel eval``: flags reach the recipe, the table shows what was found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from automodel_cli.cli import app
from automodel_cli.cli.commands import evaluate
from automodel_cli.recipes.evaluation import likelihood as recipe

SCORE = {"loss": 2.5, "perplexity": 12.18, "bits_per_byte": 1.25, "tokens": 4096, "tokens_per_s": 1234.5}


@pytest.fixture
def seen(monkeypatch):
    """The configuration that the recipe was called with."""
    configs = []

    def fake(cfg, *, reporter, trust=()):
        configs.append(cfg)
        reporter.progress(1, 2, "val.bin")
        results = {"checkpoint": {"path": "run/step_00000007"}, "sets": [{"data": "val.bin", **SCORE}]}
        output = None if cfg.output == "none" else Path("run/results.json")
        return recipe.results_file.StoredResults({**results, **SCORE}, output)

    monkeypatch.setattr(recipe, "run", fake)
    return configs


def test_flags(seen, capsys):
    flags = [
        "--data",
        "a.bin",
        "--data",
        "b.bin",
        "--batch-size",
        "4",
        "--seq-len",
        "64",
        "--limit-batches",
        "9",
    ]
    more = [
        "--output",
        "o.json",
        "--tokenizer",
        "byte",
        "--precision",
        "fp32",
        "--device",
        "cpu",
        "--bigram",
        "t",
    ]
    assert app.run(["eval", "run", *flags, *more]) == 0
    (cfg,) = seen
    assert (cfg.checkpoint, cfg.data) == ("run", ("a.bin", "b.bin"))
    assert (cfg.batch_size, cfg.seq_len, cfg.limit_batches) == (4, 64, 9)
    assert (cfg.output, cfg.tokenizer, cfg.bigram) == ("o.json", "byte", "t")
    assert (cfg.precision, cfg.device) == ("fp32", "cpu")
    out = capsys.readouterr().out
    assert "run/step_00000007" in out and "wrote run/results.json" in out
    assert "val.bin" in out and "2.5000" in out and "12.18" in out and "1.2500" in out and "4,096" in out


def test_file_and_flags(seen, tmp_path):
    file = tmp_path / "eval.yaml"
    file.write_text("checkpoint: run\nbatch_size: 3\nseq_len: 8\n", encoding="utf-8")
    assert app.run(["eval", "-c", str(file), "--seq-len", "16"]) == 0
    (cfg,) = seen
    assert (cfg.checkpoint, cfg.batch_size, cfg.seq_len, cfg.data) == ("run", 3, 16, ())


@pytest.mark.parametrize("arguments", [[], ["run", "--batch-size", "0"], ["run", "--precision", "int4"]])
def test_wrong_settings(seen, arguments, capsys):
    assert app.run(["eval", *arguments]) == 2
    assert "error:" in capsys.readouterr().err and not seen


def test_json_is_all_that_stdout_gets(seen, capsys):
    assert app.run(["eval", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sets"][0]["loss"] == 2.5


def test_rows():
    second = {**SCORE, "data": "b", "bits_per_byte": None}
    results = {"sets": [{"data": "a", **SCORE}, second], "bigram": {"loss": 6.0, "tokens": 10}, **SCORE}
    rows = evaluate.rows_of(results)
    assert [row[0] for row in rows] == ["a", "b", "all", "bigram model, same tokens"]
    assert rows[1][3] == "n/a" and rows[3][1] == "6.0000"
    assert all(len(row) == len(evaluate.COLUMNS) for row in rows)


def test_results_that_have_no_place_are_said_to_have_none(seen, capsys):
    assert app.run(["eval", "run", "--output", "none"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "no file was written: run/step_00000007 is not in a run or export" in out
    assert "give --output FILE to keep these results" in out and "2.5000" in out
