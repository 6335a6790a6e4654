"""No file of a run folder is believed: each is spoiled in many ways, hashes and all, and answered in two lines.

The manifest's hashes are made anew after each change, so that what is spoiled reaches whoever reads it.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from automodel_cli import files
from automodel_cli.assembly.checkpoint import load_model
from automodel_cli.checkpoint import layout, run_files
from automodel_cli.checkpoint.inspect import verify
from automodel_cli.cli.commands import inspect_ckpt as view
from automodel_cli.config.schema.results import InspectConfig
from automodel_cli.errors import AutomodelError
from automodel_cli.models.model_config import MOST_LAYERS
from automodel_cli.recipes import inspect_ckpt

SHARD = "shard-00001-model-00001-of-00001.safetensors"
STEP = "step_00000004"
ODD: tuple[Any, ...] = (None, -1, 2**63, 2**200, 1e308, "x", "../x", "\x1b[31m", [], [[1]], {"a": 1}, 0)
RAW = (b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"", b"1", b'{"step": ' + b"9" * 5_000 + b"}")
NAMES = (
    "manifest.json",
    "state.json",
    "loader.json",
    "optim/optimizer.json",
    f"model/{SHARD}",
    f"optim/{SHARD}",
)
EVERY = 37  # of all single changes; another one for each file and value


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_tokens) -> Any:
    from tests.conftest import TinyTraining

    training = TinyTraining(tmp_path_factory.mktemp("doors"), tiny_tokens)
    scheduler = ("--step_scheduler.max_steps", "4", "--step_scheduler.local_batch_size", "8")
    training.recipe(*scheduler, "--checkpoint.save_consolidated", "false").run_train_validation_loop()
    return training


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    if isinstance(value, dict):
        for key in list(value)[:6]:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


def changed(value: Any, path: tuple, odd: Any) -> Any:
    """``value`` with ``odd`` at ``path``; without the key where odd is ``...``."""
    if not path:
        return {} if odd is ... else odd
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    if odd is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = odd
    return value


def seal(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    for record in manifest["files"]:
        path = folder / record["name"]
        record["bytes"], record["xxh3"] = path.stat().st_size, files.hash_file(path)
    del manifest["self"]
    files.write_manifest(folder / "manifest.json", manifest)


def contents(original: Path) -> Iterator[tuple[Any, bytes]]:
    """What a file may be turned into, and in a word how."""
    data, tail = original.read_bytes(), b""
    if original.suffix == ".safetensors":
        (length,) = struct.unpack("<Q", data[:8])
        data, tail = data[8 : 8 + length], data[8 + length :]
    value = json.loads(data)
    single = [(path, odd) for path in places(value) for odd in (*ODD, ...)]
    spoiled: list[tuple[Any, bytes]] = [(raw[:9], raw) for raw in RAW]
    for path, odd in single[:: EVERY if len(single) > 200 else 7]:
        new = changed(value, path, odd)
        if original.name == "manifest.json" and isinstance(new, dict):
            new.pop("self", None)
            files.write_manifest(original.with_name("spoiled"), new)
            spoiled.append(((path, odd), original.with_name("spoiled").read_bytes()))
            original.with_name("spoiled").unlink()
        else:
            spoiled.append(((path, odd), json.dumps(new).encode()))
    for what, content in spoiled:
        padded = content + b" " * (-len(content) % 8)
        yield what, struct.pack("<Q", len(padded)) + padded + tail if tail else content


def resume(training: Any, run: Path) -> None:
    training.recipe("--checkpoint.checkpoint_dir", str(run)).claim.close()


def answered(work: Any, what: Any) -> None:
    """Done, or refused in two lines without escapes; any other exception fails the test by itself."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            work()
    except AutomodelError as error:
        assert len(str(error).splitlines()) <= 3 and "\x1b" not in str(error), (what, str(error))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_spoiled_is_answered(trained, tmp_path, name):
    run = shutil.copytree(trained.run, tmp_path / "run")
    path, sound = run / STEP / name, (run / STEP / name).read_bytes()
    manifest = (run / STEP / "manifest.json").read_bytes()

    def show() -> None:
        found = inspect_ckpt.run(InspectConfig(path=str(run / STEP), verify=True))
        view._SHOW[found["kind"]](found)

    for number, (what, content) in enumerate(contents(path)):
        path.write_bytes(content)
        if name != "manifest.json":
            seal(run / STEP)
        answered(show, what)
        answered(lambda: load_model(run / STEP), what)
        if number % 8 == 0:
            answered(lambda: resume(trained, run), what)
        path.write_bytes(sound)
        (run / STEP / "manifest.json").write_bytes(manifest)


def test_a_model_is_not_built_larger_than_what_is_stored(trained, tmp_path):
    run = shutil.copytree(trained.run, tmp_path / "run")
    manifest = json.loads((run / STEP / "manifest.json").read_text())
    for key in ("n_layer", "n_embd", "n_positions", "vocab_size"):
        large = changed(manifest, ("facts", "model", key), MOST_LAYERS if key == "n_layer" else 10**9)
        del large["self"]
        files.write_manifest(run / STEP / "manifest.json", large)
        with pytest.raises(AutomodelError, match=r"asks for .* parameters, the files hold"):
            load_model(run / STEP)


def test_pipes_in_a_run_folder_keep_nobody_waiting(trained, tmp_path):
    for name in ("LATEST", "metrics.jsonl", "config.yaml", f"{STEP}/state.json", f"{STEP}/manifest.json"):
        run = shutil.copytree(trained.run, tmp_path / name.replace("/", "-"))
        (run / name).unlink()
        os.mkfifo(run / name)
        answered(lambda run=run: inspect_ckpt.run(InspectConfig(path=str(run), verify=True)), name)
        result = run_files.verify_run(run) if "/" not in name else verify.verify(run / STEP)
        assert not result["ok"] and name.rpartition("/")[2] in result["problems"][0]
        answered(lambda run=run: resume(trained, run), name)


def test_every_flipped_byte_of_a_run_is_found(trained, tmp_path):
    run = shutil.copytree(trained.run, tmp_path / "run")
    assert verify_all(run) == []
    for path in [*(run / name for name in ("LATEST", "BEST", "config.yaml", "metrics.jsonl"))]:
        good = path.read_bytes()
        for index in [
            *range(40),
            *range(len(good) // 2, len(good) // 2 + 40),
            *range(len(good) - 60, len(good)),
        ]:
            if index in range(len(good)):
                path.write_bytes(good[:index] + bytes([good[index] ^ 1 << index % 8]) + good[index + 1 :])
                assert not run_files.verify_run(run)["ok"], (path.name, index)
        path.write_bytes(good)


def verify_all(run: Path) -> list[str]:
    results = inspect_ckpt.run(InspectConfig(path=str(run), verify=True))["verify"]
    return [line for result in results for line in result["problems"] + result["not_covered"]]


def test_what_no_hash_covers_is_said_and_not_called_sound(trained, tmp_path, capsys):
    run = shutil.copytree(trained.run, tmp_path / "run")
    (run / "curves.png").write_bytes(b"x")
    (run / STEP / "stranger").write_bytes(b"x")
    old = [json.dumps({key: value for key, value in json.loads(line).items() if key != "xxh3"})
           for line in (run / "metrics.jsonl").read_text().splitlines()]  # fmt: skip
    (run / "metrics.jsonl").write_text("\n".join(old) + "\n")
    (run / "config.yaml").write_text("\n".join((run / "config.yaml").read_text().splitlines()[1:-1]))
    (run / "LATEST").write_text(f"{STEP}\n")
    (run / "BEST").unlink()
    view.show_verified(inspect_ckpt.run(InspectConfig(path=str(run), verify=True))["verify"])
    said = capsys.readouterr().out
    for name in ("curves.png", "stranger", "config.yaml (", "LATEST (", "its first 5 lines"):
        assert f"not covered: {name}" in said or name == "its first 5 lines"
    assert "metrics.jsonl: its first" in said and f"nothing to compare with: {run}" in said


def test_a_step_that_goes_while_it_is_looked_at_is_a_clear_error(trained, tmp_path, monkeypatch):
    run = shutil.copytree(trained.run, tmp_path / "run")
    honest = layout.find_problem

    def gone(folder: Path) -> str | None:
        shutil.rmtree(run, ignore_errors=True)
        return honest(folder)

    monkeypatch.setattr(layout, "find_problem", gone)
    answered(lambda: inspect_ckpt.run(InspectConfig(path=str(run), verify=True)), "pruned")
    with pytest.raises(AutomodelError):
        load_model(run / STEP)
