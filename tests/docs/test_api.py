"""docs/api.md is one session: its commands and snippets run from top to bottom in one folder."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from automodel_cli.cli import app

PAGE = Path(__file__).parents[2] / "docs/api.md"
BLOCK = re.compile(r"^```(bash|python|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TEXT = "Once upon a time a model read a book, and then another one.\n\n" * 200


def test_the_session_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text(TEXT, encoding="utf-8")
    rows = [json.dumps({"text": part}) for part in TEXT.split("\n\n") if part]
    Path("book.jsonl").write_text("\n".join(rows), encoding="utf-8")
    names: dict[str, object] = {}
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert {language for language, _ in blocks} == {"bash", "python", "yaml"}
    for language, text in blocks:
        if language == "bash":
            assert [app.run(shlex.split(line)[1:]) for line in text.splitlines()] == [0, 0]
        elif language == "yaml":
            Path("api.yaml").write_text(text, encoding="utf-8")
        else:
            exec(compile(text, PAGE.name, "exec"), names)
    assert "did you mean step_scheduler.max_steps?" in capsys.readouterr().out
