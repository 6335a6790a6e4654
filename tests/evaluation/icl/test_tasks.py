"""The table of tasks: what belongs to what, its numbers against the published metadata, choosing by name."""

from __future__ import annotations

import csv
from dataclasses import replace

import pytest

from automodel_cli.errors import ConfigError
from automodel_cli.evaluation.icl.tasks import CATEGORIES, CORE, GAUNTLET, TASKS, select_tasks

# Spelled out here once more: the 22 of CORE with shots, kind and random baseline in percent.
CORE_22 = """
hellaswag_zeroshot 0 mc 25 / jeopardy 10 lm 0 / bigbench_qa_wikidata 10 lm 0 / arc_easy 10 mc 25 /
arc_challenge 10 mc 25 / copa 0 mc 50 / commonsense_qa 10 mc 20 / piqa 10 mc 50 / openbook_qa 0 mc 25 /
lambada_openai 0 lm 0 / hellaswag 10 mc 25 / winograd 0 schema 50 / winogrande 0 schema 50 /
bigbench_dyck_languages 10 lm 0 / agi_eval_lsat_ar 3 mc 20 / bigbench_cs_algorithms 10 lm 0 /
bigbench_operators 10 lm 0 / bigbench_repeat_copy_logic 10 lm 0 / squad 10 lm 0 / coqa 0 lm 0 / boolq 10 mc 62 /
bigbench_language_identification 10 mc 9.1
"""
KIND = {"mc": "multiple_choice", "lm": "language_modeling", "schema": "schema"}


def test_core_is_as_published():
    listed = [entry.split() for entry in CORE_22.split("/")]
    assert len(listed) == len(CORE) == 22
    for name, shots, kind, baseline in listed:
        task = TASKS[name]
        assert name in CORE and task.in_gauntlet
        assert (task.shots, task.kind) == (int(shots), KIND[kind])
        assert task.chance == pytest.approx(float(baseline) / 100)


def test_delimiters_as_published():
    answer = {name for name, task in TASKS.items() if task.delimiter == "\nAnswer: "}
    core = {"jeopardy", "arc_easy", "arc_challenge", "piqa", "boolq"}
    more = {"mmlu_fewshot", "logi_qa", "gpqa_main", "gpqa_diamond", "jeopardy_small"}
    assert answer == core | more
    assert all(TASKS[name].delimiter == " " for name in set(CORE) - core)


def test_gauntlet_against_the_published_metadata(real_bundle):
    kinds = {"question answering": "generation"}
    with (real_bundle / "eval_meta_data.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert {row["Eval Task"] for row in rows} == set(GAUNTLET) and len(GAUNTLET) == 53
    for row in rows:
        task = TASKS[row["Eval Task"]]
        assert task.shots == int(row["#shots"]), task.name
        assert task.baseline == float(row["Random baseline"]), task.name
        assert task.category == row["Task Category"] and task.category in CATEGORIES
        kind = kinds.get(row["Task Type"], row["Task Type"].replace(" ", "_"))
        assert task.kind == kind, task.name


def test_groups_and_names_each_once():
    chosen = select_tasks(["piqa", "core", "triviaqa_small"])
    names = [task.name for task in chosen]
    assert names[0] == "piqa" and names[-1] == "triviaqa_small"
    assert len(names) == 23 and set(names) == {*CORE, "triviaqa_small"}
    assert len(select_tasks(["gauntlet"])) == 53
    mine = replace(TASKS["piqa"], name="mine")
    assert select_tasks(["mine"], [mine]) == [mine]


@pytest.mark.parametrize(("words", "said"), [(["arc_eazy"], "arc_easy"), (["cor"], "core"), ([], "--tasks core")])
def test_unknown_names(words, said):
    with pytest.raises(ConfigError) as error:
        select_tasks(words)
    assert said in error.value.hint


def test_version_is_of_everything_that_counts():
    task = TASKS["piqa"]
    assert task.version() == TASKS["piqa"].version()
    assert len({task.version(), replace(task, shots=5).version(), replace(task, delimiter=" ").version()}) == 3
