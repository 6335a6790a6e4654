"""``automodel generate``: flags reach the recipe, and what a model writes cannot command the terminal."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from automodel_cli.cli import app
from automodel_cli.cli.commands import generate
from automodel_cli.errors import ConfigError
from automodel_cli.recipes import generate as recipe


@pytest.fixture
def seen(monkeypatch):
    """The configuration that the recipe was called with; it continues with text that misbehaves."""
    configs = []

    def fake(cfg, *, on_text=None, trust=()):
        configs.append(cfg)
        for piece in (" and\x1b[2J", "\nmore\u202e"):
            if on_text is not None:
                on_text(0, piece)
        sample = recipe.Continuation(" and\x1b[2J\nmore\u202e", [1, 2], stopped=False)
        prompts = [recipe.PromptSamples(prompt, [sample] * cfg.num_samples) for prompt in recipe.read_prompts(cfg)]
        return recipe.GenerationResult(prompts, Path("run/step_00000007"), 12.34)

    monkeypatch.setattr(recipe, "run", fake)
    return configs


def test_flags_and_one_sample_streams(seen, capsys):
    flags = [
        "--prompt",
        "yes",
        "--max-new-tokens",
        "5",
        "--temperature",
        "0",
        "--top-k",
        "7",
        "--top-p",
        "0.5",
    ]
    assert app.run(["generate", "run", *flags, "--seed", "9", "--tokenizer", "byte", "--device", "cpu"]) == 0
    (cfg,) = seen
    assert (cfg.checkpoint, cfg.prompt, cfg.max_new_tokens, cfg.temperature) == ("run", "yes", 5, 0)
    assert (cfg.top_k, cfg.top_p, cfg.seed, cfg.tokenizer, cfg.device) == (7, 0.5, 9, "byte", "cpu")
    out, err = capsys.readouterr()
    assert out == "yes and\\x1b[2J\nmore\\u202e\n"
    assert "2 tokens at 12.3 tokens/s from run/step_00000007" in err


def test_top_k_can_be_off(seen):
    assert app.run(["generate", "run", "--top-k", "null"]) == 0
    assert seen[0].top_k is None


def test_several_samples_one_after_another(seen, capsys):
    assert app.run(["generate", "run", "-p", "a", "--num-samples", "2"]) == 0
    out = capsys.readouterr().out
    assert out.count("a and\\x1b[2J") == 2 and "--- sample 2 of 2 ---" in out


@pytest.mark.parametrize("flag", [["--top-k", "0"], ["--top-p", "1.5"], ["--temperature", "-1"], ["--top-k", "x"]])
def test_out_of_range(seen, flag, capsys):
    assert app.run(["generate", "run", *flag]) == 2
    assert "error:" in capsys.readouterr().err and not seen


def test_a_terminal_that_knows_only_ascii(monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    generate.write("漢 ok")
    assert buffer.getvalue() == b"\\u6f22 ok"


def test_an_error_stands_alone(monkeypatch, capsys):
    """The prompt is shown with the first piece of text, not in front of an error."""

    def fails(cfg, *, on_text=None, trust=()):
        raise ConfigError("no tokenizer")

    monkeypatch.setattr(recipe, "run", fails)
    assert app.run(["generate", "run", "--prompt", "yes"]) == 2
    assert capsys.readouterr().out == ""
