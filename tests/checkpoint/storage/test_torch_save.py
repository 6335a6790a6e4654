"""The torch_save format: read by torch itself, and no pickle in it can run anything."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import tracemalloc
from pathlib import Path

import pytest
import torch
from tests.checkpoint.steps import finish, save_tensors
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, load, save
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

from automodel_cli.checkpoint import layout
from automodel_cli.checkpoint.storage import formats, torch_save
from automodel_cli.checkpoint.storage.step_files import StepReader, StepWriter
from automodel_cli.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

TENSORS = {
    "w": torch.arange(6.0).reshape(2, 3),
    "b": torch.ones(3, dtype=torch.bfloat16),
    "s": torch.tensor(4),
}


def zeros() -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}


def test_torch_reads_what_we_write(tmp_path):
    writer = StepWriter(tmp_path / "a")
    save_tensors(TENSORS, writer, save_format="torch_save")
    found = zeros()
    load(found, storage_reader=FileSystemReader(tmp_path / "a" / "model"), no_dist=True)
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def foreign(folder: Path, state: dict) -> StepReader:
    """A step folder whose tensors torch's own writer wrote."""
    writer = StepWriter(folder)
    save(state, storage_writer=FileSystemWriter(folder / "model"), no_dist=True)
    writer.adopt("model")
    return finish(writer, "torch_save")


def test_we_read_what_torch_writes_and_leave_out_what_is_no_tensor(tmp_path):
    reader = foreign(tmp_path / "a", {**TENSORS, "notes": {"lr": 0.1, "name": "adam"}, "step": 7})
    assert set(formats.scan(reader, "model")) == set(TENSORS)
    found = zeros()
    formats.load_tensors(reader, "model", found)
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_another_shape_or_name_is_refused(tmp_path):
    reader = foreign(tmp_path / "a", TENSORS)
    with pytest.raises(CheckpointError, match=r"'w' is stored as \[2, 3\], this run has \[3, 3\]"):
        formats.load_tensors(reader, "model", {**zeros(), "w": torch.zeros(3, 3)})
    with pytest.raises(CheckpointError, match="lacks 1 of 4 tensors: extra"):
        formats.load_tensors(reader, "model", {**zeros(), "extra": torch.zeros(1)})


# ------------------------------------------------------------------------------------------ hostile files


class Attack:
    """Unpickled by pickle.load, this calls ``function(*arguments)``."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def payloads(canary: Path) -> dict[str, bytes]:
    command = f"touch {canary}"
    memo = pickle.dumps(Metadata(state_dict_metadata={}, storage_data={}))
    plain = {
        "os.system": Attack(os.system, command),
        "subprocess": Attack(subprocess.check_call, ["touch", str(canary)]),
        "eval": Attack(eval, f"open({str(canary)!r}, 'w')"),
        "open": Attack(open, str(canary), "w"),
        "torch.load": Attack(torch.load, str(canary)),
        "inside metadata": Metadata(state_dict_metadata={"w": Attack(os.system, command)}, storage_data={}),
        "as a key": {Attack(os.mkdir, str(canary)): 1},
    }
    crafted = {
        # proto 4 names with dots reach attributes of modules: torch -> serialization -> os -> system
        "dotted name": b"\x80\x04\x8c\x05torch\x8c\x17serialization.os.system\x93\x8c"
        + bytes([len(command)])
        + command.encode()
        + b"\x85R.",
        "module of torch": b"ctorch.serialization\nos\n.",
        "old global": b"cos\nsystem\n(S'" + command.encode() + b"'\ntR.",
        "inst": b"(S'" + command.encode() + b"'\nios\nsystem\n.",
        "extension registry": b"\x82\x01.",
        "persistent id": b"Pabc\n.",
        "class attributes": b"ctorch.distributed.checkpoint.metadata\nMetadata\n(N}S'x'\nI1\nstb.",
        "not a pickle": b"hello",
        "empty": b"",
        "cut": memo[:-5],
        "a list": pickle.dumps([1, 2, 3]),
        "metadata without tensors' places": pickle.dumps(Metadata(state_dict_metadata={})),
    }
    return {**{name: pickle.dumps(value) for name, value in plain.items()}, **crafted}


PAYLOADS = list(payloads(Path("x")))


@pytest.mark.parametrize("name", PAYLOADS)
def test_no_crafted_metadata_runs(tmp_path, name):
    canary = tmp_path / "canary"
    content = payloads(canary)[name]
    with pytest.raises(CheckpointError, match="refused"):
        torch_save.parse_metadata(content, tmp_path / ".metadata")
    assert not canary.exists()


def test_the_canary_sings_where_nothing_holds_it_back(tmp_path):
    """The payloads are real: plain pickle runs them."""
    canary = tmp_path / "canary"
    pickle.loads(payloads(canary)["os.system"])
    assert canary.exists()


def rewrite(reader: StepReader, name: str, content: bytes) -> StepReader:
    """Replace a file and make hashes and manifest fit again, as an attacker would."""
    (reader.folder / name).write_bytes(content)
    (reader.folder / layout.MANIFEST).unlink()
    writer = StepWriter.__new__(StepWriter)
    writer.folder, writer._records = reader.folder, {}
    writer.adopt("model")
    return finish(writer, "torch_save")


def test_a_wanted_tensor_declared_as_bytes_is_not_unpickled(tmp_path):
    """torch's own planner would run torch.load(weights_only=False) on such an entry."""
    canary = tmp_path / "canary"
    reader = foreign(tmp_path / "a", {"w": TENSORS["w"]})
    metadata = pickle.loads((reader.folder / "model" / ".metadata").read_bytes())
    metadata.state_dict_metadata["w"] = BytesStorageMetadata()
    (info,) = metadata.storage_data.values()
    attack = io.BytesIO()
    torch.save(Attack(os.system, f"touch {canary}"), attack)
    info.offset, info.length = 0, len(attack.getvalue())
    metadata.storage_data = {MetadataIndex("w"): info}
    reader = rewrite(reader, f"model/{info.relative_path}", attack.getvalue())
    reader = rewrite(reader, "model/.metadata", pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="lacks 1 of 1 tensors: w"):
        formats.load_tensors(reader, "model", {"w": torch.zeros(2, 3)})
    load({"w": "x"}, storage_reader=FileSystemReader(reader.folder / "model"), no_dist=True)
    assert canary.exists(), "torch's reader runs it: the file is a real attack"


def test_a_tensor_that_is_a_crafted_pickle_does_not_run(tmp_path):
    canary = tmp_path / "canary"
    reader = foreign(tmp_path / "a", {"w": TENSORS["w"]})
    metadata = pickle.loads((reader.folder / "model" / ".metadata").read_bytes())
    (info,) = metadata.storage_data.values()
    attack = io.BytesIO()
    torch.save(Attack(os.system, f"touch {canary}"), attack)
    info.length = len(attack.getvalue())
    reader = rewrite(reader, f"model/{info.relative_path}", attack.getvalue())
    reader = rewrite(reader, "model/.metadata", pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="is refused: it names"):
        formats.load_tensors(reader, "model", {"w": torch.zeros(2, 3)})
    assert not canary.exists()


def test_a_tensor_outside_the_folder_is_refused(tmp_path):
    reader = foreign(tmp_path / "a", {"w": TENSORS["w"]})
    metadata = pickle.loads((reader.folder / "model" / ".metadata").read_bytes())
    (info,) = metadata.storage_data.values()
    info.relative_path = "../../elsewhere"
    with pytest.raises(CheckpointError, match="outside the folder"):
        torch_save.parse_metadata(pickle.dumps(metadata), tmp_path / ".metadata")


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x80\x02Nr\xff\xff\xff\x7f.",  # LONG_BINPUT: a memo of two thousand million places
        b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".",  # BYTEARRAY8 of a tebibyte
        b"\x80\x02Np999999999\n.",  # PUT, in text
        pickle.dumps([torch.Size([1] * 65)]),
    ],
    ids=["memo", "bytearray", "put", "dimensions"],
)
def test_a_pickle_that_asks_for_memory_is_refused_before_it_gets_any(bomb, tmp_path):
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="is refused"):
            torch_save.parse_metadata(bomb, tmp_path / ".metadata")
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_metadata_that_describes_more_than_the_files_hold_is_refused(tmp_path):
    writer = StepWriter(tmp_path / "step_00000001")
    save_tensors({"w": torch.zeros(4)}, writer, save_format="torch_save")
    metadata = pickle.loads((writer.folder / "model" / ".metadata").read_bytes())  # our own, just written
    described = metadata.state_dict_metadata["w"]
    described.size = described.chunks[0].sizes = torch.Size([2**40])
    writer.write_bytes("model/.metadata", pickle.dumps(metadata))
    reader = finish(writer, "torch_save")
    with pytest.raises(CheckpointError, match=r"describes 4,398,046,511,104 bytes of tensors"):
        formats.scan(reader, "model")
