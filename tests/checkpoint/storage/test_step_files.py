"""The files of a step: hashed on the way out and on the way in, named when something is wrong."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from automodel_cli import files
from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.storage.step_files import HashedOutput, StepReader, StepWriter
from automodel_cli.errors import CheckpointError

MANIFEST = {
    "format": layout.FORMAT,
    "step": 1,
    "save_format": "safetensors",
    "tied": {},
    "metrics": {},
    "facts": {},
}


def write(folder, contents):
    writer = StepWriter(folder)
    for name, content in contents.items():
        writer.write_bytes(name, content)
    writer.finish(MANIFEST)
    return StepReader(folder)


def test_every_file_is_listed_with_size_and_hash(tmp_path):
    contents = {"a/b/x": b"hello", "state.json": b"{}", "empty": b"", "big": bytes(range(256)) * 100_000}
    reader = write(tmp_path / "step_00000001", contents)
    for record in reader.manifest["files"]:
        path = reader.folder / record["name"]
        assert record["bytes"] == len(contents[record["name"]]) == path.stat().st_size
        assert record["xxh3"] == files.hash_file(path)
    assert {name: reader.read_bytes(name) for name in reader.names()} == contents
    assert reader.names("a") == ["a/b/x"]


def test_the_manifest_is_the_last_file_to_appear(tmp_path, monkeypatch):
    order = []
    real = os.fsync

    def watched(descriptor):
        order.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc here")
    monkeypatch.setattr(os, "fsync", watched)
    write(tmp_path / "s", {"a/x": b"1", "b": b"2"})
    names = [path.removeprefix(str(tmp_path / "s")) for path in order]
    assert names == ["/a/x", "/b", "/a", "/manifest.json.automodel.tmp", ""]


def test_a_stale_folder_is_emptied_first(tmp_path):
    (tmp_path / "s" / "old").mkdir(parents=True)
    write(tmp_path / "s", {"x": b"1"})
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["manifest.json", "x"]


def test_what_is_discarded_is_not_listed(tmp_path):
    writer = StepWriter(tmp_path / "s")
    writer.write_bytes("hf/x", b"1")
    writer.write_bytes("hfx", b"2")
    writer.discard("hf")
    writer.finish(MANIFEST)
    assert StepReader(tmp_path / "s").names() == ["hfx"] and not (tmp_path / "s" / "hf").exists()


def test_folders_and_files_of_others_are_taken_in(tmp_path):
    (tmp_path / "source" / "sub").mkdir(parents=True)
    for name in ("x", "sub/x", "secret"):
        (tmp_path / "source" / name).write_bytes(b"123")
    (tmp_path / "source" / "link").symlink_to(tmp_path / "source" / "secret")
    writer = StepWriter(tmp_path / "s")
    writer.copy_files(tmp_path / "source", {"x", "link", "gone", "sub"}, "tokenizer")
    (tmp_path / "s" / "model").mkdir()
    (tmp_path / "s" / "model" / "y").write_bytes(b"45")
    writer.adopt("model")
    writer.finish(MANIFEST)
    reader = StepReader(tmp_path / "s")
    assert reader.names("tokenizer") == ["tokenizer/x"] and reader.read_bytes("tokenizer/x") == b"123"
    assert reader.read_bytes("model/y") == b"45"


def test_a_file_that_was_changed_while_nobody_looked(tmp_path):
    reader = write(tmp_path / "step_00000001", {"x": b"hello"})
    (reader.folder / "x").write_bytes(b"hellO")
    with pytest.raises(CheckpointError, match=r"x is damaged: its content has hash"):
        reader.check("x")
    with pytest.raises(CheckpointError, match="holds no y"):
        reader.check("y")
    (reader.folder / "x").unlink()
    with pytest.raises(CheckpointError, match="cannot read"):
        reader.check("x")


def test_damage_explains_whatever_else_went_wrong_while_reading(tmp_path):
    reader = write(tmp_path / "step_00000001", {"x": b"hello"})
    with pytest.raises(CheckpointError, match="nonsense"), reader.open("x"):
        raise CheckpointError("nonsense")
    (reader.folder / "x").write_bytes(b"hellO")
    with pytest.raises(CheckpointError, match="x is damaged"), reader.open("x"):
        raise CheckpointError("nonsense")


def test_a_disk_that_fails_while_reading_is_named(tmp_path):
    reader = write(tmp_path / "step_00000001", {"x": b"hello"})
    with pytest.raises(CheckpointError, match=r"cannot read .*x: Input/output error"), reader.open("x"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_failed_write_names_its_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = StepWriter(tmp_path / "s")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="model/x"):
        writer.write_bytes("model/x", b"1")


class Stutter:
    """A raw file that takes three bytes at a time."""

    def __init__(self):
        self.content = b""

    def write(self, data):
        self.content += bytes(data[:3])
        return min(3, len(data))


def test_short_writes_are_finished():
    raw = Stutter()
    output = HashedOutput(raw)
    output.write(b"hello world")
    assert raw.content == b"hello world" and output.hash == files.hash_bytes(b"hello world")
