"""A server in this process, around a model that says again what it was told."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("fastapi", reason="the extra [web] is not installed")
pytest.importorskip("uvicorn", reason="the extra [web] is not installed")

from automodel_cli.corpus.tokenizer import ByteTokenizer
from automodel_cli.models.interface import CausalLM
from automodel_cli.serving.engine import Engine
from automodel_cli.serving.prompts import PlainText
from automodel_cli.serving.service import Service, Settings
from automodel_cli.serving.web.guard import Rules
from automodel_cli.serving.web.listening import running
from automodel_cli.serving.web.server import make_server

USER, ASSISTANT, END = 2, 1, 256


class Echo(CausalLM):
    """Bytes: after ``USER text ASSISTANT`` it says the text and ends; a text that begins with "?" gets random letters.

    ``delay_s``: how long a forward takes.
    """

    vocab_size = padded_vocab_size = 257
    max_seq_len = 2048
    takes_cache = False

    def __init__(self) -> None:
        super().__init__()
        self.delay_s, self.forwards = 0.0, 0

    def forward(self, batch, *, head_loss=None, cache=None):
        self.forwards += 1
        time.sleep(self.delay_s)
        ids = batch.input_ids[0].tolist()
        said_from = len(ids) - ids[::-1].index(ASSISTANT) if ASSISTANT in ids else len(ids)
        told = ids[: said_from - 1]
        told = told[len(told) - told[::-1].index(USER) :] if USER in told else []
        logits = torch.zeros(1, 1, 257)
        if told[:1] == [ord("?")]:
            logits[..., ord("a") : ord("z")] = 50.0
        else:
            logits[..., [*told, END][min(len(ids) - said_from, len(told))]] = 50.0
        return head_loss.from_logits(logits, None)

    def param_roles(self):
        return {}

    def init_weights(self, seed):
        pass

    def model_config(self):
        return {}


class EchoFormat:
    """Of conversations, for that model."""

    stop_ids = frozenset({END})

    def prompt(self, conversation):
        marks = {"user": USER, "assistant": ASSISTANT}
        turns = [[marks.get(one.role, 3), *one.content.encode()] for one in conversation]
        return [*(token for turn in turns for token in turn), ASSISTANT]


@contextmanager
def serving(*, rules: Rules | None = None, timeout_s: float = 60.0, max_rows: int = 8, max_waiting: int = 16, **limits):
    """A server for as long as the block lasts: its address, model and engine."""
    model, tokenizer = Echo(), ByteTokenizer()
    with ExitStack() as stack:
        engine = Engine(model, tokenizer.decode_bytes, max_rows=max_rows, max_waiting=max_waiting).start()
        stack.callback(engine.close)
        service = Service(
            engine, tokenizer, PlainText(tokenizer), EchoFormat(), "echo", "xxh3:0", model.max_seq_len, 257,
            Settings(max_tokens=400), timeout_s,
        )  # fmt: skip
        server = make_server(service, rules or Rules(), port=0, max_tokens=1000, **limits)
        address = stack.enter_context(running(server))
        yield SimpleNamespace(url=address, port=int(address.rpartition(":")[2]), model=model, engine=engine)


@pytest.fixture(scope="package")
def echo():
    with serving() as server:
        yield server


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    def wait(what: Callable[[], bool]) -> None:
        end = time.monotonic() + 30
        while not what():
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.01)

    return wait
