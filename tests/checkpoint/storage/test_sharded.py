"""Tensors in shard files: exchange with torch's own writer and reader, shards put together, odd shapes and types."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tests import nursery
from tests.checkpoint.steps import finish, save_tensors
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter, load, save

from automodel_cli.checkpoint.storage import formats, sharded
from automodel_cli.checkpoint.storage.step_files import StepReader, StepWriter
from automodel_cli.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

TENSORS = {
    "matrix": torch.arange(12.0).reshape(3, 4),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "scalar": torch.tensor(5.0),
    "count": torch.tensor([1 << 40, -1]),
    "flags": torch.tensor([True, False]),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
    "slice": torch.arange(20.0)[3:7],
    "empty": torch.zeros(0, 4),
    "fp8": torch.tensor([1.0, 448.0]).to(torch.float8_e4m3fn),
}


def write(folder: Path, *shards: tuple[dict, dict]) -> StepReader:
    """A step folder whose ranks hold the given (tensors, offsets)."""
    writer = StepWriter(folder)
    for rank, (tensors, offsets) in enumerate(shards):
        save_tensors(tensors, writer, rank=rank, offsets=offsets)
    return finish(writer)


def empty_like(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    def plain(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.view(torch.uint8) if tensor.dtype == torch.float8_e4m3fn else tensor

    return a.dtype == b.dtype and torch.equal(plain(a), plain(b))


def test_every_kind_of_tensor_comes_back(tmp_path):
    reader = write(tmp_path / "a", (TENSORS, {}))
    found = empty_like(TENSORS)
    formats.load_tensors(reader, "model", found)
    for name, tensor in TENSORS.items():
        assert equal(found[name], tensor), name


def test_the_safetensors_package_reads_it(tmp_path):
    write(tmp_path / "a", (TENSORS, {}))
    with safe_open(tmp_path / "a" / "model" / sharded.shard_name(), "pt") as handle:
        for name, tensor in TENSORS.items():
            assert equal(handle.get_tensor(name), tensor), name


def test_torch_reads_what_we_write(tmp_path):
    tensors = {name: tensor for name, tensor in TENSORS.items() if name != "fp8"}
    write(tmp_path / "a", (tensors, {}))
    found = empty_like(tensors)
    load(found, storage_reader=HuggingFaceStorageReader(str(tmp_path / "a" / "model")), no_dist=True)
    for name, tensor in tensors.items():
        assert equal(found[name], tensor), name


def test_we_read_what_torch_writes(tmp_path):
    tensors = {
        "matrix": TENSORS["matrix"].clone(),
        "scalar": torch.tensor(5.0),
        "half": TENSORS["half"].clone(),
    }
    writer = StepWriter(tmp_path / "a")
    target = HuggingFaceStorageWriter(str(tmp_path / "a" / "model"), save_distributed=True)
    save(tensors, storage_writer=target, no_dist=True)
    assert [path.name for path in (tmp_path / "a" / "model").iterdir()] == [sharded.shard_name()]
    writer.adopt("model")
    found = empty_like(tensors)
    formats.load_tensors(finish(writer), "model", found)
    assert all(equal(found[name], tensor) for name, tensor in tensors.items())


PARTS = (
    ({"w": torch.arange(8.0).reshape(2, 4), "only": torch.ones(3)}, {}),
    ({"w": torch.arange(8.0, 12.0).reshape(1, 4)}, {"w": (2, 0)}),
)


@pytest.mark.parametrize("who", ["we", "torch"])
def test_parts_of_several_ranks_make_one_tensor(tmp_path, who):
    reader = write(tmp_path / "a", *PARTS)
    whole = formats.scan(reader, "model")["w"]
    assert (whole.dtype, whole.shape) == ("F32", (3, 4))
    found = {"w": torch.zeros(3, 4), "only": torch.zeros(3)}
    if who == "we":
        formats.load_tensors(reader, "model", found)
    else:
        load(found, storage_reader=HuggingFaceStorageReader(str(reader.folder / "model")), no_dist=True)
    assert torch.equal(found["w"], torch.arange(12.0).reshape(3, 4))
    assert torch.equal(found["only"], torch.ones(3))


def test_a_gap_between_parts_is_refused(tmp_path):
    reader = write(tmp_path / "a", PARTS[0], ({"w": torch.ones(1, 4)}, {"w": (5, 0)}))
    with pytest.raises(CheckpointError, match="12 of 24 elements of 'w'"):
        formats.scan(reader, "model")


def test_a_complex_type_without_a_name_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="complex128"):
        write(tmp_path / "a", ({"w": torch.zeros(2, dtype=torch.complex128)}, {}))


def test_equal_tensors_give_equal_bytes_in_another_process(tmp_path):
    program = """
import sys, torch
from pathlib import Path
from tests.checkpoint.steps import save_tensors
from automodel_cli.checkpoint.storage.step_files import StepWriter
writer = StepWriter(Path(sys.argv[1]))
save_tensors({"b": torch.ones(3), "a": torch.zeros(2, 2)}, writer)
"""
    nursery.run([sys.executable, "-c", program, str(tmp_path / "a")], check=True)
    save_tensors({"a": torch.zeros(2, 2), "b": torch.ones(3)}, StepWriter(tmp_path / "b"))
    contents = {(tmp_path / name / "model" / sharded.shard_name()).read_bytes() for name in ("a", "b")}
    assert len(contents) == 1
