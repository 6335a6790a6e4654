"""``automodel inspect-ckpt``: tables, JSON, exit codes, and life without torch."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from automodel_cli import files
from automodel_cli.checkpoint import layout
from automodel_cli.cli import app
from automodel_cli.cli.commands import inspect_ckpt

NAMES = [f"h.{layer}.{part}.weight" for layer in range(12) for part in ("attn", "mlp", "ln_1")]


PLAN = {
    "kind": "mixture",
    "order": "deadlines/1",
    "seq_len": 8,
    "sources": {"code": {"windows": 50}, "web\x1b[2J": {"windows": "many"}},
    "stages": [{"from_sample": 0, "weights": {"code": 3.0, "web\x1b[2J": 1.0}}],
}


def write_position(folder, plan):
    """The position after 80 samples in the order that ``plan`` describes."""
    state = {"plan_hash": "xxh3:0", "samples_consumed": 80, "plan": plan}
    (folder / "loader.json").write_text(json.dumps(state))


def make_step(run, step, value=1.0):
    """A checkpoint of a model with twelve layers, without torch."""
    folder = layout.step_folder(run, step)
    (folder / "model").mkdir(parents=True)
    shard = folder / "model" / "shard-00001-model-00001-of-00001.safetensors"
    save_file({name: np.full((4, 3), value, dtype=np.float32) for name in NAMES}, shard)
    record = {"name": f"model/{shard.name}", "bytes": shard.stat().st_size, "xxh3": files.hash_file(shard)}
    manifest = {
        "format": layout.FORMAT,
        "step": step,
        "save_format": "safetensors",
        "tied": {"head": "wte"},
        "facts": {"model": {"family": "gpt2", "n_layer": 12}, "tokenizer": {"name": "byte"}},
        "metrics": {"loss": 3.0 / step, "val_loss": {"default": 4.0 / step}},
        "files": [record],
    }
    files.write_manifest(folder / layout.MANIFEST, manifest)
    write_position(folder, PLAN)


@pytest.fixture
def run_folder(tmp_path):
    run = tmp_path / "run"
    make_step(run, 10)
    make_step(run, 20, value=2.0)
    layout.write_pointer(run, "LATEST", layout.step_name(20))
    return run


def test_a_run_is_a_table(run_folder, capsys):
    assert app.run(["inspect-ckpt", str(run_folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["step", "loss", "val", "loss", "size", "age", "state"]
    assert lines[2].split()[:3] == ["10", "0.3000", "0.4000"]
    assert lines[3].split()[0] == "20" and lines[3].endswith("complete  LATEST")


def test_one_checkpoint_fits_a_screen(run_folder, capsys):
    assert app.run(["inspect-ckpt", str(run_folder), "--step", "LATEST"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) < 40
    assert "family gpt2, n_layer 12" in out and "head wte" in out and "432: matrix 288, norm 144" in out
    assert "h.*.attn.weight" in out and "4 x 3" in out and "36 tensors" in out


def test_json_is_whole_and_strict(run_folder, capsys):
    assert app.run(["inspect-ckpt", str(run_folder), "--step", "10", "--json", "--verify"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert len(found["tensors"]) == 36 and found["verify"][0]["ok"]


def test_diff(run_folder, capsys):
    assert app.run(["inspect-ckpt", str(run_folder), "--diff", "10", "20"]) == 0
    out = capsys.readouterr().out
    assert "36 changed" in out and "metrics.loss" in out
    assert app.run(["inspect-ckpt", str(run_folder), "--diff", "10", "20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["changed"][0]["relative"] == 1.0


def test_what_was_read_of_a_mixture(run_folder, capsys):
    assert app.run(["inspect-ckpt", str(run_folder), "--data"]) == 0
    out = capsys.readouterr().out
    assert "data read until step 20 (80 samples)" in out and "\x1b" not in out
    rows = [line.split() for line in out.splitlines()[-2:]]
    assert rows[0] == ["0", "to", "80", "code", "0", "to", "60", "60", "1.2"]
    assert rows[1][-4:] == ["0", "to", "20", "20"]  # nothing is known of its passes
    assert app.run(["inspect-ckpt", str(run_folder), "--step", "10", "--data", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["data_read"]
    assert (found["step"], found["samples"], found["windows"][1]["available"]) == (10, 80, None)


@pytest.mark.parametrize("plan", [{**PLAN, "stages": []}, {**PLAN, "from_sample": 99}, None])
def test_a_position_that_is_damaged(run_folder, plan, capsys):
    folder = layout.step_folder(run_folder, 20)
    write_position(folder, plan)
    if plan is None:
        (folder / "loader.json").unlink()
    assert app.run(["inspect-ckpt", str(run_folder), "--data"]) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 2 and ("damaged" in said or "does not exist" in said)


def test_verify_that_fails_is_exit_code_1_and_names_the_file(run_folder, capsys):
    assert app.run(["inspect-ckpt", str(run_folder), "--verify"]) == 0
    assert capsys.readouterr().out.count("ok: ") == 3  # two steps, and the run
    shard = next((run_folder / "step_00000020").rglob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    assert app.run(["inspect-ckpt", str(run_folder), "--verify"]) == 1
    out = capsys.readouterr().out
    assert "FAILED: " in out and f"{shard} is damaged" in out


@pytest.mark.parametrize("arguments", [["nowhere"], ["run", "--step", "7"], ["run", "--diff", "10", "nowhere"]])
def test_errors_are_two_lines(run_folder, arguments, monkeypatch, capsys):
    monkeypatch.chdir(run_folder.parent)
    assert app.run(["inspect-ckpt", *arguments]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_settings_from_a_file(run_folder, tmp_path, capsys):
    config = tmp_path / "inspect.yaml"
    config.write_text(f"path: {run_folder}\nstep: 10\njson: true\n")
    assert app.run(["inspect-ckpt", "-c", str(config)]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 10


def test_works_where_torch_is_not_installed(run_folder):
    program = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "datasets"):
            raise ModuleNotFoundError(f"No module named {name!r} (hidden by the test)")

sys.meta_path.insert(0, Hidden())
from automodel_cli.cli import app
for arguments in (["--verify"], ["--data"], ["--step", "20", "--json"], ["--diff", "10", "LATEST"]):
    assert app.run(["inspect-ckpt", sys.argv[1], *arguments]) == 0
"""
    command = [sys.executable, "-c", program, str(run_folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout, done.stderr


def test_values_are_shown_on_a_line():
    assert inspect_ckpt.brief({"a": 1, "b": None, "c": {"d": [1, 2]}}) == "a 1, c d [1, 2]"


def test_a_tree_is_a_line_for_each_run(capsys):
    """The trunk is gone, ``b`` trains, and what a branch says of itself holds an escape code."""
    bare = {"there": True, "training": False, "step": 8, "val_loss": 1.5, "best_val_loss": 1.25, "branches": []}
    inner = {**bare, "name": "aa", "from_step": 6, "change": "more \x1b[31mdata", "problem": "was replaced"}
    a = {**bare, "name": "a", "from_step": 4, "change": "cooldown", "problem": None, "branches": [inner]}
    b = {**bare, "name": "b", "from_step": 1200, "training": True, "val_loss": None, "best_val_loss": None}
    trunk = {**bare, "name": "trunk", "there": False, "step": None, "val_loss": None, "best_val_loss": None}
    inspect_ckpt.show_tree({"path": "runs", "runs": [{**trunk, "branches": [a, b]}], "notes": ["one is damaged"]})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "runs" and lines[-1] == "note: one is damaged"
    assert [line.split() for line in lines[2:-1]] == [
        ["trunk", "(not", "there)"],
        ["├─", "a", "4", "8", "1.5000", "1.2500", "cooldown"],
        ["│", "└─", "aa", "6", "8", "1.5000", "1.2500", *lines[4].split()[7:]],
        ["└─", "b", "(training)", "1,200", "8"],
    ]
    assert "\x1b" not in lines[4] and lines[4].endswith("data; was replaced")
