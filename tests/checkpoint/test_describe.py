"""Descriptions of runs, checkpoints and other people's files; verify and compare; all of it with torch hidden."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from automodel_cli.checkpoint import compare, describe, hf_format, layout, verify
from automodel_cli.checkpoint.checkpointer import Checkpointer
from automodel_cli.errors import CheckpointError
from automodel_cli.models.gpt2 import build_gpt2_model
from automodel_cli.models.interface import count_parameters


def tiny(seed: int = 0) -> nn.Module:
    model = build_gpt2_model(vocab_size=61, n_positions=16, n_embd=24, n_layer=2, n_head=3)
    model.init_weights(seed)
    return model


def save(run: Path, step: int, model: nn.Module, *, save_format: str = "safetensors", **changes) -> Path:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    arguments = {
        "state": {},
        "loader_state": {},
        "config_yaml": f"seed: 1\nstep_scheduler: {{max_steps: {step}}}\n",
        "facts": {
            "model": model.model_config(),
            "param_roles": model.param_roles(),
            "tokenizer": {"name": "byte"},
            "versions": {"torch": "x"},
        },
        "metrics": {"loss": 5.0 / step, "val_loss": {"default": 4.0 / step, "other": None}},
    }
    checkpointer = Checkpointer(run, save_format=save_format)
    return checkpointer.save(step, model=model, optimizer=optimizer, **{**arguments, **changes})


@pytest.fixture
def run(tmp_path):
    """Steps 10 and 20, BEST and LATEST, an incomplete 30 and a left-over 40."""
    folder = tmp_path / "run"
    save(folder, 10, tiny(), is_best=True)
    save(folder, 20, tiny(seed=1))
    (folder / "step_00000030" / "model").mkdir(parents=True)
    (folder / "step_00000040.tmp").mkdir()
    return folder


def flip(path: Path, index: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[index] ^= 1
    path.write_bytes(content)


# ------------------------------------------------------------------------------------------ descriptions


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


def test_damage_in_a_run_is_shown_not_raised(run):
    flip(run / "step_00000020" / layout.MANIFEST, 5)
    flip(run / "BEST", 3)
    found = describe.describe(run)
    assert "damaged" in found["steps"][1]["problem"]
    assert any("BEST is damaged" in note for note in found["notes"])
    assert any("LATEST names step_00000020" in note for note in found["notes"])


def test_a_checkpoint(run):
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


def test_a_torch_save_checkpoint_is_described_from_its_manifest(tmp_path):
    plain = describe.describe(save(tmp_path / "a", 1, tiny()))
    other = describe.describe(save(tmp_path / "b", 1, tiny(), save_format="torch_save"))
    assert other["save_format"] == "torch_save"
    assert other["tensors"] == plain["tensors"] and other["parameters"] == plain["parameters"]
    assert other["optimizer_tensors"] == plain["optimizer_tensors"]


def test_an_incomplete_or_damaged_checkpoint_is_an_error_that_names_it(run):
    with pytest.raises(CheckpointError, match="step_00000030 is not a complete checkpoint"):
        describe.describe(run / "step_00000030")
    flip(run / "step_00000020" / layout.MANIFEST, 5)
    with pytest.raises(CheckpointError, match=r"manifest.json[\s\S]*step_00000010"):
        describe.describe(run / "step_00000020")


def test_a_hugging_face_folder_and_a_file(tmp_path):
    folder = hf_format.save_hf(tiny(), tmp_path / "hf")
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


# ------------------------------------------------------------------------------------------ verify


def test_a_sound_checkpoint_verifies(run):
    seen: list[tuple[int, int, str]] = []
    result = verify.verify(run / "step_00000010", progress=lambda *call: seen.append(call))
    assert result["ok"] and result["problems"] == [] and result["nonfinite"] == []
    assert result["tensors_scanned"] == 2 * len(list(tiny().parameters())) and len(seen) == result["files"]
    assert result["bytes_hashed"] == describe.describe(run / "step_00000010")["bytes"]


def test_a_flipped_byte_in_any_file_is_found_and_named(run):
    folder = run / "step_00000010"
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            good = path.read_bytes()
            for index in (0, len(good) // 2, len(good) - 1):
                flip(path, index)
                result = verify.verify(folder)
                assert not result["ok"] and any(path.name in line for line in result["problems"]), path
                path.write_bytes(good)
    assert verify.verify(folder)["ok"]


@pytest.mark.parametrize("change", ["missing", "cut"])
def test_missing_and_cut_files_are_named(run, change):
    path = run / "step_00000010" / "optim" / "optimizer.json"
    path.unlink() if change == "missing" else path.write_bytes(b"{")
    assert any("optimizer.json" in line for line in verify.verify(run / "step_00000010")["problems"])


def test_nan_and_infinity_are_found_by_name(tmp_path):
    model = tiny()
    with torch.no_grad():
        model.ln_f.weight[3] = math.nan
        model.wpe.weight[1, 2] = math.inf
    result = verify.verify(save(tmp_path, 1, model))
    assert not result["ok"] and result["problems"] == []
    assert [(row["tensor"], row["nan"], row["inf"]) for row in result["nonfinite"]] == [
        ("ln_f.weight", 1, 0),
        ("wpe.weight", 0, 1),
    ]


def test_other_peoples_files_are_scanned(tmp_path):
    save_file({"w": torch.tensor([1.0, math.nan])}, tmp_path / "x.safetensors")
    assert verify.verify(tmp_path / "x.safetensors")["nonfinite"][0]["tensor"] == "w"
    folder = hf_format.save_hf(tiny(), tmp_path / "hf")
    assert verify.verify(folder)["ok"]


# ------------------------------------------------------------------------------------------ compare


def test_what_differs_between_two_checkpoints(run):
    found = compare.diff(run / "step_00000010", run / "step_00000020")
    a, b = tiny().state_dict(), tiny(seed=1).state_dict()
    expected = {name: ((a[name] - b[name]).norm() / (a[name] - 0.1).norm()).item() for name in a}
    changed = {row["name"]: row["relative"] for row in found["changed"]}
    assert changed == pytest.approx({name: value for name, value in expected.items() if value}, rel=1e-4)
    assert list(changed.values()) == sorted(changed.values(), reverse=True)
    assert found["equal"] == len(a) - len(changed) and not (found["added"] or found["removed"])
    assert {"key": "step_scheduler.max_steps", "a": 10, "b": 20} in found["config"]
    assert {"key": "metrics.loss", "a": 0.5, "b": 0.25} in found["facts"]


def test_a_checkpoint_is_equal_to_itself(run):
    found = compare.diff(run / "step_00000010", run / "step_00000010")
    assert found["equal"] > 0
    assert not any(
        found[key] for key in ("added", "removed", "reshaped", "changed", "config", "facts", "unread")
    )


def test_tensors_that_came_went_and_changed_shape_or_type(tmp_path):
    save_file({"w": torch.ones(2), "gone": torch.ones(1), "s": torch.ones(3)}, tmp_path / "a.safetensors")
    save_file(
        {"w": torch.ones(2).bfloat16(), "new": torch.ones(1), "s": torch.ones(4)}, tmp_path / "b.safetensors"
    )
    found = compare.diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert [row["name"] for row in found["removed"]] == ["gone"]
    assert [row["name"] for row in found["added"]] == ["new"]
    assert found["reshaped"] == [{"name": "s", "shape": [[3], [4]]}]
    assert found["changed"] == [{"name": "w", "max_abs": 0.0, "relative": 0.0, "dtype": ["F32", "BF16"]}]


def test_values_of_torch_save_checkpoints_are_not_compared(tmp_path):
    plain = save(tmp_path / "a", 1, tiny())
    other = save(tmp_path / "b", 1, tiny(seed=1), save_format="torch_save")
    found = compare.diff(plain, other)
    assert found["unread"] == len(tiny().state_dict()) and not found["changed"]


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
from automodel_cli.checkpoint import compare, describe, verify
run = Path(sys.argv[1])
a, b = run / "step_00000010", run / "step_00000020"
print(json.dumps([describe.describe(run, now=0), describe.describe(a, now=0), verify.verify(a), compare.diff(a, b)]))
assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(run)],
        capture_output=True,
        text=True,
        env={**os.environ},
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
