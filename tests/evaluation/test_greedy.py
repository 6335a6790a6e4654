"""Greedy continuation of prompts of different length, against transformers one prompt at a time."""

from __future__ import annotations

import pytest
import torch

from automodel_cli.assembly.checkpoint import load_model
from automodel_cli.evaluation.greedy import Prompt, continue_greedily
from automodel_cli.evaluation.span_scores import SpanScorer

TEXTS = ("Ann", "Ann saw Eve because", "It rained, therefore the street was", "2 + 2 =", "no no no")


def prompts_of(tokenizer, new: int) -> list[Prompt]:
    return [Prompt(tuple(tokenizer(text)["input_ids"]), new) for text in TEXTS]


@pytest.mark.parametrize("share", [True, False])
def test_against_transformers(tiny_hf, share):
    loaded = load_model(tiny_hf.folder)
    prompts = prompts_of(tiny_hf.tokenizer, 12)
    stop = tiny_hf.tokenizer.eos_token_id
    engine = SpanScorer(loaded.model, batch_size=3, share=share)
    found = continue_greedily(engine, prompts, stop_ids=frozenset({stop}))
    for prompt, ids in zip(prompts, found, strict=True):
        made = tiny_hf.model.generate(
            torch.tensor([prompt.ids]), max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=stop
        )[0].tolist()[len(prompt.ids) :]
        assert ids == [token for token in made if token != stop]


def test_enough_is_enough_and_long_prompts_keep_their_tail(tiny_hf):
    loaded = load_model(tiny_hf.folder)
    engine = SpanScorer(loaded.model)
    long = tuple(range(1, 300))
    found = continue_greedily(
        engine,
        [
            Prompt((1, 2, 3), 9, lambda written: len(written) == 4),
            Prompt(long, 7),
            Prompt(long[-(192 - 7) :], 7),
            Prompt((1, 2), 0),
        ],
    )
    assert [len(ids) for ids in found] == [4, 7, 7, 0]
    assert found[1] == found[2]


def test_logits_are_made_for_the_last_position_only(tiny_hf):
    """Of 32 prompts of 1,000 tokens, whole logits of GPT-2's vocabulary would be 6 GB."""
    loaded, widths = load_model(tiny_hf.folder), []

    def forward(batch, *, head_loss=None, cache=None):
        found = type(loaded.model).forward(loaded.model, batch, head_loss=head_loss, cache=cache)
        widths.append(found.numel() // loaded.model.vocab_size)
        return found

    loaded.model.forward = forward
    engine = SpanScorer(loaded.model, share=False)
    continue_greedily(engine, [Prompt(tuple(range(1, 40)), 3), Prompt(tuple(range(1, 30)), 3)])
    assert set(widths) == {2, 1}  # the row that is done is computed no longer


@pytest.mark.parametrize("share", [True, False])
def test_rows_of_different_length_do_not_change_each_other(tiny_hf, share):
    """A batch goes on without those that are done; each row is as it is alone."""
    loaded = load_model(tiny_hf.folder)
    prompts = [
        Prompt(prompt.ids, new) for prompt, new in zip(prompts_of(tiny_hf.tokenizer, 0), (30, 1, 9, 2, 17), strict=True)
    ]
    together = continue_greedily(SpanScorer(loaded.model, batch_size=5, share=share), prompts)
    alone = continue_greedily(SpanScorer(loaded.model, batch_size=1, share=share), prompts)
    assert together == alone and [len(ids) for ids in together] == [30, 1, 9, 2, 17]
