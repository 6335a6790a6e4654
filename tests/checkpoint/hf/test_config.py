"""What exported folders say of positions and of ends: transformers 4 and 5 read the same function, generate() stops."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import transformers
from tests.checkpoint import logits_of
from tests.checkpoint.hf import tiny

from automodel_cli.batch import Batch
from automodel_cli.checkpoint.hf import config as hf_config
from automodel_cli.checkpoint.hf import export as hf_export
from automodel_cli.corpus.conversations.chatml import with_chatml
from automodel_cli.corpus.tokenizer import ByteTokenizer, CharTokenizer
from automodel_cli.models import hf
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.llama import build_llama_model

THETA = 30.0  # far from every default: angles differ from the second position on
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
SIZES = {**tiny.LLAMA, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}
FLAT = {"rope_theta": THETA, "rope_type": "default"}
PARTIAL = {**FLAT, "partial_rotary_factor": 0.5}
NO_KEY_HEADS = {"num_key_value_heads": 2}
# Name: class, settings of its own, rotary parameters as transformers 5 spells them, what transformers 4 reads.
OLD = {"rope_theta": THETA, "rope_scaling": None}
OLD_PARTIAL = {**OLD, "partial_rotary_factor": 0.5}
NEOX = {"rotary_emb_base": THETA, "rotary_pct": 0.5, "rope_scaling": None}
BOTH = {"sliding_attention": {**FLAT, "rope_theta": 7.0}, "full_attention": FLAT}
LONG = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
FAMILIES: dict[str, tuple[str, dict, dict, dict]] = {
    "llama": ("Llama", {}, FLAT, OLD),
    "llama scaled": (
        "Llama",
        {},
        {"rope_theta": THETA, **LLAMA3},
        {"rope_theta": THETA, "rope_scaling": LLAMA3},
    ),
    "llama linear": (
        "Llama",
        {},
        {"rope_theta": THETA, "rope_type": "linear", "factor": 4.0},
        {"rope_theta": THETA, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    ),
    "mistral": ("Mistral", {"head_dim": 16}, FLAT, OLD),
    "qwen2": ("Qwen2", {}, FLAT, OLD),
    "qwen3": ("Qwen3", {"head_dim": 16}, FLAT, OLD),
    "gemma": ("Gemma", {"head_dim": 16}, FLAT, OLD),
    "gemma3": (
        "Gemma3Text",
        {"head_dim": 16, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
        BOTH,
        {**OLD, "rope_local_base_freq": 7.0},
    ),
    "olmo2": ("Olmo2", {}, FLAT, OLD),
    "starcoder2": ("Starcoder2", {}, FLAT, OLD),
    "phi": ("Phi", NO_KEY_HEADS, PARTIAL, OLD_PARTIAL),
    "phi3": ("Phi3", NO_KEY_HEADS, FLAT, OLD),
    "phi3 long": (
        "Phi3",
        {**NO_KEY_HEADS, "original_max_position_embeddings": 8},
        {"rope_theta": THETA, "rope_type": "longrope", **LONG},
        {"rope_theta": THETA, "rope_scaling": {"type": "longrope", **LONG}},
    ),
    "stablelm": ("StableLm", NO_KEY_HEADS, PARTIAL, OLD_PARTIAL),
    "gpt_neox": ("GPTNeoX", {}, PARTIAL, NEOX),
}


def family(name: str) -> hf.HFCausalLM:
    kind, own, rope, _ = FAMILIES[name]
    rope = json.loads(json.dumps(rope))  # transformers adds to what it is given
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **own}, rope_parameters=rope)
    model = hf.from_config(config)
    model.init_weights(0)
    return model.eval()


def our_llama(**changes):
    model = build_llama_model(**{**tiny.LLAMA, "bos_token_id": 1, "eos_token_id": 2}, **changes)
    model.init_weights(0)
    return model.eval()


def our_gpt2(**changes):
    model = build_gpt2_model(**{**tiny.GPT2, **changes})
    model.init_weights(0)
    return model.eval()


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_bytes())


@pytest.mark.parametrize("name", FAMILIES)
def test_positions_are_written_by_the_names_of_both_versions(tmp_path, name):
    model = family(name)
    written = config_of(hf_export.save_hf(model, tmp_path / "hf"))
    _, _, new, old = FAMILIES[name]
    assert {key: written[key] for key in old} == old
    assert written["rope_parameters"].items() >= new.items()
    read = transformers.AutoConfig.from_pretrained(tmp_path / "hf")
    # what transformers 4 sees of the file, read by transformers 5's reader of old files
    ignored = ("model_type", "rope_parameters")
    old_names = type(model.hf.config)(**{key: value for key, value in written.items() if key not in ignored})
    for found in (read, old_names):
        found.rope_parameters.pop("type", None)  # the old name of rope_type, which stays
        assert found.rope_parameters == model.hf.config.rope_parameters


@pytest.mark.parametrize("scaling", [None, LLAMA3])
def test_our_llama_writes_both_forms(scaling):
    config = hf_config.complete(our_llama(rope_theta=THETA, rope_scaling=scaling).hf_config(), None)
    assert (config["rope_theta"], config["rope_scaling"]) == (THETA, scaling)
    assert config["rope_parameters"] == {"rope_theta": THETA, **(scaling or {"rope_type": "default"})}


def test_our_gpt2_writes_the_name_that_converters_read():
    """llama.cpp's converter takes the context length of GPT-2 from ``n_ctx``."""
    config = our_gpt2().hf_config()
    assert config["n_ctx"] == config["n_positions"] == 16


@pytest.mark.skipif(
    not os.environ.get("TRANSFORMERS4_PYTHON"),
    reason="TRANSFORMERS4_PYTHON names no interpreter with transformers 4 and torch",
)
def test_transformers_4_computes_the_same_logits(tmp_path):
    models = {name: family(name) for name in FAMILIES}
    models["our llama"] = our_llama(rope_theta=THETA)
    models["our llama scaled"] = our_llama(rope_theta=THETA, rope_scaling=LLAMA3)
    models["our gpt2"] = our_gpt2()
    for name, model in models.items():
        hf_export.save_hf(model, tmp_path / name)
    subprocess.run([os.environ["TRANSFORMERS4_PYTHON"], logits_of.__file__, str(tmp_path)], check=True)
    found = json.loads((tmp_path / "logits.json").read_bytes())
    assert found["version"].startswith("4.")
    for name, model in models.items():
        theirs = found["logits"][name]
        assert not isinstance(theirs, str), f"{name}: {theirs}"
        with torch.no_grad():
            ours = model(Batch(input_ids=logits_of.IDS))
        torch.testing.assert_close(torch.tensor(theirs).view_as(ours), ours, atol=1e-5, rtol=0)


# --------------------------------------------------------------------------------------------- ends


def models_with_ends() -> dict:
    tokens = {"vocab_size": 257}
    return {
        "our gpt2": lambda: our_gpt2(**tokens),
        "our llama": lambda: build_llama_model(**{**tiny.LLAMA, **tokens}),
        "llama": lambda: hf.from_config(transformers.LlamaConfig(**{**SIZES, **tokens})),
        "qwen2": lambda: hf.from_config(transformers.Qwen2Config(**{**SIZES, **tokens, "eos_token_id": None})),
        "gpt_neox": lambda: hf.from_config(transformers.GPTNeoXConfig(**{**SIZES, **tokens})),
        "gpt2": lambda: hf.from_config(
            transformers.GPT2Config(
                **tokens, n_positions=16, n_embd=24, n_layer=1, n_head=3, bos_token_id=3, eos_token_id=3
            )
        ),
    }


@pytest.mark.parametrize("kind", models_with_ends())
def test_generate_stops_at_the_tokenizers_end(tmp_path, kind):
    model = models_with_ends()[kind]()
    model.init_weights(0)
    tokenizer = ByteTokenizer()
    tokenizer.save(tmp_path / "tokenizer")
    folder = hf_export.save_hf(model, tmp_path / "hf", tmp_path / "tokenizer")
    for name in ("config.json", "generation_config.json"):
        stated = json.loads((folder / name).read_bytes())
        assert (stated.get("bos_token_id"), stated.get("eos_token_id")) == (256, 256), name
        assert stated.get("pad_token_id") is None
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert transformers.AutoTokenizer.from_pretrained(folder).eos_token_id == theirs.config.eos_token_id == 256

    class OnlyTheEnd(transformers.LogitsProcessor):
        def __call__(self, input_ids, scores):
            chosen = torch.full_like(scores, -1e9)
            chosen[:, 65 if input_ids.shape[1] < 5 else 256] = 0.0
            return chosen

    ids = theirs.generate(torch.tensor([[65, 66]]), max_new_tokens=10, logits_processor=[OnlyTheEnd()])
    assert ids.tolist() == [[65, 66, 65, 65, 65, 256]]


def test_generate_stops_at_the_end_of_a_turn_where_the_tokenizer_knows_one(tmp_path):
    with_chatml(ByteTokenizer()).save(tmp_path / "tokenizer")
    model = build_gpt2_model(vocab_size=259, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    model.init_weights(0)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        hf_export.save_hf(model, tmp_path / "hf", tmp_path / "tokenizer")
    ).eval()
    assert (theirs.config.eos_token_id, theirs.generation_config.eos_token_id) == (256, [256, 258])

    class EndOfTurn(transformers.LogitsProcessor):
        def __call__(self, input_ids, scores):
            return torch.full_like(scores, -1e9).index_fill(1, torch.tensor([258]), 0.0)

    ids = theirs.generate(torch.tensor([[65]]), max_new_tokens=5, logits_processor=[EndOfTurn()])
    assert ids.tolist() == [[65, 258]]


def test_a_tokenizer_without_an_end_leaves_none(tmp_path):
    """transformers' Llama has 2 by default, which is a character of such a vocabulary."""
    CharTokenizer(list("abcdefghij")).save(tmp_path / "tokenizer")
    model = hf.from_config(transformers.LlamaConfig(**{**SIZES, "vocab_size": 10}))
    model.init_weights(0)
    folder = hf_export.save_hf(model, tmp_path / "hf", tmp_path / "tokenizer")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((folder / name).read_bytes()).get("eos_token_id") is None


@pytest.mark.parametrize(
    ("stated", "ids", "expected"),
    [
        ({"eos_token_id": 2}, None, 2),  # no tokenizer is known: the model's own
        ({"eos_token_id": 2}, 5, 5),
        ({"eos_token_id": [5, 7]}, 5, [5, 7]),  # several ends, this one among them
        ({"eos_token_id": [2, 7]}, 5, 5),
        ({"eos_token_id": 2, "vocab_size": 5}, 5, None),  # the model has no row for it
    ],
)
def test_which_end_is_written(stated, ids, expected):
    found = None if ids is None else {"bos_token_id": None, "eos_token_id": ids, "pad_token_id": None}
    assert hf_config.complete(stated, found)["eos_token_id"] == expected
