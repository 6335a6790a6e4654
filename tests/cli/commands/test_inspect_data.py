"""``automodel inspect-data``: what a screen shows, and what is not let through to it."""

from __future__ import annotations

import json

import pytest
from tests.conftest import write_tokens

from automodel_cli.cli import app
from automodel_cli.cli.commands import inspect_data

PIECE = {"file": "a.bin", "first_token": 1000, "end_token": 1065, "documents": [{"number": 7, "start": 990}]}


def test_a_row_in_lines():
    row = {"row": 1, "sample": 2000, "pieces": [PIECE], "text": "one\ntwo", "characters": 900}
    assert list(inspect_data.row_lines(row)) == [
        "row 1, sample 2,000",
        "  a.bin, tokens 1,000 to 1,065, document 7 (from token 990)",
        "  | one",
        "  | two",
        "  | ... (7 of 900 characters)",
    ]


def test_documents_in_words():
    many = [{"number": n, "start": 10 * n} for n in range(11)]
    assert inspect_data.documents([]) == ""
    assert inspect_data.documents(many).endswith("7 (from token 70) and 3 more")
    assert inspect_data.documents([{"number": None, "start": None}]) == ", document (begins earlier)"
    assert inspect_data.place({**PIECE, "source": "web"}).startswith("web: a.bin, tokens")


@pytest.fixture
def config(tmp_path):
    """A run on bytes that are control characters."""
    write_tokens(tmp_path / "a.bin", tokens=2_000, seed=0, vocab_size=32)
    path = tmp_path / "run.yaml"
    path.write_text(f"""
model: {{_target_: automodel_cli.models.gpt2.build_gpt2_model, vocab_size: 257, n_positions: 8}}
dataset: {{_target_: NanogptDataset, file_pattern: {tmp_path}/a.bin, seq_len: 8}}
tokenizer: byte
step_scheduler: {{global_batch_size: 4, max_steps: 3}}
""")
    return path


def run(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        app.main(["inspect-data", *map(str, arguments)])
    assert ended.value.code in (0, None)
    return capsys.readouterr().out


def test_control_characters_do_not_reach_the_terminal(config, capsys):
    shown = run([config, "--step", 2, "--rows", 4], capsys)
    assert "step 2, not trained yet: 4 rows, samples 4 to 8" in shown
    assert "\\x1a" in shown and all(letter.isprintable() or letter in "\n\t" for letter in shown)


def test_json_has_all_of_a_row(config, capsys):
    found = json.loads(run([config, "--step", 1, "--rows", 1, "--json"], capsys))
    assert found["samples"] == 4 and len(found["rows"]) == 1 and found["rows"][0]["characters"] == 9
