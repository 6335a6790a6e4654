"""Chat and serve with a checkpoint from disk."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.recipes.test_generate import config as generate_config

from automodel_cli.assembly import answering
from automodel_cli.assembly.checkpoint import LoadedModel
from automodel_cli.config.schema.serving import ChatConfig, ServeConfig
from automodel_cli.corpus.conversations.chatml import with_chatml
from automodel_cli.corpus.tokenizer import ByteTokenizer
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.recipes import chat, generate, serve


class Script:
    """A terminal that somebody typed at before."""

    def __init__(self, *lines: str) -> None:
        self._lines, self.written, self.said = iter(lines), "", []

    def read(self):
        return next(self._lines, None)

    def write(self, text):
        self.written += text

    def say(self, line):
        self.said.append(line)


def test_a_base_model_continues_as_generate_does(tiny_run):
    terminal = Script("line 4", "/quit", "never")
    cfg = ChatConfig(checkpoint=str(tiny_run.run), temperature=0, max_new_tokens=12, device="cpu")
    chat.run(cfg, terminal)
    result = generate.run(generate_config(tiny_run, temperature=0))
    assert terminal.written == result.prompts[0].samples[0].text + "\n"
    assert "run (a base model" in terminal.said[-1]


def test_which_way_a_checkpoint_speaks():
    tokenizer = ByteTokenizer()
    marked = with_chatml(tokenizer)

    def loaded(vocab_size=400, **facts):
        return LoadedModel(SimpleNamespace(vocab_size=vocab_size), None, Path("x"), facts)

    base, trained, folder = loaded(model={}), loaded(stage="mid-training"), loaded()

    def speaks(model, tokenizer, **given):
        found = answering._chat_format(ChatConfig(checkpoint="x", **given), tokenizer, model)
        return None if found is None else found.name

    assert speaks(base, marked) is None and speaks(base, marked, chat=True) == "chatml"
    assert speaks(trained, marked) == "chatml" and speaks(trained, marked, plain=True) is None
    assert speaks(folder, marked) == "chatml" and speaks(folder, tokenizer) is None
    with pytest.raises(ConfigError, match="knows no chat format"):
        speaks(base, tokenizer, chat=True)
    with pytest.raises(DataError, match="the model has 100 ids"):
        speaks(loaded(vocab_size=100), marked)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"host": "0.0.0.0"}, "no API key"),
        ({"host": "::"}, "no API key"),
        ({"host": "some.name"}, "no API key"),
        ({"host": "203.0.113.7", "api_key": "x"}, "cannot listen on 203.0.113.7"),
    ],
)
def test_where_it_may_not_listen(tiny_run, settings, says, monkeypatch):
    pytest.importorskip("fastapi", reason="the extra [web] is not installed")
    monkeypatch.delenv("AUTOMODEL_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=says):
        serve.run(ServeConfig(checkpoint=str(tiny_run.run), **settings), say=print)


def test_a_server_from_checkpoint_to_answer(tiny_run, monkeypatch):
    httpx = pytest.importorskip("httpx")
    server = pytest.importorskip("automodel_cli.serving.web.server", reason="the extra [web] is not installed")
    made, lines = [], []
    make_server = server.make_server
    monkeypatch.setattr(server, "make_server", lambda *a, **k: made.append(make_server(*a, **k)) or made[0])
    is_open = threading.Event()
    cfg = ServeConfig(checkpoint=str(tiny_run.run), port=0, device="cpu", api_key="sesame")
    call = {"say": lines.append, "opened": lambda address: (lines.append(address), is_open.set())}
    thread = threading.Thread(target=serve.run, args=(cfg,), kwargs=call)
    thread.start()
    assert is_open.wait(60)
    address = lines[-1]
    body = {"prompt": "line 4", "max_tokens": 12, "temperature": 0}
    key = {"authorization": "Bearer sesame"}
    answer = httpx.post(f"{address}/v1/completions", json=body, headers=key).json()
    expected = generate.run(generate_config(tiny_run, temperature=0)).prompts[0].samples[0].text
    assert answer["choices"][0]["text"] == expected and answer["system_fingerprint"].startswith("xxh3:")
    assert httpx.get(f"{address}/v1/models", headers=key).json()["data"][0]["mode"] == "plain"
    made[0].should_exit = True
    thread.join(60)
    assert not thread.is_alive()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=1)
