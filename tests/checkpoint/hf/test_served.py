"""Exported folders in the hands of those who generate from them: the same tokens, and an end where a turn ends."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
import torch
import transformers
from tests.checkpoint import vllm_answers
from tests.checkpoint.hf import tiny
from tests.checkpoint.vllm_answers import MAX_TOKENS, QUESTION

from automodel_cli.batch import Batch
from automodel_cli.checkpoint.hf import export as hf_export
from automodel_cli.corpus.conversations.chatml import ChatML, with_chatml
from automodel_cli.corpus.conversations.conversation import Message
from automodel_cli.corpus.tokenizer import ByteTokenizer
from automodel_cli.corpus.tokenizers.train_bpe import train_bpe
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.llama import build_llama_model

LONG = {**tiny.LLAMA, "hidden_size": 64, "max_position_embeddings": 128}
BUILDERS = {
    "gpt2": lambda v: build_gpt2_model(**{**tiny.GPT2, "vocab_size": v, "n_positions": 128, "n_embd": 96}),
    "gpt2_no_bias": lambda v: build_gpt2_model(
        **{**tiny.GPT2, "vocab_size": v, "n_positions": 128, "n_embd": 96}, bias=False
    ),
    "llama": lambda v: build_llama_model(**{**LONG, "vocab_size": v}),
    "llama_tied": lambda v: build_llama_model(**{**LONG, "vocab_size": v}, tie_word_embeddings=True),
}


def tokenizer_of(name):
    """Vocabularies that are no multiple of 64."""
    return with_chatml(
        ByteTokenizer() if name in ("gpt2", "llama_tied") else train_bpe(["a user said it is " * 50], 268)
    )


def make(name, root):
    """An exported folder of a model that is sure of its tokens, and the model."""
    tokenizer = tokenizer_of(name)
    tokenizer.save(root / f"{name}_tokenizer")
    model = BUILDERS[name](tokenizer.vocab_size)
    model.init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.25, generator=generator)
    hf_export.save_hf(model, root / name, root / f"{name}_tokenizer")
    return model.eval(), ChatML(tokenizer)


def greedy(model, ids, stop_ids):
    said = list(ids)
    with torch.no_grad():
        while len(said) < len(ids) + MAX_TOKENS and (said[-1] not in stop_ids or len(said) == len(ids)):
            said.append(int(model(Batch(torch.tensor([said]), None))[0, -1].argmax()))
    return said[len(ids) :]


@pytest.mark.parametrize("name", BUILDERS)
def test_a_pipeline_answers_with_our_tokens(tmp_path, name):
    model, chat = make(name, tmp_path)
    ids = chat.prompt((Message("user", QUESTION),))
    generate = transformers.pipeline("text-generation", str(tmp_path / name), device="cpu")
    found = generate(
        [{"role": "user", "content": QUESTION}], max_new_tokens=MAX_TOKENS, do_sample=False, return_tensors=True
    )
    assert found[0]["generated_token_ids"] == [*ids, *greedy(model, ids, chat.stop_ids)]
    assert generate.model.config.vocab_size == len(generate.tokenizer) == model.vocab_size


@pytest.mark.skipif(
    not os.environ.get("VLLM_PYTHON"), reason="VLLM_PYTHON names no interpreter with vLLM (its CPU build is enough)"
)
def test_vllm_answers_with_our_tokens(tmp_path):
    made = {name: make(name, tmp_path) for name in BUILDERS}
    asked = {name: chat.tokenizer.encode("it is said") for name, (_, chat) in made.items()}
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    subprocess.run([os.environ["VLLM_PYTHON"], vllm_answers.__file__, str(tmp_path)], check=True)
    answers = json.loads((tmp_path / "answers.json").read_bytes())["answers"]
    for name, (model, chat) in made.items():
        found, prompt = answers[name], chat.prompt((Message("user", QUESTION),))
        assert found["greedy"] == greedy(model, asked[name], chat.stop_ids), name
        assert found["chat_prompt"] == prompt and found["chat"] == greedy(model, prompt, chat.stop_ids), name
        assert len(found["sampled"]) == 256 and max(found["sampled"]) < model.vocab_size, name
