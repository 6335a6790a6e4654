"""Commands made from the schema: every option with its default, pages at all widths, errors by the options' names."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from automodel_cli.cli import app, complete, console, help_page
from automodel_cli.cli.argv import LAUNCH_FLAGS
from automodel_cli.cli.options import Command
from automodel_cli.config.field_help import meaning_and_default
from automodel_cli.config.schema.base import reason_ignored
from automodel_cli.launch import plan as launch_plan


def leaves(entries: dict[str, app.Entry], path: tuple[str, ...] = ()) -> Iterator[tuple[str, Command]]:
    """``(words, command)`` of every command, those below others too."""
    for name, entry in entries.items():
        if entry.module:
            yield " ".join((*path, name)), app.load_command(name, entry)
        yield from leaves(entry.commands, (*path, name))


COMMANDS = dict(leaves(app.COMMANDS))
OPTIONS = [
    pytest.param(model, name, id=f"{path} {name}")
    for path, command in COMMANDS.items()
    for model in command.models
    for name, field in model.model_fields.items()
    if not reason_ignored(field)
]


@pytest.fixture(params=[60, 80, 120])
def width(request, monkeypatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param


def shown(words: str, capsys) -> str:
    assert app.run([*words.split(), "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("model", "name"), OPTIONS)
def test_every_option_says_what_it_is_and_what_holds_without_it(model, name):
    meaning, default = meaning_and_default(model, name)
    field = model.model_fields[name]
    assert meaning.endswith(".") and "null:" not in meaning.replace("null: all", "")
    assert default or field.is_required() or field.default is False


@pytest.mark.parametrize("words", COMMANDS)
def test_no_name_is_cut_and_no_line_is_longer_than_the_terminal(words, width, capsys):
    page = shown(words, capsys)
    for param in COMMANDS[words].params:
        if not getattr(param, "hidden", False):
            longest = max(param.opts, key=len) if param.param_type_name == "option" else param.metavar
            assert longest in page
            assert param.metavar in (None, "") or param.metavar in page
    assert "…" not in page
    assert [line for line in page.splitlines() if len(line) > width] == []


def test_groups_and_launch_flags_at_all_widths(width, capsys):
    for argv in ([], ["--help"], ["preprocess"], ["eval", "--help"], ["help", "launch"]):
        app.run(argv)
        page = capsys.readouterr().out
        assert "…" not in page and [line for line in page.splitlines() if len(line) > width] == []


def test_every_command_has_an_example_or_two():
    assert {
        words: len(command.examples) for words, command in COMMANDS.items() if not 1 <= len(command.examples) <= 3
    } == {}
    assert all("automodel " in example for command in COMMANDS.values() for example in command.examples)


def test_every_launch_flag_has_a_default(capsys):
    assert set(launch_plan.DEFAULTS) == set(LAUNCH_FLAGS)
    plan = launch_plan.plan_launch({}, processes=1)
    assert str(plan.max_nodes) == launch_plan.DEFAULTS["nnodes"] and plan.run_id == launch_plan.DEFAULTS["rdzv-id"]
    assert app.run(["help", "launch"]) == 0
    page = capsys.readouterr().out
    assert all(f"--{flag} " in page for flag in LAUNCH_FLAGS) and "[default: 600]" in page


def test_help_of_a_command_is_its_help(capsys):
    assert app.run(["help", "preprocess", "verify"]) == 0
    assert capsys.readouterr().out == shown("preprocess verify", capsys)
    assert app.run(["help", "plott"]) == 2
    assert "Did you mean 'plot'" in capsys.readouterr().err


def test_a_switch_can_be_turned_off_again(monkeypatch, tmp_path):
    from automodel_cli.recipes import plot as recipe

    seen = []
    monkeypatch.setattr(recipe, "run", seen.append)
    (tmp_path / "p.yaml").write_text("runs: [a]\nlog_x: true\n")
    assert app.run(["plot", "-c", str(tmp_path / "p.yaml"), "--no-log-x", "--smooth", "1_0", "--title", "null"]) == 0
    assert (seen[0].log_x, seen[0].smooth, seen[0].title, seen[0].runs) == (False, 10, "null", ("a",))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("generate", "error: CKPT is missing: Checkpoint"),
        ("preprocess tokenizer --vocab-size 2.5", "--vocab-size: expected a number like"),
        ("preprocess tokenizer --vocab-size 2.5", "--dataset is missing"),
        (
            "preprocess nanogpt --val-tokens 5 --val-fraction 0.1",
            "error: --val-fraction and --val-tokens exclude",
        ),
        ("preprocess nanogpt --eot maybe", "--eot: expected prepend, append, none or null, found"),
        ("preprocess megatron --input a --keep-newlines", "error: --keep-newlines needs --split-sentences"),
        ("inspect-ckpt run --jsn", "No such option"),
        ("doctor --timeout 0", "--timeout: expected a number"),
        ("eval compare a b c", "FILE: expected two results files"),
        ("explain learning_rate", "nanoGPT's name, here: optimizer.lr"),
        ("preprocess nanogpt notes.txt", "give it as --dataset notes.txt"),
        ("preprocess megatron a.jsonl", "give it as --input a.jsonl"),
        ("doctor here there", "extra argument: there"),
        ("explain step_schedular.max_step", "did you mean step_scheduler.max_steps"),
    ],
)
def test_what_is_wrong_is_told_by_the_option(line, said, capsys):
    assert app.run(line.split()) == 2
    assert said in capsys.readouterr().err


def test_what_the_recipe_finds_is_told_by_the_option_too(tmp_path, capsys):
    (tmp_path / "x.txt").write_text("hello")
    (tmp_path / "n.yaml").write_text("val_tokens: 1000\n")
    line = ["preprocess", "nanogpt", "--dataset", str(tmp_path / "x.txt"), "--tokenizer", "byte"]
    line += ["-o", str(tmp_path / "out")]
    assert app.run([*line, "--val-tokens", "1000"]) == 2
    assert "error: --val-tokens asks for 1,000" in capsys.readouterr().err
    assert app.run([*line, "-c", str(tmp_path / "n.yaml")]) == 2
    assert "error: val_tokens asks for 1,000" in capsys.readouterr().err


def test_in_a_file_the_key_is_named(tmp_path, capsys):
    (tmp_path / "n.yaml").write_text("val_tokens: 5\nval_fraction: 0.1\n")
    assert app.run(["preprocess", "nanogpt", "-c", str(tmp_path / "n.yaml")]) == 2
    assert "n.yaml:1: val_fraction and val_tokens exclude each other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        (
            "--step-scheduler.max-steps",
            ["step_scheduler.max_steps", "whole number", "automodel pretrain llm"],
        ),
        ("n_layer", ["model.n_layer", "12", "build_gpt2_model"]),
        ("pretrained_model_name_or_path", ["tokenizer", "gpt2", "preprocess megatron", "also spelled"]),
        ("lr", ["optimizer.lr", "a number from 0 up"]),
        ("val_tokens", ["none", "instead of a fraction", "preprocess nanogpt"]),
    ],
)
def test_explain(key, parts, capsys):
    assert app.run(["explain", key]) == 0
    page = capsys.readouterr().out
    assert [part for part in parts if part not in page] == []


def test_arguments_of_targets_are_keys_of_training_alone(capsys):
    assert app.run(["explain", "file_pattern"]) == 0
    assert "preprocess" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("incomplete", "before", "expected"),
    [
        ("--step_scheduler.max_st", [], {"--step_scheduler.max_steps"}),
        ("--nproc", [], {"--nproc-per-node"}),
        ("model.n_l", ["llm"], {"model.n_layer="}),
        ("b", ["--precision"], {"bf16"}),
        ("f", ["--checkpoint.save_consolidated"], {"false", "final"}),
        ("", ["llm"], set()),
    ],
)
def test_completion(incomplete, before, expected):
    assert set(complete.overrides(incomplete, before)) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("automodel pretrain llm -c x.yaml --optimizer.we", "--optimizer.weight_decay"),
        ("automodel x.yaml --optimizer.we", "--optimizer.weight_decay"),
        ("automodel eval comp", "compare"),
        ("automodel eval --harness-p", "--harness-path"),
        ("automodel explain lr_scheduler.min", "lr_scheduler.min_lr"),
        ("automodel preprocess nanogpt --engine f", "fast"),
    ],
)
def test_what_a_shell_is_offered(line, expected, monkeypatch, capsys):
    monkeypatch.setenv("_AUTOMODEL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    with pytest.raises(SystemExit) as done:
        app.run([])
    assert done.value.code == 0
    assert capsys.readouterr().out.split() == [expected]


def test_color_is_for_terminals(monkeypatch):
    def page() -> str:
        return help_page.page("x", "What it does.", [], [("Options", [("--flag N", "A flag.")])], None)

    assert "\x1b" not in page()
    monkeypatch.setattr(console, "is_terminal", lambda: True)
    assert "\x1b[1mUsage:\x1b[0m x" in page() and "\x1b[36m--flag N\x1b[0m" in page()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in page()


def test_examples_that_are_wrapped_can_be_pasted(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    page = help_page.page("x", None, ["automodel " + "--option value " * 9], [], None)
    lines = page.split("Example\n")[1].strip().split("\n")
    assert len(lines) > 1 and all(line.endswith(" \\") for line in lines[:-1])
    assert re.sub(r" \\\s+", " ", "\n".join(lines)) == ("automodel " + "--option value " * 9).strip()


@pytest.mark.parametrize(("line", "usage"), [("import", "import CKPT FOLDER"), ("export hf", "hf CKPT FOLDER")])
def test_two_places_have_two_names(line, usage, capsys):
    assert app.run([*line.split(), "--help"]) == 0
    assert usage in capsys.readouterr().out
