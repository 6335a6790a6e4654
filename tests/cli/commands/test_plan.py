"""``automodel plan``: one screen, JSON, and exit codes."""

import json

import pytest

from automodel_cli.cli.app import run

FLOPS = "step_scheduler.target_flops=1e10"


@pytest.fixture
def config(tiny_training) -> str:
    return str(tiny_training.config(step_scheduler={"max_steps": None}))


def test_it_fits_on_a_screen(config, capsys):
    assert run(["plan", "-c", config, FLOPS, "--gpu", "H100", "--num-gpus", "2", "--price", "2"]) == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= 24
    for word in (
        "non-embedding",
        "scaling",
        "a token",
        "target_flops 1e+10",
        "tokens there",
        "GPU hours, cost",
        "80 GB",
    ):
        assert word in shown
    assert "warning: the data repeat" in shown


def test_json_has_the_same(config, capsys):
    assert run(["plan", "-c", config, FLOPS, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] * found["tokens_per_update"] == found["tokens"]
    assert found["params"]["total"] == sum(found["params_by_role"].values())
    assert (found["time"], [one["card_gib"] for one in found["memory"]]) == (None, [8, 12, 24, 80])


def test_no_update_is_an_error_of_the_configuration(config, capsys):
    assert run(["plan", "-c", config, "step_scheduler.max_tokens=10"]) == 2
    assert "less than one update" in capsys.readouterr().err
    assert run(["plan"]) == 2
