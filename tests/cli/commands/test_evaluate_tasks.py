"""``automodel eval`` around tasks: flags reach the recipe, tables show what was found, wrong mixtures are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from automodel_cli.cli import app
from automodel_cli.recipes import launch
from automodel_cli.recipes.evaluation import download_bundle
from automodel_cli.recipes.evaluation import tasks as recipe

ENTRY = {
    "shots": 10,
    "count": 1234,
    "accuracy": 0.5,
    "stderr": 0.01,
    "baseline": 0.25,
    "centred": 1 / 3,
    "items_per_s": 7.0,
}
MEAN = {"score": 0.125, "stderr": 0.01, "tasks": 1, "of": 22}
RESULTS = {
    "checkpoint": {"path": "run/step_00000007"},
    "tasks": {"piqa": ENTRY},
    "missing": ["hellaswag"],
    "means": {"chatcore": MEAN, "core": MEAN,
              "gauntlet": {**MEAN, "stderr": None, "categories": {"safety": {**MEAN, "score": None}}}},
    "not_run": {"gsm8k_chat": "no file"},
    "judged": {"mt_bench": {"answers": "said.jsonl", "metrics": {"grade": {"value": 6.5, "stderr": 0.5}}}},
    "harness": {"arc": {"metrics": {"acc,none": {"value": 0.75, "stderr": 0.1}}}},
}  # fmt: skip


allowed = []  # what the user allowed, call by call


@pytest.fixture
def seen(monkeypatch):
    """The configuration that the recipe was called with."""
    configs = []

    def fake(cfg, *, reporter=None, options=None):
        configs.append(cfg)
        allowed.append(options)
        return recipe.results_file.StoredResults(RESULTS, Path("run/results_tasks.json"))

    monkeypatch.setattr(recipe, "run", fake)
    return configs


def test_flags(seen, capsys):
    flags = "--tasks core,piqa --tasks boolq --bundle b --max-per-task 5 --num-fewshot 2 --batch-size auto -o o.json"
    more = "--harness arc --harness-path p --chat-template --tokenizer byte --precision fp32 --device cpu"
    assert app.run(["eval", "run", *flags.split(), *more.split()]) == 0
    (cfg,) = seen
    assert (cfg.checkpoint, cfg.tasks, cfg.harness) == ("run", ("core", "piqa", "boolq"), ("arc",))
    assert (cfg.bundle, cfg.max_per_task, cfg.num_fewshot, cfg.batch_size) == ("b", 5, 2, "auto")
    assert (cfg.harness_path, cfg.chat_template, cfg.output) == ("p", True, "o.json")
    assert (cfg.tokenizer, cfg.precision, cfg.device) == ("byte", "fp32", "cpu")


def test_what_only_the_user_may_allow(seen, tmp_path, capsys):
    words = "--tasks chatcore --allow-code-execution --judge-url https://x/v1 --judge-model m --trust a.py"
    assert app.run(["eval", "run", *words.split()]) == 0
    given = allowed[-1]
    assert given.allow_code_execution and (given.judge_url, given.judge_model) == ("https://x/v1", "m")
    assert given.trust == ("a.py",)
    assert app.run(["eval", "run", "--tasks", "chatcore"]) == 0 and not allowed[-1].allow_code_execution
    for line in ("allow_code_execution: true", "judge_url: https://x/v1", "trust: [a.py]"):
        path = tmp_path / "tasks.yaml"
        path.write_text(f"checkpoint: run\ntasks: [chatcore]\n{line}\n")
        assert app.run(["eval", "-c", str(path)]) == 2
        assert line.partition(":")[0] in capsys.readouterr().err


def test_tables(seen, capsys):
    assert app.run(["eval", "run", "--tasks", "piqa"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "run/step_00000007",
        "1,234",
        "0.3333",
        "CORE, over 1 of 22 tasks",
        "ChatCORE, over 1 of 22 tasks",
        "gauntlet: safety, over 1 of 22 tasks",
        "no data for: hellaswag",
        "acc,none",
        "not run: gsm8k_chat: no file",
        "6.5",
        "answers to mt_bench: said.jsonl",
        "wrote run/results_tasks.json",
    ):
        assert part in shown, part


def test_json_is_all_that_stdout_gets(seen, capsys):
    assert app.run(["eval", "run", "--tasks", "piqa", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == RESULTS


def test_a_file_that_names_tasks(seen, tmp_path):
    path = tmp_path / "tasks.yaml"
    path.write_text("checkpoint: run\ntasks: [core]\nbatch_size: 4\n")
    assert app.run(["eval", "-c", str(path)]) == 0
    assert (seen[0].tasks, seen[0].batch_size) == (("core",), 4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--tasks", "core", "--data", "x"], "--data does not go with --tasks"),
        (["run", "--bundle", "x"], "--bundle does not go with the likelihood"),
        (["one", "two"], "unexpected extra argument"),
        (["compare", "a.json"], "FILE: expected two results files"),
        (["run", "--tasks", ","], ""),
        (["run", "--tasks", "core", "--batch-size", "many"], "--batch-size: expected"),
        (["run", "--nproc-per-node", "2"], "a single process"),
    ],
)
def test_wrong_mixtures(seen, capsys, words, said):
    assert app.run(["eval", *words]) == 2
    assert said in capsys.readouterr().err and not seen


def test_several_processes(seen, monkeypatch):
    started = []
    monkeypatch.setattr(
        launch, "run", lambda cfg, flags, arguments, reporter: started.append((cfg, flags, arguments)) or 0
    )
    assert app.run(["eval", "--nproc-per-node", "2", "run", "--tasks", "core"]) == 0
    assert started == [(None, {"nproc-per-node": "2"}, ["eval", "run", "--tasks", "core"])] and not seen


def test_compare(tmp_path, capsys):
    def results(name, correct):
        entry = {
            "version": "1",
            "data": "d",
            "shots": 0,
            "count": len(correct),
            "correct": correct,
            "stderr": 0.1,
        }
        entry["accuracy"] = correct.count("1") / len(correct)
        body = {"format": "automodel-task-results/1", "checkpoint": {"path": name, "fingerprint": name}}
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({**body, "tasks": {"piqa": entry}, "means": {}}))
        return str(path)

    assert app.run(["eval", "compare", results("one", "0" * 20), results("two", "01" * 10)]) == 0
    shown = capsys.readouterr().out
    assert "+0.5000" in shown and "0.0020" in shown and "B better" in shown
    assert app.run(["eval", "compare", str(tmp_path / "one.json"), str(tmp_path / "two.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["name"] == "piqa"
    assert app.run(["eval", "compare", str(tmp_path / "one.json"), str(tmp_path / "none.json")]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_download(monkeypatch, capsys):
    asked = []

    def fake(cfg, *, reporter):
        asked.append(cfg)
        return download_bundle.FetchedBundle(Path(cfg.folder), 9)

    monkeypatch.setattr(download_bundle, "run", fake)
    assert app.run(["eval", "download-bundle"]) == 0
    words = ["--bundle", "b", "--bundle-url", "http://x/y.zip", "--bundle-sha256", "a" * 64]
    assert app.run(["eval", "--download-bundle", *words]) == 0
    assert (asked[0].folder, asked[0].url, asked[0].sha256) == ("eval_bundle", None, None)
    assert (asked[1].folder, asked[1].url, asked[1].sha256) == ("b", "http://x/y.zip", "a" * 64)
    assert "9 files of task data in b" in capsys.readouterr().out
    assert app.run(["eval", "--download-bundle", "--bundle-sha256", "abc"]) == 2
    assert app.run(["eval", "download-bundle", "--folder", "b", "--sha256", "A" * 64]) == 0
    assert (asked[2].folder, asked[2].sha256) == ("b", "A" * 64)
