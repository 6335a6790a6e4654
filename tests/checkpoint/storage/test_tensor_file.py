"""The safetensors bytes: agreement with the safetensors package, and refusal of anything malformed."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from automodel_cli.checkpoint.storage import tensor_file
from automodel_cli.errors import CheckpointError

ARRAYS = {
    "matrix": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.array([1.5, -2.0], dtype=np.float16),
    "count": np.array(7, dtype=np.int64),
    "empty": np.zeros((0, 4), dtype=np.float32),
    "flags": np.array([True, False, True]),
}
NAMES = {"float32": "F32", "float16": "F16", "int64": "I64", "bool": "BOOL"}


def write(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    described = {name: (NAMES[str(array.dtype)], array.shape) for name, array in arrays.items()}
    header, order = tensor_file.encode_header(described, metadata)
    path.write_bytes(header + b"".join(arrays[name].tobytes() for name in order))


def test_the_safetensors_package_reads_what_we_write(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path, ARRAYS, {"format": "pt"})
    with safe_open(path, "np") as handle:
        assert set(handle.keys()) == set(ARRAYS) and handle.metadata() == {"format": "pt"}
        for name, array in ARRAYS.items():
            assert np.array_equal(handle.get_tensor(name), array), name


def test_we_read_what_the_safetensors_package_writes(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(ARRAYS, path)
    header = tensor_file.read_header(path)
    assert set(header.tensors) == set(ARRAYS)
    for name, array in ARRAYS.items():
        info = header.tensors[name]
        assert info.shape == array.shape and info.offsets == (0,) * array.ndim
        assert np.array_equal(tensor_file.raw_array(path, info), array), name


def test_equal_tensors_give_equal_bytes_whatever_their_order(tmp_path):
    write(tmp_path / "a", ARRAYS, {"x": "1", "b": "2"})
    write(tmp_path / "b", dict(reversed(ARRAYS.items())), {"b": "2", "x": "1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_tensor_is_aligned_to_its_element(tmp_path):
    write(tmp_path / "a", ARRAYS, {})
    for info in tensor_file.read_header(tmp_path / "a").tensors.values():
        assert info.begin % tensor_file.ITEM_BYTES[info.dtype] == 0


def test_shard_positions_are_read_from_the_metadata(tmp_path):
    array = {"w": np.ones((2, 3), dtype=np.float32)}
    write(tmp_path / "a", array, tensor_file.sharding_metadata({"w": (4, 0)}))
    assert tensor_file.read_header(tmp_path / "a").tensors["w"].offsets == (4, 0)


def with_header(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        b"\x80\x04" + b"x" * 100,
        struct.pack("<Q", 1 << 62) + b"{}",
        with_header(b"not json at all"),
        with_header([1, 2]),
        with_header({"w": 3}),
        with_header({"w": {**ENTRY, "dtype": "F99"}}, b"x" * 8),
        with_header({"w": ENTRY}, b"x" * 7),
        with_header({"w": ENTRY}, b"x" * 9),
        with_header({"w": {**ENTRY, "shape": [3]}}, b"x" * 8),
        with_header({"w": {**ENTRY, "shape": [-2]}}, b"x" * 8),
        with_header({"w": {**ENTRY, "shape": [-1, -2]}}, b"x" * 8),
        with_header({"w": {**ENTRY, "data_offsets": [4, 12]}}, b"x" * 12),
        with_header({"w": ENTRY, "v": ENTRY}, b"x" * 8),
        with_header({"__metadata__": 5, "w": ENTRY}, b"x" * 8),
        with_header({"__metadata__": {"DCP_SHARDING_INFO": "{"}, "w": ENTRY}, b"x" * 8),
        with_header({"__metadata__": {"DCP_SHARDING_INFO": '{"v": 1}'}, "w": ENTRY}, b"x" * 8),
    ],
)
def test_a_malformed_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bad\.safetensors"):
        tensor_file.read_header(path)


def check(*chunks):
    """Shards of one F32 tensor, each as (offsets, shape)."""
    infos = [tensor_file.TensorInfo("F32", shape, 0, 0, offsets) for offsets, shape in chunks]
    (tensor,) = tensor_file.put_together(("w", Path("x"), info) for info in infos)
    tensor_file.check_cover(tensor, "here")


@pytest.mark.parametrize(
    ("chunks", "trouble"),
    [
        ([((0, 0), (2, 4)), ((2, 0), (2, 4))], None),
        ([((0, 0), (4, 2)), ((0, 2), (4, 2))], None),
        ([((0, 0), (2, 4)), ((3, 0), (1, 4))], "holds 12 of 16 elements"),
        ([((0, 0), (2, 4)), ((0, 0), (2, 4)), ((3, 0), (1, 4)), ((3, 0), (1, 4))], "holds 24 of 16"),
        (
            [((2, 0), (2, 4)), ((2, 0), (2, 4))],
            "overlap",
        ),  # as many as there should be, the first rows twice missing
        ([((0,), (4,)), ((0, 0), (4, 1))], "do not belong together"),
    ],
)
def test_parts_hold_each_element_once(chunks, trouble):
    if trouble is None:
        check(*chunks)
        return
    with pytest.raises(CheckpointError, match=trouble):
        check(*chunks)


def test_an_empty_tensor_of_impossible_widths_is_refused(tmp_path):
    header = json.dumps({"w": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="has no elements and shape"):
        tensor_file.read_header(tmp_path / "x.safetensors")
