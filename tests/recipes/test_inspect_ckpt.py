"""inspect-ckpt: from what was asked for to facts."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from automodel_cli import files
from automodel_cli.checkpoint import layout
from automodel_cli.config.schema.results import InspectConfig
from automodel_cli.errors import CheckpointError
from automodel_cli.recipes import inspect_ckpt


def make_step(run, step, value):
    """A checkpoint of one tensor, without torch."""
    folder = layout.step_folder(run, step)
    (folder / "model").mkdir(parents=True)
    shard = folder / "model" / "shard-00001-model-00001-of-00001.safetensors"
    save_file({"w": np.full(3, value, dtype=np.float32)}, shard)
    record = {"name": f"model/{shard.name}", "bytes": shard.stat().st_size, "xxh3": files.hash_file(shard)}
    manifest = {"format": layout.FORMAT, "step": step, "save_format": "safetensors", "tied": {}, "facts": {}}
    files.write_manifest(folder / layout.MANIFEST, {**manifest, "metrics": {}, "files": [record]})
    return folder


@pytest.fixture
def run_folder(tmp_path):
    run = tmp_path / "run"
    for step in (1, 2, 3):
        make_step(run, step, float(step))
    layout.write_pointer(run, "LATEST", layout.step_name(3))
    layout.write_pointer(run, "BEST", layout.step_name(2))
    return run


def inspect(path, **settings):
    return inspect_ckpt.run(InspectConfig(path=str(path), **settings))


def test_a_run_and_its_steps(run_folder):
    assert [row["step"] for row in inspect(run_folder)["steps"]] == [1, 2, 3]
    assert inspect(run_folder, step="LATEST")["step"] == 3
    assert inspect(run_folder, step="BEST")["step"] == 2
    assert inspect(run_folder, step=1)["step"] == 1
    assert inspect(run_folder / "step_00000002")["step"] == 2
    with pytest.raises(CheckpointError, match="step_00000003"):
        inspect(run_folder, step="9")


def test_verify_goes_through_all_steps_of_a_run(run_folder):
    shard = next((run_folder / "step_00000002").rglob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    results = inspect(run_folder, verify=True)["verify"]
    assert [result["ok"] for result in results] == [True, False, True, True]
    assert shard.name in results[1]["problems"][0]
    assert [result["ok"] for result in inspect(run_folder, step="3", verify=True)["verify"]] == [True]


@pytest.mark.parametrize("pair", [("1", "LATEST"), ("step_00000001", "3"), ("path", "run")])
def test_diff_takes_steps_pointers_and_paths(run_folder, pair):
    names = {"path": str(run_folder / "step_00000001"), "run": str(run_folder)}
    found = inspect(run_folder, diff=tuple(names.get(name, name) for name in pair))
    assert found["kind"] == "diff"
    assert found["changed"] == [{"name": "w", "max_abs": 2.0, "relative": 2.0}]


def test_diff_of_files_needs_no_run(tmp_path):
    for name in ("a", "b"):
        save_file({"w": np.ones(2)}, tmp_path / f"{name}.safetensors")
    pair = (str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"))
    assert inspect(tmp_path / "nowhere", diff=pair)["equal"] == 1
    with pytest.raises(CheckpointError, match="nowhere"):
        inspect(tmp_path, diff=(pair[0], str(tmp_path / "nowhere")))
