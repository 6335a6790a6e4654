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


def saved(message):
    error = Interrupted(message)
    error.saved = True
    return error


@pytest.mark.parametrize(
    ("error", "again"),
    [(Interrupted("at its start"), True), (AutomodelError("broken"), True), (saved("after a checkpoint"), False)],
)
def test_a_step_that_is_to_begin_anew_does_so_until_it_has_saved(file, ran, error, again):
    go(file)
    ran.clear()
    ran.fails["train"] = error
    with pytest.raises(type(error)):
        go(file, from_step="train")
    ran.fails.clear()
    go(file)
    assert ("--fresh" in ran[0][1]) is again
    assert names(ran) == ["train", "score"]


def test_a_step_after_one_that_was_run_again_is_never_finished(file, ran):
    go(file)
    ran.clear()
    ran.fails["score"] = Interrupted("stopped")
    with pytest.raises(Interrupted):
        go(file, from_step="train")
    ran.fails.clear()
    ran.clear()
    go(file)
    assert names(ran) == ["score"]


def test_a_step_that_was_half_run_in_another_way_is_not_finished(file, ran):
    go(file)
    ran.fails["train"] = AutomodelError("broken")
    with pytest.raises(AutomodelError):
        go(file, set={"depth": 3})
    ran.fails.clear()
    ran.clear()
    go(file)
    assert names(ran) == ["train", "score"]


def test_a_run_on_what_has_been_made_again_begins_anew(file, ran):
    go(file)
    ran.clear()
    go(file, set={"source": "other/*.txt"})
    assert "--fresh" in ran[1][1]
    assert names(ran) == ["tokens", "train", "score"]
    go(file, set={"source": "other/*.txt", "depth": 3})
    assert "--fresh" not in ran[0][1]  # its own settings have changed: it says itself what that means


def test_a_file_that_is_edited_while_its_step_runs_has_changed(file, ran, tmp_path, monkeypatch):
    plain = pipeline.run_here

    def edit(name, words):
        plain(name, words)
        if name == "step train":
            (tmp_path / "run.yaml").write_text("model: {n_layer: 2}\n")

    monkeypatch.setattr(pipeline, "run_here", edit)
    go(file)
    ran.clear()
    go(file)
    assert names(ran) == ["train", "score"]


def test_a_step_that_writes_a_file_is_finished(file, ran, tmp_path, monkeypatch):
    file.write_text(f"output_dir: {tmp_path}/made\nsteps: {{a: init tiny {tmp_path}/new.yaml}}\n")
    plain = pipeline.run_here

    def make(name, words):
        plain(name, words)
        (tmp_path / "new.yaml").write_text("model: {}\n")

    monkeypatch.setattr(pipeline, "run_here", make)
    go(file)
    ran.clear()
    go(file)
    assert names(ran) == []


def test_a_step_that_was_left_out_meanwhile_is_not_finished(file, ran):
    go(file)
    text = file.read_text()
    file.write_text("\n".join(line for line in text.splitlines() if "score" not in line))
    go(file, from_step="train")
    file.write_text(text)
    ran.clear()
    go(file)
    assert names(ran) == ["score"]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("steps: {a: 'eval {nowhere}'}", {}, r"steps.a: \{nowhere\} has no value"),
        ("steps: {a: 'pretrain llm --trust x.py'}", {}, "what only you may"),
        ("steps: {a: 'eval x --allow-code-execution'}", {}, "what only you may"),
        ("steps: {a: 'eval x --judge-url=https://x'}", {}, "what only you may"),
        ("steps: {a: 'pretrain llm --trust=x.py'}", {}, "what only you may"),
        ("values: {x: --trust}\nsteps: {a: 'pretrain llm {x} x.py'}", {}, "what only you may"),
        ("values: {x: '{y}', y: z}\nsteps: {a: 'eval {x}'}", {}, r"values.x: \{y\} has no value"),
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
