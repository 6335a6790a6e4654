"""``eval --tasks chatcore`` on a tiny chat checkpoint: what is in the results file, what is not run and why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.evaluation.chat_rows import ROWS, write_rows

from automodel_cli.assembly.reporter import Reporter
from automodel_cli.checkpoint.checkpointer import Checkpointer
from automodel_cli.config.schema.results import EvaluateOptions, TasksConfig
from automodel_cli.corpus.conversations.chatml import with_chatml
from automodel_cli.corpus.tokenizer import ByteTokenizer
from automodel_cli.errors import AutomodelError, ConfigError
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.recipes.evaluation import compare_results
from automodel_cli.recipes.evaluation import tasks as recipe


@pytest.fixture(scope="module")
def chat_run(tmp_path_factory) -> Path:
    """Bytes and the two marks of ChatML; random weights."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = with_chatml(ByteTokenizer())
    tokenizer.save(folder / "tokenizer")
    size = {"n_positions": 160, "n_embd": 32, "n_layer": 1, "n_head": 2}
    model = build_gpt2_model(vocab_size=tokenizer.vocab_size, **size)
    model.materialize("cpu", seed=3)
    Checkpointer(folder / "run").save(
        5,
        model=model,
        optimizer=torch.optim.AdamW(model.parameters()),
        state={"train": {"step": 5}},
        loader_state={},
        config_yaml="{}\n",
        facts={"model": model.model_config(), "tokenizer": tokenizer.describe()},
        tokenizer_folder=folder / "tokenizer",
        metrics={},
        is_best=False,
    )
    return folder / "run"


def put(run: Path, output: Path, *, reporter: Reporter | None = None, options=None, **settings):
    given = {"checkpoint": str(run), "tasks": "chatcore", "device": "cpu", "precision": "fp32", "output": str(output)}
    return recipe.run(TasksConfig(**{**given, **settings}), reporter=reporter, options=options).results


def test_all_tasks(chat_run, tmp_path) -> None:
    progress = []
    reporter = Reporter(progress=lambda *step: progress.append(step))
    rows = str(write_rows(tmp_path / "rows"))
    found = put(
        chat_run,
        tmp_path / "a.json",
        chat_data=rows,
        options=EvaluateOptions(allow_code_execution=True),
        reporter=reporter,
    )
    assert json.loads((tmp_path / "a.json").read_text()) == found
    assert {name: entry["count"] for name, entry in found["tasks"].items()} == {k: len(v) for k, v in ROWS.items()}
    assert found["not_run"] == {} and {name for _, _, name in progress} == set(ROWS)
    mean = found["means"]["chatcore"]
    scored = [found["tasks"][name]["centred"] for name in list(ROWS)[:5]]
    assert (mean["tasks"], mean["of"]) == (5, 5) and mean["score"] == pytest.approx(sum(scored) / 5)
    assert len(found["tasks"]["arc_easy_chat"]["chosen"]) == 6
    assert len(found["tasks"]["gsm8k_chat"]["answers"]) == 3 and "flexible_accuracy" in found["tasks"]["gsm8k_chat"]
    assert found["tasks"]["ifeval_chat"]["instructions"] == 2
    again = put(chat_run, tmp_path / "b.json", chat_data=rows, max_per_task=2)
    assert again["tasks"]["arc_easy_chat"]["chosen"] == found["tasks"]["arc_easy_chat"]["chosen"][:2]
    assert again["means"]["chatcore"]["tasks"] == 4 and "--allow-code-execution" in again["not_run"]["humaneval_chat"]
    compared = compare_results.run(tmp_path / "a.json", tmp_path / "b.json")
    assert {row.name for row in compared.rows} == ROWS.keys() - {"humaneval_chat"}
    assert any("chatcore" in note for note in compared.notes)  # over 5 tasks and over 4


def test_what_is_not_there_is_said(chat_run, tmp_path) -> None:
    rows = str(write_rows(tmp_path / "rows", "mmlu_chat"))
    found = put(chat_run, tmp_path / "a.json", chat_data=rows)
    assert list(found["tasks"]) == ["mmlu_chat"] and found["means"]["chatcore"]["tasks"] == 1
    assert found["not_run"]["gsm8k_chat"].startswith(f"{rows} has no gsm8k_chat.jsonl")


def test_nothing_to_run(chat_run, tiny_run, tmp_path) -> None:
    rows = str(write_rows(tmp_path / "rows", "humaneval_chat", "mmlu_chat"))
    for settings, says in (
        ({"chat_data": str(tmp_path / "no")}, "no folder"),
        ({"chat_data": rows, "tasks": "humaneval_chat"}, "it runs code"),
    ):
        with pytest.raises(ConfigError, match=says):
            put(chat_run, tmp_path / "a.json", **settings)
    with pytest.raises(ConfigError, match="knows no chat format"):
        put(tiny_run.run, tmp_path / "a.json", chat_data=rows)
    assert not (tmp_path / "a.json").exists()


def test_answers_for_judges(chat_run, tmp_path, monkeypatch) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "mt_bench.jsonl").write_text(json.dumps({"question_id": 1, "turns": ["Hi", "Ho"]}))
    (rows / "alpaca_eval.json").write_text(json.dumps([{"instruction": "Hi", "output": "Ho"}]))
    settings = {"tasks": "mt_bench,alpaca_eval", "chat_data": str(rows), "chat_answers": str(tmp_path / "said")}
    found = put(chat_run, tmp_path / "a.json", **settings)["judged"]
    said = json.loads(Path(found["mt_bench"]["answers"]).read_text())
    assert said["model_id"] == "run" and len(said["choices"][0]["turns"]) == 2 and found["mt_bench"]["metrics"] == {}

    def judge(self, text):
        if "verdict" in text:
            raise AutomodelError("it is ill", "ask later")
        return "[[4]]"

    monkeypatch.setenv("AUTOMODEL_JUDGE_KEY", "hush")
    monkeypatch.setattr("automodel_cli.evaluation.chat.judge_client.JudgeClient.__call__", judge)
    by_user = EvaluateOptions(judge_url="http://127.0.0.1:1/v1", judge_model="wise")
    results = put(chat_run, tmp_path / "b.json", options=by_user, **settings)
    assert results["judged"]["mt_bench"]["metrics"] == {"grade": {"value": 4.0, "stderr": 0.0}}
    assert results["judged"]["mt_bench"]["judge"] == "wise" and results["judged"]["alpaca_eval"]["metrics"] == {}
    assert results["not_run"] == {"the judge of alpaca_eval": "it is ill (ask later)"}
    assert "hush" not in (tmp_path / "b.json").read_text()
    for file in ("c.json", "d.json"):
        put(chat_run, tmp_path / file, options=by_user, **settings)
    assert [row.name for row in compare_results.run(tmp_path / "c.json", tmp_path / "d.json").rows] == [
        "mt_bench grade"
    ]


@pytest.mark.parametrize(
    ("options", "tasks"),
    [
        ({"judge_url": "https://x/v1"}, "mt_bench"),
        ({"judge_model": "m"}, "mt_bench"),
        ({"judge_url": "https://x/v1", "judge_model": "m"}, "chatcore"),
        ({"judge_url": "http://example.com/v1", "judge_model": "m"}, "mt_bench"),
    ],
)
def test_half_a_judge(chat_run, tmp_path, options, tasks) -> None:
    with pytest.raises(ConfigError, match="judge"):
        put(chat_run, tmp_path / "a.json", options=EvaluateOptions(**options), tasks=tasks, chat_data=str(tmp_path))
