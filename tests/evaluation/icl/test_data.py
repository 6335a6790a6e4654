"""Task data in both layouts, what is missing, what is damaged, tasks that only a bundle knows."""

from __future__ import annotations

import json

import pytest
from tests.evaluation.small_bundle import ITEMS, write_bundle

from automodel_cli.errors import ConfigError, DataError
from automodel_cli.evaluation.icl.data import Bundle
from automodel_cli.evaluation.icl.tasks import TASKS

ARC = "world_knowledge/arc_easy"


@pytest.mark.parametrize("layout", ["eval_data", "", "eval_bundle/eval_data"])
def test_layouts(tmp_path, layout):
    bundle = Bundle(write_bundle(tmp_path, layout=layout))
    data = bundle.load(TASKS["arc_easy"])
    assert data is not None and data.items == ITEMS[ARC]
    assert bundle.load(TASKS["hellaswag"]) is None and bundle.find(TASKS["hellaswag"]) is None


def test_published_layout_here(real_bundle):
    bundle = Bundle(real_bundle)
    there = [task.name for task in TASKS.values() if bundle.find(task)]
    assert len(there) >= 45
    assert bundle.baselines["boolq"] == 62
    winograd = bundle.load(TASKS["winograd"])
    assert winograd is not None and len(winograd.items) == 273


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_no_data_at_all(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError) as error:
        Bundle(tmp_path / name)
    assert name in error.value.message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not valid JSON"),
        ("[1]", "found a list of 1"),
        ('{"query": "q", "choices": ["a"]}', "'gold' is missing"),
        ('{"query": "q", "choices": ["a", "b"], "gold": 2}', "gold 2 is not among the 2"),
        ('{"query": "q", "choices": ["a", "b"], "gold": -1}', "gold: input should be greater"),
        ('{"query": "q", "choices": ["a", "b"], "gold": true}', "gold: input should be a valid integer"),
        ('{"query": "q", "choices": [], "gold": 0}', "choices: "),
        ('{"query": "q", "choices": [null], "gold": 0}', "choices[0]"),
        ('{"query": NaN, "choices": ["a"], "gold": 0}', "not valid JSON"),
        ('{"query": ' + "9" * 5000 + ', "choices": ["a"], "gold": 0}', ""),
        ('{"query": "\\ud800", "choices": ["a"], "gold": 0}', "not valid JSON"),
        ("[" * 100_000, "nested deeper than 200 levels"),
        ("\udcff", "not valid JSON"),
    ],
)
def test_damaged_lines_are_named(tmp_path, line, said):
    folder = write_bundle(tmp_path)
    path = folder / "eval_data" / f"{ARC}.jsonl"
    path.write_bytes(path.read_bytes() + b"\n" + line.encode("utf-8", "surrogateescape") + b"\n")
    with pytest.raises(DataError) as error:
        Bundle(folder).load(TASKS["arc_easy"])
    assert said in error.value.message and f"{path.name}:{len(ITEMS[ARC]) + 2}" in error.value.message


def test_empty_file(tmp_path):
    folder = write_bundle(tmp_path)
    (folder / "eval_data" / f"{ARC}.jsonl").write_text("\n")
    with pytest.raises(DataError, match="is empty"):
        Bundle(folder).load(TASKS["arc_easy"])


def test_tasks_that_only_the_bundle_knows(tmp_path):
    folder = write_bundle(tmp_path)
    (folder / "eval_data" / "mine").mkdir()
    item = {"context": "a", "continuation": "b"}
    (folder / "eval_data" / "mine" / "new.jsonl").write_text(json.dumps(item))
    (folder / "core.yaml").write_text(
        "icl_tasks:\n"
        "- {label: arc_easy, dataset_uri: world_knowledge/arc_easy.jsonl, num_fewshot: [10],"
        " icl_task_type: multiple_choice}\n"
        "- {label: new, dataset_uri: mine/new.jsonl, num_fewshot: [2], icl_task_type: language_modeling,"
        " continuation_delimiter: '; '}\n"
    )
    (folder / "eval_meta_data.csv").write_text("Eval Task,Random baseline\nnew,12.5\n")
    bundle = Bundle(folder)
    (task,) = bundle.others
    assert (task.name, task.kind, task.shots, task.delimiter) == ("new", "language_modeling", 2, "; ")
    assert task.chance == 0.125 and not task.in_gauntlet
    data = bundle.load(task)
    assert data is not None and data.items == [item]


ENTRY = "{label: x, dataset_uri: a/b.jsonl, num_fewshot: [1], icl_task_type: schema}"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("core.yaml", "icl_tasks: 3"),
        ("core.yaml", "3"),
        ("core.yaml", "icl_tasks: [3]"),
        ("core.yaml", "icl_tasks: " + "[" * 5000),
        ("core.yaml", "\udcff"),
        ("core.yaml", "icl_tasks: 2001-99-99"),
        ("core.yaml", "a: &a [1]\nicl_tasks: [*a, *a]"),
        *(
            ("core.yaml", f"icl_tasks: [{ENTRY.replace(*change)}]")
            for change in [
                ("a/b.jsonl", "../../etc/passwd"),
                ("a/b.jsonl", "/etc/passwd"),
                ("[1]", "[]"),
                ("[1]", "[-1]"),
                ("[1]", "[.inf]"),
                ("[1]", "[1e99]"),
                ("schema", "other"),
                ("label: x", "label: [x]"),
                ("label: x, ", ""),
            ]
        ),
        ("eval_meta_data.csv", "a,b\n1,2\n"),
        ("eval_meta_data.csv", "Eval Task,Random baseline\nx,nan\n"),
        ("eval_meta_data.csv", "Eval Task,Random baseline\nx,100\n"),
        ("eval_meta_data.csv", "Eval Task,Random baseline\nx,-1\n"),
        ("eval_meta_data.csv", "Eval Task,Random baseline\nx,1e999\n"),
        ("eval_meta_data.csv", "Eval Task,Random baseline\nx\n"),
        ("eval_meta_data.csv", "Eval Task,Random baseline\n" + '"' + "x" * 200_000),
        ("eval_meta_data.csv", "\udcff"),
    ],
)
def test_damaged_lists(tmp_path, name, text):
    folder = write_bundle(tmp_path)
    (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=name) as error:
        Bundle(folder)
    assert error.value.hint and "\n" not in error.value.message


def test_an_empty_answer_is_no_item(tmp_path):
    """Nothing is always the likeliest continuation."""
    folder = write_bundle(tmp_path)
    path = folder / "eval_data" / TASKS["lambada_openai"].file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"context": "a", "continuation": ""}')
    with pytest.raises(DataError, match=r"lambada_openai.jsonl:1: continuation"):
        Bundle(folder).load(TASKS["lambada_openai"])
