"""A stranger's folder whose files lie: every error is one of ours, quick, and nothing is allocated on its word."""

from __future__ import annotations

import json
import time

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.checkpoint.hf import tiny
from tests.effort import in_a_push, without_contained

from automodel_cli.assembly.checkpoint import load_model
from automodel_cli.assembly.model import build_model
from automodel_cli.batch import Batch
from automodel_cli.checkpoint.hf import bounds as hf_bounds
from automodel_cli.checkpoint.hf import export as hf_export
from automodel_cli.checkpoint.hf import format as hf_format
from automodel_cli.checkpoint.inspect import describe
from automodel_cli.config.targets.target import Target
from automodel_cli.errors import AutomodelError, CheckpointError
from automodel_cli.models import hf
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.llama import build_llama_model

FAMILIES = {
    "our gpt2": lambda: build_gpt2_model(**tiny.GPT2),
    "our llama": lambda: build_llama_model(**tiny.LLAMA),
    "qwen2": lambda: hf.from_config(transformers.Qwen2Config(**tiny.LLAMA)),
    "mixtral": lambda: hf.from_config(transformers.MixtralConfig(**tiny.LLAMA, num_local_experts=2)),
    "mamba": lambda: hf.from_config(
        transformers.MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2, state_size=8)
    ),
}
ODD = [None, "x", -1, 0, 1.5, True, [], {}, [1, 2], {"a": {"b": 1}}, 10**7, 10**9, 10**30, 1e300]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for name, build in FAMILIES.items():
        model = build()
        model.init_weights(0)
        made[name] = hf_export.save_hf(model, tmp_path_factory.mktemp("stranger") / name.replace(" ", "_"))
    return made


def survives(call) -> None:
    """``call`` ends soon, well or with an error of ours."""
    began = time.process_time()
    try:
        call()
    except AutomodelError as error:
        assert str(error.message).strip() and "\n" not in error.message
    assert time.process_time() - began < 20


def use(folder) -> None:
    """What eval and generate do with it, and init_from into a model that is there."""
    model = hf_format.load_model(folder).eval()
    with torch.no_grad():
        model(Batch(input_ids=torch.arange(8)[None]))


@pytest.mark.parametrize("family", without_contained(FAMILIES, ["qwen2"]))
def test_configurations_with_odd_values(folders, family):
    """Every key missing, and with values of the wrong type and size (a fixed part of all pairs)."""
    folder = folders[family]
    path = folder / "config.json"
    good = path.read_bytes()
    config = json.loads(good)
    target = FAMILIES[family]()
    try:
        for place, key in enumerate(sorted(config)):
            values = [ODD[(place + step) % len(ODD)] for step in range(0, len(ODD), 7)] + [10**9]
            changes = [{**config, key: value} for value in values]
            changes.insert(place % 4, {name: value for name, value in config.items() if name != key})
            for number, changed in enumerate(changes[: in_a_push(2, of=len(changes))]):
                path.write_text(json.dumps(changed))
                survives(lambda: use(folder))
                if number == 0:
                    survives(lambda: hf_format.load_into(target, folder))
                    survives(lambda: describe.describe(folder))
    finally:
        path.write_bytes(good)


HOSTILE = {
    "not UTF-8": b'{"model_type": "gpt\xff"}',
    "nested": b'{"model_type": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "digits": b'{"model_type": "gpt2", "n_layer": ' + b"9" * 100_000 + b"}",
    "a list": b"[1]",
    "empty": b"",
    "cut": b'{"model_type": "gp',
    "type of another kind": b'{"model_type": ["gpt2"]}',
    "unknown type": b'{"model_type": "\\u001b[31mno-such-thing"}',
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("name", ["config.json", hf_format.INDEX])
def test_files_that_are_no_configuration_or_index(folders, kind, name):
    folder = folders["qwen2"]
    path = folder / name
    good = path.read_bytes() if path.exists() else None
    try:
        path.write_bytes(HOSTILE[kind])
        with pytest.raises(AutomodelError) as refused:
            use(folder)
        assert name in refused.value.message or "model" in refused.value.message
        assert "\x1b" not in refused.value.message
        survives(lambda: describe.describe(folder))
    finally:
        path.unlink() if good is None else path.write_bytes(good)


@pytest.mark.parametrize(
    "places",
    [
        {"weight_map": {"w": "../x.safetensors"}},
        {"weight_map": {"w": "/etc/passwd"}},
        {"weight_map": {"w": 5}},
        {"weight_map": ["w"]},
        {"weight_map": {}},
        {"weight_map": {"w": "config.json"}},
        {"weight_map": {"w": "x\x00.safetensors"}},
        {"metadata": {}},
    ],
)
def test_an_index_that_lies_is_refused(folders, places):
    path = folders["qwen2"] / hf_format.INDEX
    try:
        path.write_text(json.dumps(places))
        with pytest.raises(CheckpointError):
            use(folders["qwen2"])
    finally:
        path.unlink()


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size", "num_labels", "intermediate_size"])
def test_sizes_without_end_are_refused_before_anything_is_built(folders, key, monkeypatch):
    folder = folders["qwen2"]
    path = folder / "config.json"
    good = path.read_bytes()

    def built(*_, **__):
        raise AssertionError("transformers saw the configuration")

    monkeypatch.setattr(hf, "pretrained_on_meta", built)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", built)
    try:
        path.write_text(json.dumps({**json.loads(good), key: 10**9}))
        target = Target(
            "transformers.AutoModelForCausalLM.from_pretrained",
            {"pretrained_model_name_or_path": str(folder)},
        )
        for call in (lambda: use(folder), lambda: build_model(target, seed=0)):
            with pytest.raises(CheckpointError, match=f"{key} is 1,000,000,000, but the weights are"):
                call()
    finally:
        path.write_bytes(good)


def test_a_folder_that_lacks_weights_is_refused(folders, tmp_path):
    """transformers would draw them at random with a warning."""
    for family in ("qwen2", "mixtral", "mamba"):
        config = hf_format.read_config(folders[family])
        tensors = load_file(folders[family] / "model.safetensors")
        folder = tmp_path / family
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        dropped = sorted(name for name in tensors if "layers.1." in name)[0]
        kept = {name: tensor for name, tensor in tensors.items() if name != dropped}
        save_file(kept, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match="lacks"):
            hf_format.load_model(folder)


@pytest.mark.parametrize(
    ("config", "is_refused"),
    [
        ({"max_position_embeddings": 10**9, "rope_theta": 10**8, "bos_token_id": 10**6}, False),
        ({"rope_scaling": {"original_max_position_embeddings": 10**7}}, False),
        ({"text_config": {"num_hidden_layers": 4}}, True),
        ({"num_experts": 10**5}, True),
        ({"layers": [{"width": 10**9}]}, True),
        ({"hidden_size": -5}, False),
        ({"max_window_layers": 28, "gradient_clipping": 1e10}, False),  # Qwen2's and Gemma 3n's own
    ],
)
def test_which_numbers_are_sizes(config, is_refused):
    shapes = {"a": (8, 300), "b": (8,), "c": (8,)}
    if is_refused:
        with pytest.raises(CheckpointError):
            hf_bounds.check_sizes(config, shapes, "config.json")
    else:
        hf_bounds.check_sizes(config, shapes, "config.json")


def test_a_small_checkpoint_whose_configuration_has_large_defaults_is_loaded(tmp_path, save):
    """Qwen2 says max_window_layers 28, of which nothing is built."""
    model = hf.from_config(transformers.Qwen2Config(**{**tiny.LLAMA, "num_hidden_layers": 1}))
    model.init_weights(0)
    loaded = load_model(save(tmp_path, 1, model))
    assert all(map(torch.equal, loaded.model.state_dict().values(), model.state_dict().values()))
