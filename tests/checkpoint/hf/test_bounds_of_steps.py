"""A step folder of a stranger asks for no more than its tensors are, whoever reads it and however it is stored."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
import torch
import transformers

from automodel_cli.assembly.checkpoint import load_model
from automodel_cli.checkpoint.hf import export as hf_export
from automodel_cli.errors import CheckpointError
from automodel_cli.files import hash_file, write_manifest
from automodel_cli.models import hf
from automodel_cli.models.model_config import MOST_LAYERS

LARGE = 10**9


def change(step: Path, edit) -> None:
    """Edit ``manifest.json`` and ``model/config.json`` of a step, and seal both as a stranger would."""
    manifest = json.loads((step / "manifest.json").read_text())
    del manifest["self"]
    path = step / "model" / "config.json"
    config = json.loads(path.read_text())
    edit(config, manifest)
    manifest["facts"]["model"] = config
    path.write_text(json.dumps(config))
    for record in manifest["files"]:
        if record["name"] == "model/config.json":
            record |= {"bytes": path.stat().st_size, "xxh3": hash_file(path)}
    write_manifest(step / "manifest.json", manifest)


def refused(step: Path, tmp_path: Path) -> list[str]:
    """What loading and exporting say, within little memory."""
    said = []
    tracemalloc.start()
    try:
        for work in (lambda: load_model(step), lambda: hf_export.export(step, tmp_path / "out")):
            with pytest.raises(CheckpointError) as error:
                work()
            said.append(error.value.message)
            assert len(str(error.value).splitlines()) <= 2
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()
    assert not (tmp_path / "out").exists()
    return said


@pytest.mark.parametrize("key", ["n_layer", "n_embd", "n_positions", "vocab_size"])
def test_sizes_of_ours(tmp_path, save, tiny, key):
    step = save(tmp_path / "run", 3, tiny())
    change(step, lambda config, _: config.update({key: MOST_LAYERS if key == "n_layer" else LARGE}))
    said = refused(step, tmp_path)
    assert all("parameters, the files hold" in line for line in said)
    assert "manifest.json: facts.model" in said[0] and "model/config.json" in said[1]


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size", "intermediate_size", "num_labels"])
def test_sizes_of_transformers(tmp_path, save, key):
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
    model = hf.from_config(transformers.LlamaConfig(vocab_size=61, **sizes))
    model.init_weights(0)
    step = save(tmp_path / "run", 3, model)
    change(step, lambda config, _: config["config"].update({key: LARGE}))
    refused(step, tmp_path)
    change(step, lambda config, _: config["config"].update({key: 4000}))
    if key in ("hidden_size", "vocab_size", "intermediate_size"):
        assert all("parameters, the files hold" in line for line in refused(step, tmp_path))


@pytest.mark.parametrize("edit", [{"n_layer": "2"}, {"n_embd": None}, {"n_head": 0}, {"n_head": -3}, {"colour": 1}])
def test_what_is_no_configuration(tmp_path, save, tiny, edit):
    step = save(tmp_path / "run", 3, tiny())
    change(step, lambda config, _: config.update(edit))
    for work in (lambda: load_model(step), lambda: hf_export.export(step, tmp_path / "out")):
        with pytest.raises(Exception) as error:
            work()
        assert type(error.value).__name__ in ("CheckpointError", "ConfigError"), error.value


def test_sizes_that_only_a_manifest_tells_fit_into_the_files(tmp_path, save, tiny):
    """torch_save: names and shapes are in the manifest, so both could be as large as a stranger likes."""
    step = save(tmp_path / "run", 3, tiny(), save_format="torch_save")

    def enlarge(config, manifest):
        config["vocab_size"] = LARGE
        manifest["tensors"]["model"]["wte.weight"][1] = [LARGE + 128 - LARGE % 128, 24]

    change(step, enlarge)
    assert all("bytes of tensors, the files hold" in line for line in refused(step, tmp_path))


@pytest.mark.parametrize("save_format", ["safetensors", "torch_save"])
def test_what_fits_is_loaded(tmp_path, save, tiny, save_format):
    step = save(tmp_path / "run", 3, tiny(), save_format=save_format)
    loaded = load_model(step).model
    assert not any(parameter.is_meta for parameter in loaded.parameters())
    assert hf_export.export(step, tmp_path / "out").is_dir() and torch.isfinite(loaded.wte.weight).all()
