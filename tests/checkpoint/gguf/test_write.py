"""GGUF files as gguf's own reader has them: types, keys and values; and what is never left behind."""

from __future__ import annotations

import importlib
import sys
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tests.checkpoint.gguf import exported

from automodel_cli.checkpoint.gguf import write
from automodel_cli.checkpoint.gguf.architecture import layout_of
from automodel_cli.checkpoint.gguf.form import Form
from automodel_cli.checkpoint.hf import export as hf_export
from automodel_cli.corpus.conversations.chatml import with_chatml
from automodel_cli.errors import AutomodelError, CheckpointError, ConfigError
from automodel_cli.models.llama import build_llama_model


def tensors(file):
    return {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}


def key(file, name):
    return gguf.GGUFReader(file).fields[name].contents()


def test_a_tied_head_is_written_twice_and_padding_not_at_all(tmp_path):
    model = exported.model("gpt2")
    assert model.padded_vocab_size > model.vocab_size
    found = tensors(exported.export(model, tmp_path))
    rows = model.wte.weight[: model.vocab_size].detach().numpy()
    for name in ("token_embd.weight", "output.weight"):
        assert np.array_equal(found[name].data, rows)


@pytest.mark.parametrize(("type_name", "tolerance"), [("f16", 1e-3), ("q8_0", 2e-2)])
def test_matrices_take_the_type_that_is_asked_for(tmp_path, type_name, tolerance):
    model = exported.model("gpt2")
    exact = exported.export(model, tmp_path)
    found = exported.file_of(tmp_path / "run", tmp_path / "small.gguf", type=type_name)
    before = tensors(exact)
    wanted = gguf.GGMLQuantizationType[type_name.upper()]
    for name, tensor in tensors(found).items():
        single = tensor.shape.size == 1 or name == "position_embd.weight"
        assert tensor.tensor_type is (gguf.GGMLQuantizationType.F32 if single else wanted), name
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_allclose(values, before[name].data, atol=tolerance)
    assert key(found, "general.file_type") == {"f16": 1, "q8_0": 7}[type_name]


def test_rows_that_are_no_multiple_of_32_become_f16_and_that_is_said(tmp_path):
    said = []
    model = build_llama_model(**{**exported.LLAMA, "intermediate_size": 80})
    model.init_weights(0)
    exported.export(model, tmp_path)
    cfg = exported.ExportGGUFConfig(checkpoint=str(tmp_path / "run"), output_file=str(tmp_path / "q.gguf"), type="q8_0")
    exported.export_gguf.run(cfg, say=said.append)
    found = tensors(tmp_path / "q.gguf")
    assert found["blk.0.ffn_down.weight"].tensor_type is gguf.GGMLQuantizationType.F16
    assert found["blk.0.ffn_up.weight"].tensor_type is gguf.GGMLQuantizationType.Q8_0
    assert said[1:] == ["2 matrices are f16: their rows are no multiple of 32, such as blk.0.ffn_down.weight"]


def test_a_hugging_face_folder_becomes_the_same_file(tmp_path):
    for kind in ("gpt2", "llama tied, wide heads", "qwen3"):
        place = tmp_path / kind
        ours = exported.export(exported.model(kind), place)
        hf_export.export(place / "run" / "step_00000003", place / "again" / "run")
        theirs = exported.file_of(place / "again" / "run", place / "theirs.gguf")
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e5])
def test_weights_that_are_no_numbers_or_too_large_leave_nothing(tmp_path, value):
    model = exported.model("llama")
    with torch.no_grad():
        model.layers[1].mlp.up_proj.weight[3, 5] = value
    expected = "blk.1.ffn_up.weight " + ("has a value of 1e.05" if value == 1e5 else "holds NaN or infinity")
    with pytest.raises(CheckpointError, match=expected):
        exported.export(model, tmp_path, type="f16")
    assert list((tmp_path / "out").iterdir()) == []


def test_existing_files_stay_as_they_are(tmp_path):
    file = exported.export(exported.model("llama"), tmp_path)
    before = file.read_bytes()
    with pytest.raises(CheckpointError, match=r"model\.gguf exists already"):
        exported.file_of(tmp_path / "run", file)
    other = tmp_path / "other.gguf"
    other.with_suffix(".Modelfile").write_text("mine")
    with pytest.raises(CheckpointError, match=r"other\.Modelfile exists already"):
        exported.file_of(tmp_path / "run", other)
    with pytest.raises(CheckpointError, match=r"does not end in \.gguf"):
        exported.file_of(tmp_path / "run", tmp_path / "out")
    assert file.read_bytes() == before and other.with_suffix(".Modelfile").read_text() == "mine" and not other.exists()


def test_a_file_that_another_process_has_finished_meanwhile_stays(tmp_path, monkeypatch):
    other, lock = tmp_path / "out" / "model.gguf", write.exclusive_lock

    def after_the_other(path, **options):
        other.write_text("theirs")
        return lock(path, **options)

    monkeypatch.setattr(write, "exclusive_lock", after_the_other)
    with pytest.raises(CheckpointError, match=r"model\.gguf exists already"):
        exported.export(exported.model("llama"), tmp_path)
    assert other.read_text() == "theirs" and [path.name for path in other.parent.iterdir()] == ["model.gguf"]


def test_the_name_of_a_model_is_that_of_its_run_wherever_one_stands(tmp_path, monkeypatch):
    exported.export(exported.model("llama"), tmp_path)
    monkeypatch.chdir(tmp_path / "run")
    file = exported.file_of(Path(), tmp_path / "here.gguf")
    assert key(file, "general.name") == "run"
    (tmp_path / "run").rename(tmp_path / "r\udcff")  # no UTF-8
    file = exported.file_of(tmp_path / "r\udcff", tmp_path / "there.gguf")
    assert key(file, "general.name") == r"r\udcff"


@pytest.mark.parametrize("name", ["a\nSYSTEM x.gguf", "a\udcff.gguf"])
def test_a_name_that_a_modelfile_cannot_hold_is_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match="a name that a Modelfile cannot hold"):
        exported.file_of(tmp_path, tmp_path / name)


def test_a_full_disk_is_said_before_and_while_writing(tmp_path, monkeypatch):
    model = exported.model("llama")
    with monkeypatch.context() as patched:
        patched.setattr(write.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
        with pytest.raises(AutomodelError, match="has room for 1,000 B"):
            exported.export(model, tmp_path)

    def short_write(self, tensor):
        raise OSError("4096 requested and 17 written")  # as numpy says it

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", short_write)
    with pytest.raises(AutomodelError, match="no room left while writing"):
        exported.file_of(tmp_path / "run", tmp_path / "out" / "model.gguf")
    assert list((tmp_path / "out").iterdir()) == []


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    model = build_llama_model(
        **{**exported.LLAMA, "hidden_size": 256, "num_hidden_layers": 12, "intermediate_size": 1024}
    )
    model.init_weights(0)
    hf_export.save_hf(model, tmp_path / "folder")  # of a checkpoint hashes are checked, 16 MiB at a time
    largest = 4 * 256 * 1024
    exported.tokenizer().save(tmp_path / "folder")
    tracemalloc.start()
    file = exported.file_of(tmp_path / "folder", tmp_path / "again.gguf")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * largest < file.stat().st_size / 4


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("gpt2", {"activation": "gelu"}, "activation gelu"),
        ("gpt", {}, "num_key_value_heads 4.*as Llama rope_reversed false"),
        ("gpt", {"preset": "gpt2", "num_key_value_heads": 4, "softcap": 15.0}, "as GPT-2 it would need softcap 0.0"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused_with_the_options_in_the_way(tmp_path, kind, changes, said):
    if kind == "gpt2":
        model = exported.build_gpt2_model(**exported.GPT2, **changes)
    else:
        model = exported.build_gpt_model(**{**exported.LLAMA, **changes})
    model.init_weights(0)
    with pytest.raises(CheckpointError, match=said):
        exported.export(model, tmp_path)


SIZES = {**exported.LLAMA, "rms_norm_eps": 1e-6}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({**SIZES, "model_type": "mistral", "sliding_window": 16}, "a window of 16 tokens"),
        ({**SIZES, "model_type": "llama", "hidden_act": "gelu"}, "activation gelu"),
        ({**SIZES, "model_type": "llama", "rope_scaling": {"rope_type": "yarn"}}, "rotary positions of the kind yarn"),
        ({**SIZES, "model_type": "qwen3", "rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({**SIZES, "model_type": "qwen2", "rope_scaling": exported.LLAMA_3}, "rotary positions of the kind llama3"),
        ({**SIZES, "model_type": "llama", "max_position_embeddings": 2**32}, "context_length is 4294967296, which"),
        ({**SIZES, "model_type": "llama", "rope_theta": 1e300}, r"rope\.freq_base is 1e\+300, which a GGUF file"),
        ({**SIZES, "model_type": "llama", "rms_norm_eps": float("nan")}, "norm_rms_epsilon is nan, which a GGUF file"),
        ({"model_type": "mamba"}, "models of type mamba are not exported"),
    ],
)
def test_a_configuration_that_llama_cpp_does_not_know_is_refused(config, said):
    with pytest.raises(CheckpointError, match=said):
        layout_of(Form(config, {}))


def test_a_tensor_without_a_place_in_the_file_is_refused():
    entry = hf_export.Entry(torch.float32, (2, 2), lambda: torch.zeros(2, 2))
    with pytest.raises(CheckpointError, match=r"no tensor for model\.layers\.0\.mix\.weight"):
        layout_of(Form({**SIZES, "model_type": "llama"}, {"model.layers.0.mix.weight": entry}))


def test_what_is_missing_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    for name in [name for name in sys.modules if name.startswith("automodel_cli.checkpoint.gguf")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError, match="the package gguf is not installed") as found:
        importlib.reload(exported.export_gguf)
    assert "automodel-cli[gguf]" in found.value.hint


@pytest.mark.parametrize("file", [None, "config.json"])
def test_what_is_no_model_is_refused(tmp_path, file):
    if file is not None:
        (tmp_path / file).write_text("{}")
    with pytest.raises(CheckpointError):
        exported.file_of(tmp_path, tmp_path / "model.gguf")


def test_a_model_without_a_tokenizer_takes_one_by_name(tmp_path):
    hf_export.save_hf(exported.model("llama"), tmp_path / "bare")
    with pytest.raises(ConfigError, match=r"a GGUF file needs a tokenizer: .* holds no tokenizer"):
        exported.file_of(tmp_path / "bare", tmp_path / "model.gguf")
    file = exported.file_of(tmp_path / "bare", tmp_path / "model.gguf", tokenizer="byte")
    assert key(file, "tokenizer.ggml.eos_token_id") == 256


def test_the_modelfile_has_the_chat_in_ollamas_language(tmp_path):
    exported.export(exported.model("llama"), tmp_path / "base")
    assert (tmp_path / "base/out/model.Modelfile").read_text() == (
        'FROM ./model.gguf\nTEMPLATE """{{ .Prompt }}"""\n'
        "PARAMETER temperature 0.9\nPARAMETER top_k 200\nPARAMETER num_ctx 80\n"
    )
    exported.export(exported.model("llama"), tmp_path / "chat", text=with_chatml(exported.tokenizer()))
    written = (tmp_path / "chat/out/model.Modelfile").read_text()
    assert "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}" in written
    assert 'PARAMETER stop "<|endoftext|>"\nPARAMETER stop "<|im_end|>"\n' in written
