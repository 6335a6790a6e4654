"""The tour: its commands are accepted, run in order, and a second tour does not fail on the first one's files."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path

import pytest

from automodel_cli.errors import DataError
from automodel_cli.recipes import quickstart

CONFIG = Path(__file__).parents[2] / "configs/quickstart.yaml"


@pytest.fixture
def ran(monkeypatch, tmp_path) -> list[str]:
    """The commands that were run; the first leaves a tokenizer, eval leaves scores."""
    commands: list[str] = []

    def run_step(step: quickstart.Step) -> None:
        commands.append(step.arguments[0] + " " + step.arguments[1].split("/")[-1])
        (tmp_path / "bpe").mkdir(exist_ok=True)
        (tmp_path / "bpe/automodel_tokenizer.json").write_text("{}")
        scores = {"loss": 3.0, "perplexity": 20.1, "bits_per_byte": 1.2, "bigram": {"loss": 4.0}}
        (tmp_path / "results.json").write_text(json.dumps(scores))

    monkeypatch.setattr(quickstart, "_run_step", run_step)
    return commands


def test_a_second_tour_keeps_the_tokenizer(ran, tmp_path):
    report = quickstart.run(CONFIG, tmp_path)
    first = list(ran)
    assert first[:3] == ["preprocess tokenizer", "preprocess nanogpt", "pretrain llm"] and len(first) == 8
    assert "| this GPT | 3.0000 |" in report.read_text()
    quickstart.run(CONFIG, tmp_path)
    assert ran == [*first, *first[1:]]


def test_without_a_configuration_the_preset_is_written_and_used(ran, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = quickstart.run(None, tmp_path)
    written = tmp_path / "quickstart.yaml"
    assert written.read_text() == CONFIG.read_text()
    assert f"-c {written}" in report.read_text()
    written.write_text(CONFIG.read_text() + "# mine\n")
    quickstart.run(None, tmp_path)
    assert written.read_text().endswith("# mine\n")


def test_commands_can_be_pasted_and_found(tmp_path, monkeypatch):
    for step in quickstart.steps(CONFIG, tmp_path, source="x"):
        assert "\n" not in step.command
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "my env/bin"))
    assert f"it is at `'{tmp_path}/my env/bin/automodel'`" in quickstart.how_to_call()
    (tmp_path / "my env/bin").mkdir(parents=True)
    (tmp_path / "my env/bin/activate").touch()
    assert f"source '{tmp_path}/my env/bin/activate'" in quickstart.how_to_call()


def test_words_stay_whole(tmp_path):
    tour = quickstart.steps(CONFIG, tmp_path / "a b", source="c d/*.py", extra=["--model.n_layer", "1"])
    assert f"{tmp_path}/a b/bpe" in tour[0].arguments and "c d/*.py" in tour[0].arguments
    assert tour[2].arguments[-2:] == ("--model.n_layer", "1")
    assert "'" in tour[0].command


def test_scores_that_are_none(tmp_path):
    path = tmp_path / "results.json"
    path.write_text('{"loss": null, "perplexity": null, "bits_per_byte": null}')
    assert "| this GPT | n/a |" in quickstart.report_text([], tmp_path)
    for crafted in ("[1]", '{"loss": 1}', '{"loss": NaN, "perplexity": 1, "bits_per_byte": 1}', "\x00"):
        path.write_text(crafted)
        with pytest.raises(DataError, match=r"results\.json"):
            quickstart.report_text([], tmp_path)
