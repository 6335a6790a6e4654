"""A conversation in a terminal."""

from __future__ import annotations

import json

import pytest

from automodel_cli.corpus.tokenizer import ByteTokenizer
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.serving.dialog import Dialog
from automodel_cli.serving.engine import Engine
from automodel_cli.serving.prompts import PlainText
from automodel_cli.serving.service import Service, Settings


class Talk:
    """A dialog, and what it showed."""

    def __init__(self, service: Service) -> None:
        self.written, self.said = "", []
        self.dialog = Dialog(service, write=self.write, say=self.said.append)

    def write(self, text: str) -> None:
        self.written += text

    def take(self, *texts: str) -> bool:
        return [self.dialog.take(text) for text in texts][-1]


@pytest.fixture(scope="module")
def service():
    model = build_gpt2_model(vocab_size=257, n_positions=64, n_embd=32, n_layer=1, n_head=2)
    model.materialize("cpu", seed=1)
    tokenizer = ByteTokenizer()
    engine = Engine(model, tokenizer.decode_bytes, max_rows=1).start()
    yield Service(engine, tokenizer, PlainText(tokenizer), None, "tiny", "x", 64, 257, Settings(max_tokens=8, seed=3))
    engine.close()


@pytest.fixture
def talk(service):
    return Talk(service)


def test_answers_stream_and_are_kept(talk, service):
    assert talk.take("hello", "again")
    roles = [message.role for message in talk.dialog.messages]
    assert roles == ["user", "assistant"] * 2
    answers = [message.content for message in talk.dialog.messages[1::2]]
    assert talk.written == "".join(f"{answer}\n" for answer in answers)
    other = Talk(service)
    other.take("hello", "again")
    assert other.written == talk.written  # the seed decides
    other.take("/reset", "hello", "hello")
    assert other.dialog.messages[1] != other.dialog.messages[3]  # and not the same numbers twice


def test_commands(talk, tmp_path):
    file = tmp_path / "talk.json"
    talk.take("/system be brief", "hello", f"/save {file}")
    saved = json.loads(file.read_text())
    assert saved["messages"][0] == {"role": "system", "content": "be brief"} and len(saved["messages"]) == 3
    messages = list(talk.dialog.messages)
    talk.take("/reset")
    assert talk.dialog.messages == []
    talk.dialog.system = ""
    talk.take(f"/load {file}")
    assert talk.dialog.messages == messages and talk.dialog.system == "be brief"
    talk.take("/retry")
    assert len(talk.dialog.messages) == 2
    talk.take("/settings temperature 0 top_k null max_tokens=3")
    assert talk.said[-1] == "temperature 0.0  top_k null  top_p null  max_tokens 3  seed 3"
    talk.take("//x")
    assert talk.dialog.messages[-2].content == "/x"
    assert talk.take("/help") and "/quit" in talk.said[-1]
    assert not talk.take("/quit")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("/fly", "no command /fly"),
        ("/load nowhere.json", "nowhere.json"),
        ("/save", "needs the name of a file"),
        ("/settings temperature", "names and values"),
        ("/settings temperature hot", "not 'hot'"),
        ("/settings temperature -1", "temperature is -1"),
        ("/retry", "nothing to answer"),
        ("x" * 100, "the model's context has 64"),
    ],
)
def test_mistakes_are_told_and_change_nothing(talk, text, says):
    before = talk.dialog.settings
    assert talk.take(text)
    assert talk.said[-1].startswith("error: ") and says in talk.said[-1]
    assert talk.dialog.messages == [] and talk.dialog.settings == before and talk.written == ""


def test_the_oldest_is_left_out_and_that_is_told_once(talk):
    talk.take(*["some words of mine"] * 4)
    assert [line for line in talk.said if "context is full" in line] == [talk.said[-1]]
    assert len(talk.dialog.messages) == 8


def test_control_c_ends_an_answer(talk):
    def write(text: str) -> None:
        if text != "\n":
            raise KeyboardInterrupt

    talk.dialog._write = write
    assert talk.take("hello") and talk.said == [" (ended)"]
    assert [message.role for message in talk.dialog.messages] == ["user", "assistant"]
