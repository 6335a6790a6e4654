"""Likelihood against a plain recomputation, and what it must leave alone."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from automodel_cli.batch import IGNORE_INDEX, Batch
from automodel_cli.corpus.tokenizers.token_bytes import UNKNOWN, TokenBytes
from automodel_cli.errors import DataError
from automodel_cli.evaluation import likelihood
from automodel_cli.evaluation.likelihood import evaluate, summarise
from automodel_cli.models.gpt2 import build_gpt2_model

VOCAB = 61


def tiny_gpt2(dropout: float = 0.0) -> nn.Module:
    model = build_gpt2_model(vocab_size=VOCAB, n_positions=16, n_embd=32, n_layer=2, n_head=2, dropout=dropout)
    model.materialize("cpu", seed=3)
    return model


def make_batches(sizes=((4, 16), (4, 16), (3, 5)), *, masked=0.3) -> list[Batch]:
    """Batches of different sizes; about ``masked`` of the labels are not scored."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for rows, length in sizes:
        ids = torch.randint(0, VOCAB, (rows, length + 1), generator=generator)
        labels = ids[:, 1:].clone()
        labels[torch.rand(labels.shape, generator=generator) < masked] = IGNORE_INDEX
        batches.append(Batch(ids[:, :-1], labels))
    return batches


def plain_sums(logits_of, batches, token_bytes):
    """nll, tokens, bytes, one token at a time in float64."""
    nll, tokens, size = 0.0, 0, 0
    for batch in batches:
        log_probs = logits_of(batch).double().log_softmax(-1)
        for row, column in (batch.labels != IGNORE_INDEX).nonzero().tolist():
            label = int(batch.labels[row, column])
            nll -= float(log_probs[row, column, label])
            tokens += 1
            size += int(token_bytes[label])
    return nll, tokens, size


class TestAgainstARecomputation:
    token_bytes = np.arange(VOCAB) % 7  # some ids stand for no bytes

    @torch.no_grad()
    def test_our_gpt2(self):
        model, batches = tiny_gpt2(dropout=0.5), make_batches()
        found = evaluate(model, batches, token_bytes=self.token_bytes)
        model.eval()
        nll, tokens, size = plain_sums(lambda batch: model(batch), batches, self.token_bytes)
        assert found.tokens == tokens and found.bytes == size
        assert found.loss == pytest.approx(nll / tokens, rel=1e-6)
        assert found.perplexity == pytest.approx(math.exp(nll / tokens), rel=1e-5)
        assert found.bits_per_byte == pytest.approx(nll / math.log(2) / size, rel=1e-6)
        assert found.tokens_per_s == pytest.approx(tokens / found.seconds)

    @torch.no_grad()
    def test_transformers_own_loss(self):
        transformers = pytest.importorskip("transformers")
        sizes = {"vocab_size": VOCAB, "n_positions": 32, "n_embd": 32, "n_layer": 1, "n_head": 2}
        config = transformers.GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)
        torch.manual_seed(0)
        reference = transformers.GPT2LMHeadModel(config).eval()

        class Wrapped(nn.Module):
            """The reference model behind our interface."""

            def forward(self, batch, *, head_loss=None, cache=None):
                hidden = reference.transformer(batch.input_ids).last_hidden_state
                return head_loss(hidden, reference.lm_head.weight, batch.labels, vocab_size=VOCAB)

        ids = torch.randint(0, VOCAB, (3, 17), generator=torch.Generator().manual_seed(1))
        # transformers shifts labels itself and takes the mean over them
        expected = float(reference(ids, labels=ids).loss)
        found = evaluate(Wrapped(), [Batch(ids[:1, :-1], ids[:1, 1:]), Batch(ids[1:, :-1], ids[1:, 1:])])
        assert found.loss == pytest.approx(expected, rel=1e-5)
        assert found.bits_per_byte is None and found.bytes is None

    def test_batching_does_not_matter(self):
        """A mean of batch means would differ: the rows have different numbers of labels."""
        model, (batch,) = tiny_gpt2(), make_batches(sizes=((6, 16),), masked=0.7)
        whole = evaluate(model, [batch])
        rows = [Batch(batch.input_ids[i : i + 1], batch.labels[i : i + 1]) for i in range(6)]
        assert evaluate(model, rows).loss == pytest.approx(whole.loss, rel=1e-6)

    def test_autocast(self):
        model, batches = tiny_gpt2(), make_batches()
        full, half = evaluate(model, batches), evaluate(model, batches, autocast_dtype=torch.bfloat16)
        assert half.loss != full.loss
        assert half.loss == pytest.approx(full.loss, abs=0.02)

    def test_ranks_are_added_up(self):
        model, batches = tiny_gpt2(), make_batches()
        other = []

        def collect(totals):
            other.append(totals)
            return totals

        evaluate(model, batches[1:], token_bytes=self.token_bytes, sum_over_ranks=collect)
        found = evaluate(model, batches[:1], token_bytes=self.token_bytes, sum_over_ranks=lambda mine: mine + other[0])
        whole = evaluate(model, batches, token_bytes=self.token_bytes)
        assert (found.tokens, found.bytes) == (whole.tokens, whole.bytes)
        assert found.loss == pytest.approx(whole.loss, rel=1e-6)


class TestColumns:
    """What each batch gave lies in few pieces of memory, and adds up to the very number of one tensor for each."""

    @pytest.mark.parametrize("count", [1, 4, 5, 11])
    def test_the_sum_of_many(self, monkeypatch, count):
        monkeypatch.setattr(likelihood, "_PIECE", 4)
        values = torch.rand(count, generator=torch.Generator().manual_seed(2)) * 1e4
        column = likelihood._Column()
        for value in values:
            column.append(value)
        assert len(column._pieces) == -(-count // 4)
        assert torch.equal(column.total(), torch.stack(list(values)).double().sum())

    def test_whole_numbers_stay_whole(self):
        column = likelihood._Column()
        for value in (2**40 + 1, 2**40 + 3):
            column.append(torch.tensor(value))
        assert int(column.total()) == 2**41 + 4

    def test_of_nothing(self):
        assert likelihood._Column().total() == 0


class TestLeavesAlone:
    def test_modes_of_each_module(self):
        model = tiny_gpt2(dropout=0.5)
        model.train()
        frozen = next(module for module in model.modules() if isinstance(module, nn.LayerNorm))
        frozen.eval()
        before = [module.training for module in model.modules()]
        evaluate(model, make_batches())
        assert [module.training for module in model.modules()] == before
        assert model.training and not frozen.training

    def test_modes_after_an_error(self):
        model = tiny_gpt2().train()

        def failing():
            yield make_batches()[0]
            raise RuntimeError("the disk is gone")

        with pytest.raises(RuntimeError):
            evaluate(model, failing())
        assert model.training

    def test_weights_gradients_and_random_numbers(self):
        model = tiny_gpt2()
        weights = {name: value.clone() for name, value in model.state_dict().items()}

        class Noisy(nn.Module):
            """A model that draws numbers even in eval mode."""

            def forward(self, batch, *, head_loss=None, cache=None):
                torch.rand(10)
                return model(batch, head_loss=head_loss)

        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        evaluate(Noisy(), make_batches())
        torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


class TestEdges:
    @pytest.mark.parametrize("batches", [[], [Batch(torch.zeros(1, 2, dtype=torch.long), torch.full((1, 2), -100))]])
    def test_nothing_to_score(self, batches):
        with pytest.raises(DataError, match="nothing to score"):
            evaluate(tiny_gpt2(), batches)

    def test_only_tokens_without_bytes(self):
        found = evaluate(tiny_gpt2(), make_batches(), token_bytes=np.zeros(VOCAB))
        assert found.bytes == 0 and found.bits_per_byte is None

    def test_a_hopeless_model(self):
        assert summarise(1e6, 10, None, 1.0).perplexity == math.inf
        assert math.isnan(summarise(math.nan, 10, None, 1.0).loss)

    def test_progress(self):
        seen: list[int] = []
        evaluate(tiny_gpt2(), make_batches(), progress=seen.append)
        assert seen == [1, 2, 3]

    def test_as_dict_is_json(self):
        found = evaluate(tiny_gpt2(), make_batches(), token_bytes=np.ones(VOCAB)).as_dict()
        assert set(json.loads(json.dumps(found))) == {
            *("loss", "perplexity", "bits_per_byte", "tokens", "bytes", "seconds", "tokens_per_s")
        }


class TestBytesOfTexts:
    """A token that begins a text, and one of which nobody knows."""

    def score(self, sizes):
        batches = make_batches()
        return evaluate(tiny_gpt2(), batches, token_bytes=sizes), batches

    def test_first_tokens_count_their_own_bytes(self):
        begins = np.zeros(VOCAB, dtype=bool)
        begins[[0, 3]] = True
        sizes = TokenBytes(np.full(VOCAB, 5), np.full(VOCAB, 4), begins)
        found, batches = self.score(sizes)
        expected = sum(
            (4 if before in (0, 3) else 5)
            for batch in batches
            for row, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True)
            for before, label in zip(row, labels, strict=True)
            if label != IGNORE_INDEX
        )
        assert found.bytes == expected and expected % 5

    def test_one_unknown_token_makes_the_sum_unknown(self):
        sizes = np.full(VOCAB, 2)
        known, batches = self.score(sizes)
        assert known.bytes == 2 * known.tokens
        label = next(int(one) for one in batches[0].labels.flatten() if one != IGNORE_INDEX)
        sizes[label] = UNKNOWN
        found, _ = self.score(sizes)
        assert found.bytes is None and found.bits_per_byte is None and found.loss == known.loss
