"""``automodel chat`` and ``serve``: flags reach the recipes, and what is typed becomes messages."""

from __future__ import annotations

import io
import sys

import pytest

from automodel_cli.cli import app
from automodel_cli.cli.commands.chat import Terminal
from automodel_cli.recipes import chat, serve


def typed(monkeypatch, text: str) -> list[str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return list(iter(Terminal().read, None))


def test_messages_of_several_lines(monkeypatch):
    text = 'one\ntwo \\\nlines\n"""\na\n\nb\\\n"""\n/quit\n'
    assert typed(monkeypatch, text) == ["one", "two \nlines", "a\n\nb\\", "/quit"]
    assert typed(monkeypatch, "no end") == ["no end"]
    assert typed(monkeypatch, "") == []


def test_what_a_model_writes_does_not_command_the_terminal(monkeypatch, tmp_path, capsys):
    def fake(cfg, terminal, *, trust=()):
        assert (cfg.temperature, cfg.top_k, cfg.seed, cfg.chat) == (0.9, 200, 7, True)
        terminal.write(f"{terminal.read()}\x1b[2J")
        terminal.say("note\x1b[2J")

    monkeypatch.setattr(chat, "run", fake)
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    assert app.run(["chat", str(tmp_path), "--seed", "7", "--chat"]) == 0
    out, err = capsys.readouterr()
    assert out == "hello\\x1b[2J" and "note\\x1b[2J" in err


def test_serve_and_the_page(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(serve, "run", lambda cfg, **rest: seen.append((cfg, rest)))
    flags = ["--port", "0", "--host", "::1", "--max-rows", "3", "--allowed-hosts", "a.example"]
    assert app.run(["serve", str(tmp_path), *flags]) == 0
    assert app.run(["chat", str(tmp_path), "--web", "--temperature", "0", "--port", "99"]) == 0
    (cfg, rest), (page, opened) = seen
    assert (cfg.port, cfg.host, cfg.max_rows, cfg.allowed_hosts) == (0, "::1", 3, ("a.example",))
    assert "opened" not in rest and callable(opened["opened"])
    assert (page.host, page.port, page.temperature) == ("127.0.0.1", 99, 0)


@pytest.mark.parametrize("command", ["chat", "serve"])
def test_chat_and_plain_are_opposites(command, tmp_path, capsys):
    assert app.run([command, str(tmp_path), "--chat", "--plain"]) == 2
    assert "opposites" in capsys.readouterr().err
