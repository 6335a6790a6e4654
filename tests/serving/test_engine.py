"""The running batch: the same tokens as a request gets alone, and who comes, goes, waits and fails."""

from __future__ import annotations

import threading

import pytest
import torch
import transformers
from torch import nn

from automodel_cli.batch import Batch
from automodel_cli.errors import ConfigError
from automodel_cli.generation.engine import SamplingSettings, generate
from automodel_cli.models.gpt import build_gpt_model
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.hf import from_config
from automodel_cli.models.interface import CausalLM
from automodel_cli.models.llama import build_llama_model
from automodel_cli.serving import rows
from automodel_cli.serving.choosing import Sampling
from automodel_cli.serving.engine import BusyError, Engine, Request

VOCAB, CONTEXT = 96, 48
LLAMA = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}  # fmt: skip
NONE = {"bos_token_id": None, "eos_token_id": None}
BUILD = {
    "gpt2": lambda: build_gpt2_model(vocab_size=VOCAB, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=4),
    "llama": lambda: build_llama_model(**LLAMA, **NONE, intermediate_size=48),
    "gpt, window": lambda: build_gpt_model(
        **LLAMA, short_window=5, window_pattern="SL", value_embeddings=True, softcap=15.0
    ),
    "hf mistral": lambda: from_config(
        transformers.MistralConfig(
            **LLAMA, intermediate_size=48, sliding_window=6, bos_token_id=None, eos_token_id=None
        )
    ),
}
PROMPTS = [[5, 9, 2, 7, 7, 1, 30], [4], [8, 8, 60], list(range(20)), [1, 2], [90, 3, 3, 3, 17]]
BUDGETS = [12, 3, 40, 9, 25, 1]


def model_of(kind: str) -> CausalLM:
    model = BUILD[kind]()
    model.materialize("cpu", seed=3)
    with torch.no_grad():  # fresh weights give nearly flat logits, among which nothing would be compared
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model.eval()


class Client:
    """What a request got, and a way to wait for its end."""

    def __init__(self) -> None:
        self.pieces, self.done = [], threading.Event()

    def __call__(self, piece) -> None:
        self.pieces.append(piece)
        if piece.finish is not None:
            self.done.set()

    def result(self):
        assert self.done.wait(60)
        return [token for piece in self.pieces for token in piece.ids], self.pieces[-1].finish

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


def letters(ids) -> bytes:
    return bytes(32 + token % 90 for token in ids)


def engine_of(model, **settings) -> Engine:
    return Engine(model, letters, **settings)


def ask(engine: Engine, *requests: Request) -> list[Client]:
    clients = [Client() for _ in requests]
    engine.submit(requests, clients)
    return clients


@pytest.mark.parametrize("kind", BUILD)
def test_a_request_among_others_gets_the_tokens_it_gets_alone(kind, monkeypatch):
    """Greedy: exactly those of ``generate``; drawn: those of the same request in an empty engine."""
    monkeypatch.setattr(rows, "CHUNK_TOKENS", 8)  # a prompt of 20 tokens is read in three pieces
    model = model_of(kind)
    greedy = [
        Request(prompt, budget, Sampling(0.0), logprobs=0) for prompt, budget in zip(PROMPTS, BUDGETS, strict=True)
    ]
    drawn = [Request(p, 10, Sampling(1.0, top_k=20, seed=n)) for n, p in enumerate(PROMPTS)]
    engine = engine_of(model, max_rows=3).start()
    alone = [ask(engine, request)[0].result() for request in drawn]
    clients = ask(engine, *(one for pair in zip(greedy, drawn, strict=True) for one in pair))
    results = [client.result() for client in clients]
    engine.close()
    for prompt, budget, result, client in zip(PROMPTS, BUDGETS, results[::2], clients[::2], strict=True):
        settings = SamplingSettings(budget, temperature=0, overflow="stop")
        ((expected,),) = generate(model, [prompt], settings)
        assert result == (expected.ids, "length")
        scores = [score for piece in client.pieces for score in piece.scores]
        whole = torch.tensor([[*prompt, *expected.ids]])
        with torch.no_grad():
            logprobs = model(Batch(input_ids=whole[:, :-1])).log_softmax(-1)[0, len(prompt) - 1 :]
        torch.testing.assert_close(
            torch.tensor([score.logprob for score in scores]),
            logprobs.gather(1, torch.tensor(expected.ids)[:, None])[:, 0], atol=1e-4, rtol=1e-4,
        )  # fmt: skip
    assert results[1::2] == alone


class Counting(CausalLM):
    """Its likeliest next token is the last one plus 1. ``gate``: a forward waits until it is open."""

    vocab_size = padded_vocab_size = VOCAB
    max_seq_len = CONTEXT
    takes_cache = False

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.poison: set[int] = set()

    def forward(self, batch, *, head_loss=None, cache=None):
        self.entered.release()
        assert self.gate.wait(60)
        last = int(batch.input_ids[0, -1])
        if last in self.poison:
            raise RuntimeError("no such token")
        logits = nn.functional.one_hot((batch.input_ids + 1) % VOCAB, VOCAB).float() * 50
        return head_loss.from_logits(logits * (float("nan") if last == 66 else 1), None)

    def param_roles(self):
        return {}

    def init_weights(self, seed):
        pass

    def model_config(self):
        return {}


def stopped(counting: Counting) -> None:
    """Let the engine run into a closed gate."""
    counting.gate.clear()
    while counting.entered.acquire(blocking=False):
        pass


@pytest.fixture
def counting():
    return Counting()


def test_what_ends_a_request(counting):
    engine = engine_of(counting).start()
    by_id, by_text, by_budget, by_context = ask(
        engine,
        Request([3], 20, Sampling(0.0), stop_ids=frozenset({7})),
        Request([3], 20, Sampling(0.0), stop_texts=("&'", "no")),  # ids 6 and 7
        Request([3], 4, Sampling(0.0)),
        Request([0] * (CONTEXT - 1), 9, Sampling(0.0)),
    )
    assert by_id.result() == ([4, 5, 6], "stop") and by_id.text == "$%&"
    assert by_text.result() == ([4, 5, 6, 7], "stop") and by_text.text == "$%"
    assert by_budget.result() == ([4, 5, 6, 7], "length")
    assert by_context.result() == ([1, 2], "length")  # the last from all of the context
    engine.close()


def test_prompts_that_cannot_be_continued_are_refused(counting):
    engine = engine_of(counting)
    with pytest.raises(ConfigError, match="no tokens"):
        ask(engine, Request([], 1))
    with pytest.raises(ConfigError, match="49 tokens, the model's context has 48"):
        ask(engine, Request([1] * (CONTEXT + 1), 1))


def test_the_line_is_bounded_and_the_cancelled_leave_it(counting):
    engine = engine_of(counting, max_rows=1, max_waiting=2).start()
    stopped(counting)
    (first,) = ask(engine, Request([3], 30, Sampling(0.0)))
    assert counting.entered.acquire(timeout=60)
    second, third = Client(), Client()
    tickets = engine.submit([Request([10], 2, Sampling(0.0)), Request([20], 2, Sampling(0.0))], [second, third])
    with pytest.raises(BusyError, match="2 requests are waiting"):
        ask(engine, Request([3], 1))
    tickets[0].cancel()
    counting.gate.set()
    assert second.result() == ([], "cancelled")
    assert third.result() == ([21, 22], "length")
    assert first.result()[1] == "length"
    engine.close()
    with pytest.raises(BusyError):
        ask(engine, Request([3], 1))


def test_a_cancelled_row_leaves_before_the_next_step(counting):
    engine = engine_of(counting).start()
    stopped(counting)
    client = Client()
    (ticket,) = engine.submit([Request([3], 40, Sampling(0.0))], [client])
    assert counting.entered.acquire(timeout=60)
    ticket.cancel()
    counting.gate.set()
    tokens, finish = client.result()
    assert finish == "cancelled" and len(tokens) <= 1
    assert ask(engine, Request([3], 1, Sampling(0.0)))[0].result() == ([4], "length")
    engine.close()


def test_time_limits_count_from_the_beginning(counting):
    clock = iter(range(10_000))
    engine = engine_of(counting, clock=lambda: next(clock)).start()
    (client,) = ask(engine, Request([3], 40, Sampling(0.0), timeout_s=20.0))
    tokens, finish = client.result()
    assert finish == "timeout" and 1 < len(tokens) < 20
    engine.close()


def test_an_error_ends_the_requests_of_the_batch_and_not_the_engine(counting):
    counting.poison = {50}
    engine = engine_of(counting).start()
    (failed,) = ask(engine, Request([48], 9, Sampling(0.0)))
    assert failed.result() == ([49, 50], "failed") and "no such token" in failed.pieces[-1].error
    not_finite, fine = ask(engine, Request([65], 9, Sampling(0.0)), Request([3], 2, Sampling(0.0)))
    assert not_finite.result() == ([66], "failed")
    assert fine.result() == ([4, 5], "length")
    assert engine.is_alive
    engine.close()


def test_closing_ends_what_runs_and_what_waits(counting):
    engine = engine_of(counting, max_rows=1).start()
    stopped(counting)
    clients = ask(engine, Request([3], 40), Request([3], 40))
    assert counting.entered.acquire(timeout=60)
    closing = threading.Thread(target=engine.close)
    closing.start()
    counting.gate.set()
    assert {client.result()[1] for client in clients} <= {"cancelled"}
    closing.join(60)
    assert not engine.is_alive


def test_measures_add_up(counting):
    engine = engine_of(counting).start()
    for client in ask(engine, Request([3, 4], 5, Sampling(0.0)), Request([9], 2, Sampling(0.0))):
        client.result()
    engine.close()
    text = engine.measures.text(waiting=1, active=2, connections=3)
    for line in (
        "automodel_requests_waiting 1",
        "automodel_prompt_tokens_total 3",
        "automodel_generated_tokens_total 7",
        'automodel_requests_total{finish="length"} 2',
        "automodel_request_seconds_count 2",
        'automodel_first_token_seconds_bucket{le="+Inf"} 2',
    ):
        assert line in text.splitlines()
