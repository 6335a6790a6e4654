"""A file of commands: what is run, what is remembered, what a change or an interruption leaves to do."""

from __future__ import annotations

import pytest

from automodel_cli.config.schema.pipeline import PipelineOptions
from automodel_cli.errors import AutomodelError, ConfigError, Interrupted
from automodel_cli.recipes import pipeline

FILE = """
output_dir: {folder}/made
values: {{depth: 2, source: "my texts/*.txt"}}
steps:
  tokens: preprocess nanogpt --dataset '{{source}}' --output-dir {{out}}/tokens
  train: pretrain llm -c {folder}/run.yaml model.depth={{depth}}
  score: [eval, "{{out}}/run", --data, "{{out}}/tokens/val.bin"]
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "pipeline.yaml"
    path.write_text(FILE.format(folder=tmp_path))
    (tmp_path / "run.yaml").write_text("model: {}\n")
    return path


class Ran(list):
    def __init__(self):
        self.fails = {}


@pytest.fixture
def ran(monkeypatch):
    """The commands that were run; one named in ``ran.fails`` raises instead."""

    commands = Ran()

    def run_here(name, words):
        step = name.removeprefix("step ")
        if step in commands.fails:
            raise commands.fails[step]
        commands.append((step, list(words)))

    monkeypatch.setattr(pipeline, "run_here", run_here)
    return commands


def go(file, launch=None, trust=(), **options):
    pipeline.run(pipeline.load(PipelineOptions(pipeline=str(file), **options)), launch or {}, trust=trust)


def names(ran):
    found = [step for step, _ in ran]
    ran.clear()
    return found


def test_steps_in_order_with_their_values_then_nothing(file, ran, tmp_path):
    go(file, {"nproc-per-node": "2"}, trust=("mine.py",))
    out = f"{tmp_path}/made"
    assert [words for _, words in ran] == [
        ["preprocess", "nanogpt", "--dataset", "my texts/*.txt", "--output-dir", f"{out}/tokens"],
        f"pretrain llm -c {tmp_path}/run.yaml model.depth=2 --nproc-per-node 2 --trust mine.py".split(),
        ["eval", f"{out}/run", "--data", f"{out}/tokens/val.bin"],
    ]
    ran.clear()
    go(file)
    assert names(ran) == []


def test_what_has_changed_is_run_again_with_all_after_it(file, ran, tmp_path):
    go(file)
    ran.clear()
    go(file, set={"depth": 3})
    assert names(ran) == ["train", "score"]
    (tmp_path / "run.yaml").write_text("model: {n_layer: 1}\n")
    go(file, set={"depth": 3})
    assert names(ran) == ["train", "score"]
    go(file, set={"depth": 3}, from_step="train")
    assert "--fresh" in ran[0][1]
    assert names(ran) == ["train", "score"]


@pytest.mark.parametrize("error", [Interrupted("stopped"), AutomodelError("broken")])
def test_it_goes_on_with_the_step_that_did_not_end(file, ran, error):
    ran.fails["train"] = error
    with pytest.raises(type(error)):
        go(file)
    assert names(ran) == ["tokens"]
    ran.fails.clear()
    go(file)
    assert "--fresh" not in ran[0][1]
    assert names(ran) == ["train", "score"]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("steps: {a: 'eval {nowhere}'}", {}, r"steps.a: \{nowhere\} has no value"),
        ("steps: {a: 'pretrain llm --trust x.py'}", {}, "would let it run code"),
        ("steps: {a: ''}", {}, "step 'a': expected a command"),
        ("steps: {a: 'eval \"x'}", {}, "step 'a': expected a command"),
        ("steps: {}", {}, "steps"),
        ("steps: {a: eval x}", {"from_step": "b"}, "--from-step b: there is no such step"),
        ("steps: {a: eval x}", {"set": {"depth": 1}}, "--set depth: the pipeline has no such value"),
    ],
)
def test_files_that_say_nothing_to_do(tmp_path, text, options, message):
    path = tmp_path / "pipeline.yaml"
    path.write_text(f"output_dir: {tmp_path}/made\n{text}\n")
    with pytest.raises(ConfigError, match=message):
        pipeline.load(PipelineOptions(pipeline=str(path), **options))
    assert not (tmp_path / "made").exists()
