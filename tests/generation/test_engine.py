"""The decoding loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from automodel_cli.errors import ConfigError
from automodel_cli.generation.engine import SamplingSettings, generate
from automodel_cli.models.gpt2 import build_gpt2_model

VOCAB = 40


class CountingModel(nn.Module):
    """Its likeliest next token is the last one plus 1; remembers the lengths it was called with."""

    max_seq_len = 4

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[int]] = []

    def forward(self, batch, *, head_loss=None, cache=None):
        self.seen.append(batch.input_ids[0].tolist())
        return self.answer(nn.functional.one_hot((batch.input_ids + 1) % VOCAB, VOCAB).float() * 50, head_loss)

    def answer(self, logits, head_loss):
        return logits if head_loss is None else head_loss.from_logits(logits, None)


def greedy(**settings) -> SamplingSettings:
    return SamplingSettings(**{"temperature": 0, "max_new_tokens": 5, **settings})


class TestGenerate:
    def test_counts_on_and_crops_on_the_left(self):
        model = CountingModel()
        ((found,),) = generate(model, [[3, 4]], greedy())
        assert found.ids == [5, 6, 7, 8, 9] and not found.stopped
        assert model.seen == [[3, 4], [3, 4, 5], [3, 4, 5, 6], [4, 5, 6, 7], [5, 6, 7, 8]]

    def test_long_prompt_is_cropped(self):
        model = CountingModel()
        generate(model, [list(range(10))], greedy(max_new_tokens=1))
        assert model.seen == [[6, 7, 8, 9]]

    def test_stop_token_ends_a_sample_and_is_left_out(self):
        seen = []
        (found,) = generate(
            CountingModel(),
            [[3]],
            greedy(stop_ids=frozenset({6}), num_samples=2),
            on_token=lambda row, token: seen.append((row, token)),
        )
        assert [(s.ids, s.stopped) for s in found] == [([4, 5], True)] * 2
        assert seen == [(0, 4), (1, 4), (0, 5), (1, 5)]

    def test_samples_stop_one_by_one(self):
        settings = SamplingSettings(
            temperature=5.0, max_new_tokens=30, num_samples=4, seed=1, stop_ids=frozenset(range(0, VOCAB, 8))
        )

        class Flat(CountingModel):
            max_seq_len = 64

            def forward(self, batch, *, head_loss=None, cache=None):
                return self.answer(torch.zeros(*batch.input_ids.shape, VOCAB), head_loss)

        (found,) = generate(Flat(), [[1]], settings)
        assert len({len(s.ids) for s in found}) > 1
        assert all(s.stopped == (len(s.ids) < 30) for s in found)

    def test_as_transformers_greedy(self):
        transformers = pytest.importorskip("transformers")
        config = transformers.GPT2Config(vocab_size=VOCAB, n_positions=64, n_embd=32, n_layer=2, n_head=2)
        torch.manual_seed(0)
        reference = transformers.GPT2LMHeadModel(config).eval()

        class Wrapped(nn.Module):
            max_seq_len = 64

            def forward(self, batch, *, head_loss=None, cache=None):
                logits = reference(batch.input_ids).logits
                return logits if head_loss is None else head_loss.from_logits(logits, None)

        prompt = [3, 1, 4, 1, 5]
        expected = reference.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None
        )
        ((found,),) = generate(Wrapped(), [prompt], greedy(max_new_tokens=12))
        assert found.ids == expected[0, 5:].tolist()

    def test_seeded_samples_of_a_real_model(self):
        model = build_gpt2_model(vocab_size=VOCAB, n_positions=16, n_embd=32, n_layer=1, n_head=2, dropout=0.5)
        model.materialize("cpu", seed=0)
        model.train()
        settings = SamplingSettings(max_new_tokens=20, temperature=1.0, top_k=20, top_p=0.9, seed=4, num_samples=3)
        (first,), (again,) = generate(model, [[1, 2]], settings), generate(model, [[1, 2]], settings)
        assert first == again  # dropout is off
        assert model.training
        assert len({tuple(s.ids) for s in first}) == 3
        one = SamplingSettings(**{**vars(settings), "num_samples": 1})
        ((alone,),) = generate(model, [[1, 2]], one)
        assert alone.ids == first[0].ids
        several = generate(model, [[1, 2], [5, 6, 7, 8], [1, 2]], one)  # what a prompt draws is its own
        assert several[0] == [alone] and several[2] != [alone]

    def test_ids_the_tokenizer_does_not_know_are_not_chosen(self):
        ((found,),) = generate(CountingModel(), [[3]], greedy(), usable_ids=5)
        assert found.ids == [4, 0, 1, 2, 3]

    def test_a_decoder_of_its_own(self):
        """The seam between choosing and computing: start with the prompts, then one token a row."""

        class Recording:
            def __init__(self) -> None:
                self.calls: list[tuple[str, list]] = []

            def start(self, prompts, *, samples, device):
                self.calls.append(("start", prompts))
                return nn.functional.one_hot(torch.tensor([prompts[0][-1]]) + 1, VOCAB).float()

            def advance(self, ids):
                self.calls.append(("advance", ids.tolist()))
                return nn.functional.one_hot(ids + 1, VOCAB).float()

        decoder = Recording()
        generate(CountingModel(), [[1, 2]], greedy(max_new_tokens=3), decoder=decoder)
        assert decoder.calls == [("start", [[1, 2]]), ("advance", [3]), ("advance", [4])]

    def test_refuses(self):
        with pytest.raises(ConfigError, match="no token"):
            generate(CountingModel(), [[1], []], greedy())
        with pytest.raises(ConfigError, match="top_k"):
            generate(CountingModel(), [[1]], greedy(top_k=0))
        with pytest.raises(ConfigError, match="repetition_penalty"):
            generate(CountingModel(), [[1]], greedy(repetition_penalty=0))

    def test_the_callback_ends_a_row(self):
        (found,) = generate(
            CountingModel(), [[3]], greedy(num_samples=2), on_token=lambda row, token: row == 0 and token == 5
        )
        assert [(s.ids, s.stopped) for s in found] == [([4, 5], True), ([4, 5, 6, 7, 8], False)]
