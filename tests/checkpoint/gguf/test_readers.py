"""Readers that others wrote take our files: transformers', and llama.cpp where llama-cpp-python is installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from tests.checkpoint.gguf import exported
from tests.checkpoint.gguf.llama_cpp_reader import LlamaCpp, needs_llama_cpp
from tests.effort import in_a_push

from automodel_cli.batch import Batch
from automodel_cli.corpus.conversations.chat_format import chat_format_of
from automodel_cli.corpus.conversations.chatml import with_chatml
from automodel_cli.corpus.conversations.conversation import Message
from automodel_cli.corpus.tokenizer import open_tokenizer
from automodel_cli.corpus.tokenizers.engines import probe_texts
from automodel_cli.corpus.tokenizers.hf import HFTokenizer
from automodel_cli.models.layers import shared

IDS = [k * 37 % 320 for k in range(40)]
TEXTS = in_a_push(500, of=10_000)
CORPUS = Path(__file__).parents[4] / "shared/data/corpus/books.parquet"
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>user\n<|im_end|>",
    "[PAD321]",
    "<s>a</s>",
    "<0x41>",
    "▁a",
    "Ġa",
    "\x00",
    "a\r\n\r\n b",
]
# transformers takes no biases and no rotary scaling from a GGUF file.
ONLY_LLAMA_CPP = ("llama 3.1", "gpt like llama, with biases")


def logits(model, ids):
    with torch.no_grad():
        return model(Batch(torch.tensor([ids]), None))[0]


@pytest.mark.parametrize("kind", [kind for kind in exported.KINDS if kind not in ONLY_LLAMA_CPP])
def test_transformers_computes_the_same_logits(tmp_path, kind):
    model = exported.model(kind)
    file = exported.export(model, tmp_path)
    # It does not look these up in the file.
    sizes = {"n_positions": exported.CONTEXT, "n_inner": 96 if "like" in kind else None} if "gpt2" in kind else {}
    sizes |= {"head_dim": 24} if kind == "qwen3" else {}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, **sizes)
    with torch.no_grad():
        found = loaded.eval()(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(found, logits(model, IDS), atol=2e-5, rtol=1e-5)


def test_transformers_makes_the_same_tokens(tmp_path):
    chat = with_chatml(exported.tokenizer())
    file = exported.export(exported.model("llama"), tmp_path, text=chat)
    loaded = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    texts = [text for text in probe_texts() if "<|" not in text]  # there a text may spell a special token
    assert [loaded.encode(text) for text in texts] == [chat.encode(text) for text in texts]
    assert loaded.encode("<|im_start|>a<|im_end|>") == [320, *chat.encode("a"), 321]
    assert (loaded.eos_token_id, loaded.bos_token_id) == (0, 0)
    said = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    ids = chat_format_of(chat).prompt(tuple(Message(**message) for message in said))
    assert loaded.apply_chat_template(said, add_generation_prompt=True)["input_ids"] == ids


# ------------------------------------------------------------------------------------------------- llama.cpp


def table_gelu(x: torch.Tensor, *, approximate: str) -> torch.Tensor:
    """llama.cpp's GELU: a table over numbers of half precision."""
    return torch.nn.functional.gelu(x.half().float(), approximate=approximate).half().float()


@needs_llama_cpp
@pytest.mark.parametrize("kind", exported.KINDS)
def test_llama_cpp_computes_the_same_logits_and_says_the_same(tmp_path, kind):
    model = exported.model(kind)
    reader = LlamaCpp(exported.export(model, tmp_path), exported.CONTEXT)
    found, ours = torch.from_numpy(reader.logits(IDS)), logits(model, IDS)
    assert (found - ours).abs().max() < (1e-2 if "gpt2" in kind else 1e-4)
    said = list(IDS[:4])
    for _ in range(64):
        said.append(int(logits(model, said)[-1].argmax()))
    assert reader.greedy(IDS[:4], 64) == said[4:]


@needs_llama_cpp
def test_of_gpt2_llama_cpp_differs_by_its_table_of_gelu_alone(tmp_path, monkeypatch):
    model = exported.model("gpt2")
    reader = LlamaCpp(exported.export(model, tmp_path), exported.CONTEXT)
    found, exact = torch.from_numpy(reader.logits(IDS)), logits(model, IDS)
    monkeypatch.setattr(shared, "gelu", table_gelu)
    assert (found - logits(model, IDS)).abs().mean() < (found - exact).abs().mean() / 10


def texts():
    """Real lines where there is a corpus, and odd ones: ``TEXTS`` in all."""
    made = [*SPECIAL, *probe_texts(TEXTS // 2)]
    if CORPUS.exists():
        import pyarrow.parquet as parquet

        for batch in parquet.ParquetFile(CORPUS).iter_batches(batch_size=16):
            for document in batch.column("text").to_pylist():
                made += document.splitlines(keepends=True)
                if len(made) >= TEXTS:
                    return made[:TEXTS]
    return made


def byte_bpe(split, **model):
    """The tests' tokenizer with another way to split."""
    body = json.loads(exported.tokenizer()._json)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": split is None}
    first = {"type": "Digits", "individual_digits": True}
    if split is not None:
        first = {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}
    body["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [first, byte_level]}
    body["model"] |= model
    return HFTokenizer("other", tokenizer_json=json.dumps(body), config_json=exported.tokenizer()._config_json)


WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TOKENIZERS = {
    "our bpe": lambda: exported.tokenizer(),
    "our bpe with chatml": lambda: with_chatml(exported.tokenizer()),
    "bytes": lambda: open_tokenizer("byte"),
    "digits by themselves": lambda: byte_bpe(None),
    "as llama 3": lambda: byte_bpe(WORDS + "{1,3}" + REST, ignore_merges=True),
    "as llama 3, by merges": lambda: byte_bpe(WORDS + "{1,3}" + REST),
    "as qwen 2": lambda: byte_bpe(WORDS + REST),
}


@needs_llama_cpp
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_llama_cpp_makes_the_same_tokens(tmp_path, kind):
    tokenizer = TOKENIZERS[kind]()
    reader = LlamaCpp(exported.export(exported.model("llama"), tmp_path, text=tokenizer), exported.CONTEXT)
    for text in texts():
        assert reader.encode(text) == tokenizer.encode(text), text


@needs_llama_cpp
def test_llama_cpp_makes_the_same_tokens_of_gpt2(tmp_path):
    try:
        tokenizer = open_tokenizer("gpt2")
    except Exception as error:
        pytest.skip(f"GPT-2's vocabulary is not to be had: {error}")
    model = exported.build_gpt2_model(**{**exported.GPT2, "vocab_size": tokenizer.vocab_size})
    model.init_weights(0)
    reader = LlamaCpp(exported.export(model, tmp_path, text=tokenizer), exported.CONTEXT)
    for text in texts():
        assert reader.encode(text) == tokenizer.encode(text), text


@needs_llama_cpp
def test_llama_cpp_sees_control_tokens_and_the_end_of_a_turn(tmp_path):
    chat = with_chatml(exported.tokenizer())
    reader = LlamaCpp(exported.export(exported.model("llama"), tmp_path, text=chat), exported.CONTEXT)
    prompt = chat_format_of(chat).prompt((Message("user", "Hello"),))
    assert reader.parse("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n") == prompt
    assert 321 not in reader.encode("<|im_end|>")
    assert [index for index in range(exported.ROWS) if reader.ends(index)] == [0, 321]
    assert (reader.model.token_bos(), reader.model.token_eos()) == (0, 0)
    assert "generation" not in reader.model.metadata["tokenizer.chat_template"].replace("add_generation_prompt", "")
