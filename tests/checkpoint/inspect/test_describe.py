"""Descriptions of runs, checkpoints and other people's files; with torch hidden too."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.hf import export as hf_export
from automodel_cli.checkpoint.inspect import compare, describe, verify
from automodel_cli.errors import CheckpointError
from automodel_cli.models.interface import count_parameters


def test_a_run(run):
    done = (run / "step_00000010" / layout.MANIFEST).stat().st_mtime
    found = describe.describe(run, now=done + 100)
    assert found["kind"] == "run" and (found["latest"], found["best"]) == ("step_00000020", "step_00000010")
    first, second, third = found["steps"]
    assert (first["step"], first["loss"], first["val_loss"]) == (10, 0.5, {"default": 0.4, "other": None})
    assert first["marks"] == ["BEST"] and first["complete"] and first["age_s"] == pytest.approx(100)
    assert first["bytes"] == sum(p.stat().st_size for p in (run / first["name"]).rglob("*") if p.is_file())
    assert second["marks"] == ["LATEST"]
    assert not third["complete"] and "manifest.json" in third["problem"]
    assert found["notes"] == ["step_00000040.tmp: a save that was not finished"]
    json.dumps(found, allow_nan=False)


def test_damage_in_a_run_is_shown_not_raised(run, flip):
    flip(run / "step_00000020" / layout.MANIFEST, 5)
    flip(run / "BEST", 3)
    found = describe.describe(run)
    assert "damaged" in found["steps"][1]["problem"]
    assert any("BEST is damaged" in note for note in found["notes"])
    assert any("LATEST names step_00000020" in note for note in found["notes"])


def test_a_checkpoint(run, tiny):
    model = tiny()
    found = describe.describe(run / "step_00000010")
    assert found["kind"] == "checkpoint" and found["step"] == 10 and found["marks"] == ["BEST"]
    assert found["parameters"]["by_role"] == count_parameters(model)
    assert found["parameters"]["total"] == sum(count_parameters(model).values())
    assert found["parameters"]["padding"] == (128 - 61) * 24
    rows = {row["name"]: row for row in found["tensors"]}
    assert rows["wte.weight"] == {
        "name": "wte.weight",
        "shape": [128, 24],
        "dtype": "F32",
        "bytes": 128 * 24 * 4,
        "role": "embedding",
    }
    assert set(rows) == set(model.state_dict())
    assert found["optimizer_tensors"]["bytes"] == sum(p.nbytes for p in model.parameters())
    assert found["tokenizer"] == {"name": "byte"} and found["problem"] is None
    json.dumps(found, allow_nan=False)


def test_a_torch_save_checkpoint_is_described_from_its_manifest(tmp_path, tiny, save):
    plain = describe.describe(save(tmp_path / "a", 1, tiny()))
    other = describe.describe(save(tmp_path / "b", 1, tiny(), save_format="torch_save"))
    assert other["save_format"] == "torch_save"
    assert other["tensors"] == plain["tensors"] and other["parameters"] == plain["parameters"]
    assert other["optimizer_tensors"] == plain["optimizer_tensors"]


def test_an_incomplete_or_damaged_checkpoint_is_an_error_that_names_it(run, flip):
    with pytest.raises(CheckpointError, match="step_00000030 is not a complete checkpoint"):
        describe.describe(run / "step_00000030")
    flip(run / "step_00000020" / layout.MANIFEST, 5)
    with pytest.raises(CheckpointError, match=r"manifest.json[\s\S]*step_00000010"):
        describe.describe(run / "step_00000020")


def test_a_hugging_face_folder_and_a_file(tmp_path, tiny):
    folder = hf_export.save_hf(tiny(), tmp_path / "hf")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    found = describe.describe(folder)
    assert found["kind"] == "hf" and found["model"]["model_type"] == "gpt2"
    assert found["not_read"] == ["pytorch_model.bin"]
    assert found["parameters"]["total"] == sum(count_parameters(tiny()).values())
    assert found["parameters"]["by_role"]["embedding"] == 61 * 24
    single = describe.describe(folder / "model.safetensors")
    assert single["kind"] == "safetensors" and single["tensors"] == found["tensors"]
    assert single["metadata"] == {"format": "pt"}


@pytest.mark.parametrize("what", ["missing", "text", "cut", "empty folder", "corpus"])
def test_rubbish_is_a_clear_error(tmp_path, what):
    path = tmp_path / "x"
    if what == "text":
        path.write_text("hello")
    elif what == "cut":
        path = tmp_path / "x.safetensors"
        save_file({"w": torch.ones(9)}, path)
        path.write_bytes(path.read_bytes()[:-3])
    elif what == "empty folder":
        path.mkdir()
    elif what == "corpus":
        path.mkdir()
        (path / "manifest.json").write_text('{"format": "automodel-corpus/1"}')
    with pytest.raises(CheckpointError, match="x"):
        describe.describe(path)


@pytest.mark.parametrize(
    ("name", "dimensions", "role"),
    [
        ("model.embed_tokens.weight", 2, "embedding"),
        ("transformer.wte.weight", 2, "embedding"),
        ("transformer.wpe.weight", 2, "position"),
        ("lm_head.weight", 2, "head"),
        ("model.layers.0.input_layernorm.weight", 1, "norm"),
        ("transformer.h.0.ln_1.bias", 1, "norm"),
        ("model.layers.0.self_attn.q_proj.bias", 1, "bias"),
        ("model.layers.0.self_attn.q_proj.weight", 2, "matrix"),
        ("gate", 1, "other"),
    ],
)
def test_roles_by_name(name, dimensions, role):
    assert describe.guess_role(name, dimensions) == role


# ------------------------------------------------------------------------------------------ without torch


def test_all_of_it_works_where_torch_is_not_installed(run, tmp_path):
    program = """
import json, sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "safetensors"):
            raise ModuleNotFoundError(f"No module named {name!r} (hidden by the test)")

sys.meta_path.insert(0, Hidden())
from pathlib import Path
from automodel_cli.checkpoint.inspect import compare
from automodel_cli.checkpoint.inspect import describe
from automodel_cli.checkpoint.inspect import verify
run = Path(sys.argv[1])
a, b = run / "step_00000010", run / "step_00000020"
print(json.dumps([describe.describe(run, now=0), describe.describe(a, now=0), verify.verify(a), compare.diff(a, b)]))
assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(run)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    a, b = run / "step_00000010", run / "step_00000020"
    assert json.loads(done.stdout) == [
        describe.describe(run, now=0),
        describe.describe(a, now=0),
        verify.verify(a),
        compare.diff(a, b),
    ]
