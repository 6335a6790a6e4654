"""Scores of spans: against torch on whole sequences, whatever the batches, with and without shared beginnings."""

from __future__ import annotations

import random

import pytest
import torch
import transformers

from automodel_cli.batch import Batch
from automodel_cli.errors import AutomodelError
from automodel_cli.evaluation.icl.rows import Row
from automodel_cli.evaluation.span_scores import SpanScorer, cache_works
from automodel_cli.models import hf
from automodel_cli.models.external import ExternalCausalLM
from automodel_cli.models.gpt2 import build_gpt2_model

VOCAB = 101


def gpt2():
    model = build_gpt2_model(vocab_size=VOCAB, n_positions=96, n_embd=32, n_layer=2, n_head=2, dropout=0.2)
    model.materialize("cpu", seed=3)
    return model


def llama():
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=48,
        max_position_embeddings=96,
    )
    model = hf.from_config(config)
    model.materialize("cpu", seed=3)
    return model


def foreign():
    """A user's own module: no cache, whole logits."""
    inner = torch.nn.Sequential(torch.nn.Embedding(VOCAB, 16), torch.nn.Linear(16, VOCAB))
    return ExternalCausalLM(inner)


MODELS = {"gpt2": gpt2, "llama": llama, "foreign": foreign}


def questions(count: int = 13) -> list[list[Row]]:
    """Like a few-shot task: long shared beginnings of different length, several endings; and some single rows."""
    draw = random.Random(5)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(draw.randrange(VOCAB) for _ in range(length))

    found = []
    for number in range(count):
        beginning = ids(draw.randrange(20, 60))
        endings = [ids(draw.randrange(1, 9)) for _ in range(draw.randrange(2, 5))]
        found.append([Row(beginning + end, len(beginning), len(beginning) + len(end)) for end in endings])
        if number % 3 == 0:
            found.append([Row(beginning, draw.randrange(1, 10), len(beginning))])
        if number % 4 == 0:
            found[-1].append(found[-1][0])  # two equal answers
    return found


@torch.no_grad()
def plainly(model, row: Row) -> tuple[float, bool]:
    logits = model.eval()(Batch(torch.tensor([row.ids])))[0].double()
    targets = torch.tensor(row.ids[row.start : row.end])
    span = logits[row.start - 1 : row.end - 1]
    return float(torch.nn.functional.cross_entropy(span, targets, reduction="sum")), bool(
        (span.argmax(-1) == targets).all()
    )


@pytest.mark.parametrize("name", MODELS)
def test_against_whole_sequences(name):
    model = MODELS[name]()
    rows = questions()
    scorer = SpanScorer(model)
    assert scorer.share == (name != "foreign")
    found = scorer.score(rows)
    for of_one, scores in zip(rows, found, strict=True):
        for row, score in zip(of_one, scores, strict=True):
            nll, greedy = plainly(model, row)
            assert score.nll == pytest.approx(nll, rel=1e-5)
            assert (score.greedy, score.tokens) == (greedy, row.end - row.start)
            if row is of_one[0]:
                continue
            assert (row == of_one[0]) == (score.nll == scores[0].nll)  # equal answers tie exactly


@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_batches_change_nothing(batch_size):
    model, rows = gpt2(), questions()
    plain = SpanScorer(model, batch_size=1, share=False).score(rows)
    progress = []
    found = SpanScorer(model, batch_size=batch_size).score(rows, progress=lambda *step: progress.append(step))
    for one, other in zip(plain, found, strict=True):
        assert [score.nll for score in one] == pytest.approx([score.nll for score in other], rel=1e-5)
        assert [score.greedy for score in one] == [score.greedy for score in other]
    assert progress[-1][0] == progress[-1][1] > 0


class Small(torch.nn.Module):
    """A model whose device has memory for so many rows."""

    def __init__(self, model, rows) -> None:
        super().__init__()
        self.model, self.rows = model, rows
        self.vocab_size, self.max_seq_len = model.vocab_size, model.max_seq_len

    def forward(self, batch, **options):
        if len(batch.input_ids) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.model(batch, **options)


def test_what_does_not_fit_into_memory_is_halved():
    rows = questions()
    plain = SpanScorer(gpt2(), batch_size=1, share=False).score(rows)
    found = SpanScorer(Small(gpt2(), 3), share=True).score(rows)
    for one, other in zip(plain, found, strict=True):
        assert [score.nll for score in one] == pytest.approx([score.nll for score in other], rel=1e-5)
    with pytest.raises(AutomodelError, match="out of memory with 8 sequences") as error:
        SpanScorer(Small(gpt2(), 3), share=False, batch_size=8).score(rows)
    assert "--batch-size" in error.value.hint
    with pytest.raises(AutomodelError, match="out of memory with 1 "):
        SpanScorer(Small(gpt2(), 0), share=False).score(rows)


class Counter(torch.nn.Module):
    """Counts the tokens and the calls that a model is asked for."""

    def __init__(self, model) -> None:
        super().__init__()
        self.model, self.tokens, self.calls = model, 0, 0
        self.vocab_size, self.max_seq_len = model.vocab_size, model.max_seq_len

    def forward(self, batch, **options):
        self.tokens += batch.input_ids.numel()
        self.calls += 1
        return self.model(batch, **options)


def test_shared_beginnings_are_computed_once():
    rows = [of_one for of_one in questions(30) if len(of_one) > 2]
    counted = {}
    for share in (True, False):
        counter = Counter(gpt2())
        SpanScorer(counter, share=share).score(rows)
        counted[share] = counter.tokens
    assert counted[True] < 0.6 * counted[False]


def test_modes_and_random_numbers_stay():
    model = gpt2().train()
    before = torch.get_rng_state()
    first = SpanScorer(model).score(questions(2))
    assert model.training and torch.equal(torch.get_rng_state(), before)
    assert SpanScorer(model).score(questions(2)) == first  # dropout was off


def test_a_cache_that_gives_something_else_is_noticed():
    class Forgetful(torch.nn.Module):
        vocab_size, max_seq_len = VOCAB, 96

        def __init__(self):
            super().__init__()
            self.inner = gpt2().eval()

        def forward(self, batch, *, head_loss=None, cache=None):
            return self.inner(batch, head_loss=head_loss)

    assert cache_works(gpt2().eval(), torch.device("cpu"))
    assert not cache_works(Forgetful(), torch.device("cpu"))
