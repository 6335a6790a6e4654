"""Keys and values kept: the same logits as a forward over everything, for rows of different length too."""

from __future__ import annotations

import pytest
import torch
import transformers

from automodel_cli.batch import Batch
from automodel_cli.generation.decoders import Cached, FullForward, left_padded
from automodel_cli.generation.engine import SamplingSettings, generate
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.hf import from_config
from automodel_cli.models.llama import build_llama_model

VOCAB, CONTEXT = 96, 24
CPU = torch.device("cpu")
TINY = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def gpt2():
    return build_gpt2_model(vocab_size=VOCAB, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=4)


def llama():
    return build_llama_model(**{key: value for key, value in TINY.items() if key != "pad_token_id"})


def hf(kind):
    if kind == "hf gpt2":
        return from_config(
            transformers.GPT2Config(vocab_size=VOCAB, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=4)
        )
    return from_config(transformers.AutoConfig.for_model(kind, **TINY))


@pytest.fixture(scope="module", params=["gpt2", "our llama", "hf gpt2", "llama", "qwen2", "qwen3", "mistral"])
def model(request):
    own = {"gpt2": gpt2, "our llama": llama}
    built = own[request.param]() if request.param in own else hf(request.param)
    built.materialize("cpu", seed=3)
    with torch.no_grad():  # fresh weights give nearly flat logits, among which nothing would be compared
        for parameter in built.parameters():
            parameter.mul_(3.0)
    return built.eval()


@torch.no_grad()
def test_every_step_gives_the_logits_of_a_full_forward(model):
    prompts = [[5, 9, 2, 7, 7, 1, 30], [4], [8, 8, 60]]
    rows = [prompt for prompt in prompts for _ in range(2)]
    cached = Cached(model, new_tokens=10)
    logits = cached.start(prompts, samples=2, device=CPU)
    for step in range(CONTEXT - 7):
        assert logits is not None
        expected = torch.cat([model(Batch(torch.tensor([row])))[:, -1] for row in rows])
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
        chosen = [(7 * step + 3 * place) % VOCAB for place in range(len(rows))]
        rows = [[*row, token] for row, token in zip(rows, chosen, strict=True)]
        logits = cached.advance(torch.tensor(chosen))


def test_greedy_as_transformers(model):
    prompts = [[5, 9, 2], [17, 11, 40]]
    found = generate(model, prompts, SamplingSettings(12, temperature=0))
    reference = model.hf if hasattr(model, "hf") else None
    if reference is None:
        full = [
            generate(model, [one], SamplingSettings(12, temperature=0), decoder=FullForward(model))[0]
            for one in prompts
        ]
        assert found == full
        return
    expected = reference.generate(
        torch.tensor(prompts),
        attention_mask=torch.ones(2, 3, dtype=torch.int64),
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    assert [samples[0].ids for samples in found] == expected[:, 3:].tolist()


class TestOverflow:
    def test_slides_to_the_newest_half(self):
        model = gpt2()
        model.materialize("cpu", seed=0)
        ((sample,),) = generate(model.eval(), [[1, 2, 3]], SamplingSettings(60, temperature=0))
        assert len(sample.ids) == 60
        kept: list[int] = [1, 2, 3]
        for token in sample.ids:  # the same policy, by full forwards
            with torch.no_grad():
                assert int(model(Batch(torch.tensor([kept])))[0, -1].argmax()) == token
            kept = [*kept, token]
            if len(kept) > CONTEXT:
                kept = kept[-(CONTEXT // 2) :]

    def test_stops(self):
        model = gpt2()
        model.materialize("cpu", seed=0)
        settings = SamplingSettings(60, temperature=0, overflow="stop")
        ((sample,),) = generate(model.eval(), [[1, 2, 3]], settings)
        assert len(sample.ids) == CONTEXT - 3 + 1 and not sample.stopped  # the last one is never read

    def test_each_row_has_its_own_end(self):
        model = gpt2()
        model.materialize("cpu", seed=0)
        alone = generate(model.eval(), [[1, 2, 3]], SamplingSettings(9, temperature=0))
        together = generate(model, [[1, 2, 3], list(range(CONTEXT - 4))], SamplingSettings(9, temperature=0))
        # After the slide the short row has lost nothing but its padding.
        assert together[0] == alone[0]


def test_long_prompts_keep_their_end():
    ids, padding = left_padded([[1, 2, 3, 4, 5], [6]], context=3)
    assert ids.tolist() == [[3, 4, 5], [0, 0, 6]] and padding.tolist() == [0, 2]
