"""Hugging Face folders: what we write, transformers loads with equal logits, and the other way round."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from automodel_cli.batch import Batch
from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.checkpointer import Checkpointer
from automodel_cli.checkpoint.hf import export as hf_export
from automodel_cli.checkpoint.hf import format as hf_format
from automodel_cli.corpus.tokenizer import ByteTokenizer
from automodel_cli.errors import CheckpointError
from automodel_cli.models import hf
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.interface import CausalLM
from automodel_cli.models.llama import build_llama_model

IDS = torch.arange(24).reshape(2, 12) % 61


def tiny_gpt2(seed: int = 0, **changes) -> CausalLM:
    model = build_gpt2_model(
        **{"vocab_size": 61, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 3, **changes}
    )
    model.init_weights(seed)
    return model.eval()


def tiny_llama(seed: int = 0, **changes) -> CausalLM:
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = build_llama_model(**{"vocab_size": 61, "num_key_value_heads": 2, **sizes, **changes})
    model.init_weights(seed)
    return model.eval()


def tiny_hf(kind: str, seed: int = 0) -> CausalLM:
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
    configs = {
        "llama": lambda: transformers.LlamaConfig(vocab_size=61, num_key_value_heads=3, **sizes),
        "qwen2 tied": lambda: transformers.Qwen2Config(
            vocab_size=61, num_key_value_heads=3, tie_word_embeddings=True, **sizes
        ),
        "gpt2": lambda: transformers.GPT2Config(vocab_size=61, n_positions=16, n_embd=24, n_layer=2, n_head=3),
    }
    model = hf.from_config(configs[kind]())
    model.init_weights(seed)
    return model.eval()


MODELS = {
    "ours": tiny_gpt2,
    "ours without biases": lambda seed=0: tiny_gpt2(seed, bias=False),
    "ours with erf": lambda seed=0: tiny_gpt2(seed, activation="gelu"),
    "our llama": tiny_llama,
    "our llama tied": lambda seed=0: tiny_llama(seed, tie_word_embeddings=True),
    "llama": lambda seed=0: tiny_hf("llama", seed),
    "qwen2 tied": lambda seed=0: tiny_hf("qwen2 tied", seed),
    "gpt2": lambda seed=0: tiny_hf("gpt2", seed),
}


def logits(model: CausalLM) -> torch.Tensor:
    with torch.no_grad():
        return model(Batch(input_ids=IDS))


@pytest.mark.parametrize("kind", MODELS)
def test_transformers_loads_what_we_write_with_equal_logits(tmp_path, kind):
    model = MODELS[kind]()
    folder = hf_export.save_hf(model, tmp_path / "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        found = theirs(IDS).logits
    torch.testing.assert_close(found, logits(model), atol=1e-5, rtol=0)
    assert found.shape[-1] == 61
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


@pytest.mark.parametrize("kind", ["llama", "qwen2 tied", "gpt2"])
def test_we_load_what_transformers_writes(tmp_path, kind):
    model = tiny_hf(kind)
    model.hf.save_pretrained(tmp_path, max_shard_size=10_000)
    assert (tmp_path / hf_format.INDEX).exists(), "sharded"
    loaded = hf_format.load_model(tmp_path).eval()
    assert type(loaded).__name__ == {"gpt2": "GPT2", "llama": "Llama"}.get(kind, "HFCausalLM")
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", MODELS)
def test_weights_go_into_a_model_that_is_there(tmp_path, kind):
    model, other = MODELS[kind](), MODELS[kind](seed=1)
    assert not torch.equal(logits(model), logits(other))
    hf_export.save_hf(model, tmp_path / "hf")
    hf_format.load_into(other, tmp_path / "hf")
    assert torch.equal(logits(model), logits(other))


def test_a_gpt2_variant_that_ours_is_not_is_loaded_by_transformers(tmp_path):
    config = transformers.GPT2Config(
        vocab_size=61, n_positions=16, n_embd=24, n_layer=3, n_head=3, scale_attn_by_inverse_layer_idx=True
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path)
    loaded = hf_format.load_model(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(logits(loaded), theirs(IDS).logits, atol=1e-5, rtol=0)


def test_large_weights_are_cut_into_files_with_an_index(tmp_path, monkeypatch):
    monkeypatch.setattr(hf_export, "MAX_FILE_BYTES", 10_000)
    model = tiny_gpt2()
    folder = hf_export.save_hf(model, tmp_path / "hf")
    index = json.loads((folder / hf_format.INDEX).read_text())
    stored = [path for path in folder.iterdir() if path.suffix == ".safetensors"]
    assert len(stored) > 2 and set(index["weight_map"].values()) == {path.name for path in stored}
    assert index["metadata"]["total_size"] == sum(p.nbytes for path in stored for p in load_file(path).values())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, logits(model), atol=1e-5, rtol=0)
    assert torch.equal(logits(hf_format.load_model(folder).eval()), logits(model))


def test_a_consolidated_checkpoint_holds_a_folder_that_transformers_loads(tmp_path):
    model = tiny_gpt2()
    tokenizer = tmp_path / "tokenizer"
    ByteTokenizer().save(tokenizer)
    path = Checkpointer(tmp_path / "run").save(
        1,
        model=model,
        optimizer=None,
        state={},
        loader_state={},
        config_yaml="",
        facts={},
        tokenizer_folder=tokenizer,
        consolidate=True,
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path / "hf").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, logits(model), atol=1e-5, rtol=0)
    assert transformers.AutoTokenizer.from_pretrained(path / "hf")("hé!")["input_ids"] == list("hé!".encode())
    assert layout.find_problem(path) is None
    names = {record["name"] for record in layout.read_step_manifest(path)["files"]}
    assert {"hf/config.json", "hf/model.safetensors", "hf/tokenizer.json"} <= names


def test_a_model_without_such_a_format_is_saved_without_and_says_so(tmp_path):
    lines: list[str] = []
    path = Checkpointer(tmp_path, say=lines.append).save(
        1,
        model=torch.nn.Linear(2, 2),
        optimizer=None,
        state={},
        loader_state={},
        config_yaml="",
        facts={},
        consolidate=True,
    )
    assert not (path / "hf").exists() and "of your own has no Hugging Face format" in lines[0]
    with pytest.raises(CheckpointError, match="of your own has no Hugging Face format"):
        hf_export.save_hf(torch.nn.Linear(2, 2), tmp_path / "hf")
    assert not (tmp_path / "hf").exists() and not (tmp_path / "hf.automodel.tmp").exists()


# ------------------------------------------------------------------------------------------ refusals


class Attack:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def test_pickled_weights_are_refused_and_do_not_run(tmp_path):
    folder = hf_export.save_hf(tiny_gpt2(), tmp_path / "hf")
    (folder / "model.safetensors").unlink()
    torch.save({"w": Attack(tmp_path / "canary")}, folder / "pytorch_model.bin")
    for load in (hf_format.load_model, lambda f: hf_format.load_into(tiny_gpt2(), f)):
        with pytest.raises(CheckpointError, match=r"only pickles \(pytorch_model\.bin\)[\s\S]*can run code"):
            load(folder)
    assert not (tmp_path / "canary").exists()


def test_code_that_comes_with_a_folder_does_not_run(tmp_path):
    folder = hf_export.save_hf(tiny_hf("llama"), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    config.update(model_type="mine", auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    with pytest.raises(Exception, match=r"mine|code"):
        hf_format.load_model(folder)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("config.json", b"{", "config.json is not valid JSON"),
        ("config.json", b"{}", "'model_type' is missing"),
        ("config.json", b'{"model_type": "gpt2", "quantization_config": {"bits": 4}}', "quantized"),
        ("model.safetensors", b"PK\x03\x04nonsense", "model.safetensors is not a safetensors file"),
        (hf_format.INDEX, b"[]", "index.json: the whole file"),
        (hf_format.INDEX, b'{"weight_map": {"w": "../../x.safetensors"}}', "outside its folder"),
        (hf_format.INDEX, b'{"weight_map": {"w": "model-2.safetensors"}}', "model-2.safetensors is missing"),
    ],
)
def test_damage_is_named(tmp_path, name, content, expected):
    folder = hf_export.save_hf(tiny_gpt2(), tmp_path / "hf")
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        hf_format.load_model(folder)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    llama = hf_export.save_hf(tiny_hf("llama"), tmp_path / "llama")
    with pytest.raises(CheckpointError, match="model_type is gpt2 here and llama there"):
        hf_format.load_into(tiny_gpt2(), llama)
    ours = hf_export.save_hf(tiny_gpt2(), tmp_path / "ours")
    with pytest.raises(CheckpointError, match=r"wpe"):
        hf_format.load_into(tiny_gpt2(n_positions=8), ours)
    with pytest.raises(CheckpointError, match="model_type is llama here and gpt2 there"):
        hf_format.load_into(tiny_hf("llama"), ours)
    with pytest.raises(CheckpointError, match="model_type is llama here and gpt2 there"):
        hf_format.load_into(tiny_llama(), ours)
    with pytest.raises(CheckpointError, match="num_attention_heads is 4 here and 3 there"):
        hf_format.load_into(tiny_llama(), llama)


def test_a_llama_without_its_head_or_with_other_rows_is_refused(tmp_path):
    model = tiny_llama()
    folder = hf_export.save_hf(model, tmp_path / "hf")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "lm_head.weight": torch.zeros(100, 24)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head.weight has shape \(100, 24\), expected \(61, 24\)"):
        hf_format.load_model(folder)
    save_file({name: t for name, t in tensors.items() if "lm_head" not in name}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing"):
        hf_format.load_into(model, folder)


def test_a_folder_that_is_there_is_not_overwritten(tmp_path):
    (tmp_path / "hf").mkdir()
    with pytest.raises(CheckpointError, match="exists already"):
        hf_export.save_hf(tiny_gpt2(), tmp_path / "hf")


def test_find_folder(tmp_path, monkeypatch):
    folder = hf_export.save_hf(tiny_gpt2(), tmp_path / "hf")
    assert hf_format.find_folder(str(folder)) == folder
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        hf_format.find_folder(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="cannot be downloaded from the Hub"):
        hf_format.find_folder("nobody/such-a-model")
