"""verify: every flipped byte found and named, NaN and infinity found by tensor."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import save_file

from automodel_cli.checkpoint.hf import export as hf_export
from automodel_cli.checkpoint.inspect import describe, verify
from automodel_cli.corpus.tokenizer import ByteTokenizer
from automodel_cli.errors import CheckpointError


def test_a_sound_checkpoint_verifies(run, tiny):
    seen: list[tuple[int, int, str]] = []
    result = verify.verify(run / "step_00000010", progress=lambda *call: seen.append(call))
    assert result["ok"] and result["problems"] == [] and result["nonfinite"] == []
    assert result["tensors_scanned"] == 2 * len(list(tiny().parameters())) and len(seen) == result["files"]
    assert result["bytes_hashed"] == describe.describe(run / "step_00000010")["bytes"]


def test_a_flipped_byte_in_any_file_is_found_and_named(run, flip):
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


def test_nan_and_infinity_are_found_by_name(tmp_path, tiny, save):
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


def test_other_peoples_files_are_scanned(tmp_path, tiny):
    save_file({"w": torch.tensor([1.0, math.nan])}, tmp_path / "x.safetensors")
    assert verify.verify(tmp_path / "x.safetensors")["nonfinite"][0]["tensor"] == "w"
    folder = hf_export.save_hf(tiny(), tmp_path / "hf")
    assert verify.verify(folder)["ok"]


@pytest.fixture
def exported(tmp_path, tiny):
    tokenizer = ByteTokenizer()
    tokenizer.save(tmp_path / "tokenizer")
    return hf_export.save_hf(tiny(), tmp_path / "hf", tmp_path / "tokenizer")


def test_flipped_bytes_in_an_exported_folder_are_found(exported):
    """200 of 200, spread over all files by their sizes; and the folder as it was is sound."""
    assert verify.verify(exported)["ok"] and verify.verify(exported)["not_covered"] == []
    paths = sorted(path for path in exported.iterdir() if path.is_file())
    assert verify.verify(exported)["bytes_hashed"] == sum(
        path.stat().st_size for path in paths if path.name != "automodel_files.json"
    )
    found = 0
    for number in range(200):
        path = paths[number % len(paths)]
        good = path.read_bytes()
        bad = bytearray(good)
        bad[number * 7919 % len(good)] ^= 1 << number % 8
        path.write_bytes(bad)
        found += not verify.verify(exported)["ok"]
        path.write_bytes(good)
    assert found == 200


def test_exports_without_hashes_and_files_added_to_one_are_said_to_be_uncovered(exported):
    (exported / "results.json").write_text("{}")
    result = verify.verify(exported)
    assert result["ok"] and result["not_covered"] == ["results.json"]
    (exported / "automodel_files.json").unlink()  # as exports were before there was such a list
    result = verify.verify(exported)
    assert result["bytes_hashed"] == 0 and "no hashes" in result["not_covered"][0]
    (exported / "automodel_files.json").write_text('{"format": "automodel-export/1", "files": [{"name": "../x"}]}')
    assert not verify.verify(exported)["ok"]


def test_nan_in_a_torch_save_checkpoint_is_found_too(tmp_path, tiny, save):
    model = tiny()
    assert verify.verify(save(tmp_path, 1, model, save_format="torch_save"))["ok"]
    with torch.no_grad():
        model.wpe.weight[1, 2] = math.nan
    folder = save(tmp_path, 2, model, save_format="torch_save")
    result = verify.verify(folder)
    assert [(row["tensor"], row["nan"]) for row in result["nonfinite"]] == [("wpe.weight", 1)]
    assert not result["ok"] and result["tensors_scanned"] == 2 * len(list(model.parameters()))
    with pytest.raises(CheckpointError, match=r"wpe\.weight.*first") as caught:
        verify.refuse_nonfinite(folder)
    assert "restore_from step_00000001" in caught.value.hint
    verify.refuse_nonfinite(tmp_path / "step_00000001")
