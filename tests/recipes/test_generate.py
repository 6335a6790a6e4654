"""Continuing a prompt with a checkpoint from disk."""

from __future__ import annotations

import pytest
import torch
import transformers

from automodel_cli.batch import Batch
from automodel_cli.config.schema.results import GenerateConfig
from automodel_cli.corpus.tokenizer import CharTokenizer
from automodel_cli.errors import ConfigError, DataError
from automodel_cli.generation.engine import SamplingSettings
from automodel_cli.generation.engine import generate as engine_generate
from automodel_cli.models import hf
from automodel_cli.recipes import generate


def config(tiny_run, **settings) -> GenerateConfig:
    given = {"checkpoint": str(tiny_run.run), "max_new_tokens": 12, "device": "cpu"}
    return GenerateConfig(**{**given, "prompt": "line 4", **settings})


def samples_of(cfg: GenerateConfig) -> list[list[generate.Continuation]]:
    return [prompt.samples for prompt in generate.run(cfg).prompts]


def test_text_streams_and_adds_up(tiny_run):
    pieces: dict[int, str] = {0: "", 1: ""}

    def on_text(sample, piece):
        pieces[sample] += piece

    result = generate.run(config(tiny_run, num_samples=2, seed=3), on_text=on_text)
    (first,) = result.prompts
    assert [sample.text for sample in first.samples] == [pieces[0], pieces[1]]
    assert first.samples[0].ids != first.samples[1].ids
    assert result.tokens_per_s > 0 and result.checkpoint.name == "step_00000007"
    again = generate.run(config(tiny_run, num_samples=2, seed=3))
    assert again.prompts == result.prompts


def test_greedy_is_the_engine_on_the_prompts_bytes(tiny_run):
    ((sample,),) = samples_of(config(tiny_run, temperature=0))
    settings = SamplingSettings(12, temperature=0, stop_ids=frozenset({256}))
    ((expected,),) = engine_generate(tiny_run.model, [list(b"line 4")], settings)
    assert (sample.ids, sample.stopped) == (expected.ids, expected.stopped)
    assert sample.text == bytes(sample.ids).decode("utf-8", errors="replace")


def test_empty_prompt_starts_a_document(tiny_run, monkeypatch):
    seen = {}

    def spy(model, prompts, settings, **rest):
        (seen["ids"],), seen["stop"] = prompts, settings.stop_ids
        return engine_generate(model, prompts, settings, **rest)

    monkeypatch.setattr(generate, "generate", spy)
    generate.run(config(tiny_run, prompt="", max_new_tokens=1))
    assert seen == {"ids": [256], "stop": frozenset({256})}


def test_special_text_in_the_prompt_stays_text(tiny_run, monkeypatch):
    seen = []

    def spy(model, prompts, settings, **rest):
        seen.extend(prompts)
        return engine_generate(model, prompts, settings, **rest)

    monkeypatch.setattr(generate, "generate", spy)
    generate.run(config(tiny_run, prompt="<|endoftext|>", max_new_tokens=1))
    assert seen == [list(b"<|endoftext|>")]


class TestPrompts:
    def test_longer_than_the_context(self, tiny_run):
        context = tiny_run.model.max_seq_len
        longer = "x" * (context + 1)
        with pytest.raises(ConfigError, match=rf"prompt of {context + 1} tokens, the model's context has {context}"):
            generate.run(config(tiny_run, prompt=longer, overflow="stop"))
        slid = generate.run(config(tiny_run, prompt=longer))
        assert len(slid.prompts[0].samples[0].ids) == 12 and "only its end is read" in slid.notes[0]
        fitting = generate.run(config(tiny_run, prompt=longer[1:], overflow="stop"))
        assert len(fitting.prompts[0].samples[0].ids) == 1 and not fitting.notes

    @pytest.mark.parametrize("where", ["prompt", "stop"])
    def test_not_utf8(self, where):
        given = {"prompt": "a\udcff"} if where == "prompt" else {"stop": ("\udcff",)}
        with pytest.raises(ConfigError, match=r"'a?\\udcff' is not UTF-8 text"):
            generate.read_prompts(GenerateConfig(checkpoint="x", **given))

    def test_files_that_are_no_text(self, tmp_path):
        (tmp_path / "bad").write_bytes(b"a\xff")
        for name in ("bad", "nowhere", ".", "null\0byte"):
            for given in ({"prompt": f"FILE:{tmp_path / name}"}, {"prompt_file": str(tmp_path / name)}):
                with pytest.raises(ConfigError) as error:
                    generate.read_prompts(GenerateConfig(checkpoint="x", **given))
                assert error.value.hint == "name a text file"


class TestTokenizer:
    def test_missing(self, tiny_run, monkeypatch):
        loaded = generate.load_model(str(tiny_run.run))
        bare = generate.LoadedModel(loaded.model, None, loaded.path, loaded.facts)
        monkeypatch.setattr(generate, "load_model", lambda *_, **__: bare)
        with pytest.raises(ConfigError, match="no tokenizer"):
            generate.run(config(tiny_run))

    def test_without_a_document_token_an_empty_prompt_is_refused(self, tiny_run, tmp_path):
        CharTokenizer("abc").save(tmp_path)
        with pytest.raises(ConfigError, match="prompt is empty"):
            generate.run(config(tiny_run, prompt="", tokenizer=str(tmp_path)))

    def test_smaller_than_the_model_limits_the_choice(self, tiny_run, tmp_path):
        CharTokenizer("abc").save(tmp_path)
        ((sample,),) = samples_of(config(tiny_run, prompt="abc", tokenizer=str(tmp_path), temperature=50.0, top_k=None))
        assert set(sample.text) <= set("abc") and len(sample.ids) == 12

    def test_larger_than_the_model(self, tiny_run, tmp_path):
        CharTokenizer([chr(0x4E00 + n) for n in range(300)]).save(tmp_path)
        with pytest.raises(DataError, match="token id 299"):
            generate.run(config(tiny_run, prompt=chr(0x4E00 + 299), tokenizer=str(tmp_path)))


def test_a_model_with_a_cache_of_its_own_kind_continues_without():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_blocks": 1, "num_heads": 2, "embedding_dim": 32}
    model = hf.from_config(transformers.xLSTMConfig(vocab_size=61, **sizes))
    model.init_weights(0)
    [[sample]] = engine_generate(model, [[1, 2, 3]], SamplingSettings(2, temperature=0))
    with torch.no_grad():
        logits = model(Batch(torch.tensor([[1, 2, 3, sample.ids[0]]])))
    assert sample.ids == logits[0, -2:].argmax(-1).tolist()


def test_a_model_whose_forward_fails_inside_transformers_is_refused_with_its_reason():
    model = hf.from_config(transformers.GPT2Config(vocab_size=61, n_embd=8, n_layer=1, n_head=2))
    named = generate._forward_errors_named
    with (
        pytest.raises(ConfigError, match=r"GPT2LMHeadModel of .* cannot continue this text: .* no state"),
        named(model),
    ):
        raise AttributeError("no state")
    with pytest.raises(ValueError, match="ours"), named(torch.nn.Identity()):
        raise ValueError("a fault of ours stays one")
