"""Token files: fixed reference bytes, both headers, headerless files, damage, partial writes."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from tests.token_files import write_token_file

from automodel_cli.corpus.formats import watched_file
from automodel_cli.corpus.formats.bos_index import bos_index_fits, bos_index_path, read_bos_index
from automodel_cli.corpus.formats.nanogpt_bin import inspect_token_file, token_dtype
from automodel_cli.corpus.formats.nanogpt_writer import ShardWriter
from automodel_cli.corpus.formats.token_reader import TokenReader, iter_blocks
from automodel_cli.errors import DataError


def header(magic: int, version: int, count: int, size: int) -> bytes:
    return struct.pack("<4i", magic, version, count, size).ljust(1024, b"\0")


def test_bytes_are_the_published_layout(tmp_path: Path) -> None:
    path = tmp_path / "dataset.bin"
    write_token_file(path, np.array([50256, 1, 2, 50256, 3]), starts=np.array([0, 3]), dtype="uint16")
    assert path.read_bytes() == header(278895051, 1, 5, 2) + struct.pack("<5H", 50256, 1, 2, 50256, 3)
    assert (tmp_path / "dataset.bos.idx").read_bytes() == struct.pack("<2i", 0, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dataset.bin", "dataset.bos.idx"]


def test_wide_ids_take_four_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_token_file(path, np.array([70000, 1]))
    assert path.read_bytes() == header(278895051, 1, 2, 4) + struct.pack("<2I", 70000, 1)
    file = inspect_token_file(path)
    assert (file.layout, file.dtype, file.num_tokens) == ("nemo", np.dtype("<u4"), 2)


@pytest.mark.parametrize(("vocab_size", "name"), [(256, "uint16"), (65536, "uint16"), (65537, "uint32")])
def test_token_dtype(vocab_size: int, name: str) -> None:
    assert token_dtype(vocab_size).name == name


@pytest.mark.parametrize("mmap", ["auto", True, False])
@pytest.mark.parametrize("layout", ["nemo", "legacy", "raw"])
def test_every_layout_reads_back(tmp_path: Path, layout: str, mmap: bool | str) -> None:
    tokens = np.arange(5000, dtype=np.uint16)
    write_token_file(tmp_path / "a.bin", tokens, layout=layout)
    file = inspect_token_file(tmp_path / "a.bin")
    assert (file.layout, file.num_tokens) == (layout, 5000)
    with TokenReader(file, mmap=mmap) as reader:
        assert (reader.tokens is None) == (mmap is False)
        np.testing.assert_array_equal(reader.read(17, 100), tokens[17:117])
        wide = np.zeros(64, dtype=np.int64)
        reader.read_into(4936, wide)
        np.testing.assert_array_equal(wide, tokens[4936:])
        np.testing.assert_array_equal(np.concatenate(list(iter_blocks(reader, 999))), tokens)
        with pytest.raises(DataError, match="asked of"):
            reader.read(4999, 2)


def test_reader_travels_to_another_process(tmp_path: Path) -> None:
    write_token_file(tmp_path / "a.bin", np.arange(10))
    for mmap in (True, False):
        reader = pickle.loads(pickle.dumps(TokenReader(inspect_token_file(tmp_path / "a.bin"), mmap=mmap)))
        assert reader.read(2, 3).tolist() == [2, 3, 4]


def test_failing_mmap_falls_back_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_token_file(tmp_path / "a.bin", np.arange(10))

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise OSError(19, "No such device")

    monkeypatch.setattr(watched_file.mmap, "mmap", refuse)
    reader = TokenReader(inspect_token_file(tmp_path / "a.bin"))
    assert reader.read(0, 3).tolist() == [0, 1, 2]
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    with pytest.raises(DataError, match="cannot memory-map"):
        TokenReader(inspect_token_file(tmp_path / "a.bin"), mmap=True)


def test_empty_files(tmp_path: Path) -> None:
    write_token_file(tmp_path / "a.bin", np.zeros(0, dtype=np.uint16))
    (tmp_path / "raw.bin").touch()
    for name in ("a.bin", "raw.bin"):
        file = inspect_token_file(tmp_path / name)
        assert file.num_tokens == 0
        assert len(TokenReader(file).read(0, 0)) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(278895051, 1, 5, 2) + b"\0" * 8, "5 tokens"),  # too short
        (header(278895051, 1, 5, 2) + b"\0" * 12, "5 tokens"),  # too long
        (header(278895051, 1, 0, 2) + b"\0" * 12, "0 tokens"),  # NeMo's tool after a kill
        (header(278895051, 1, -1, 2), "-1 tokens"),
        (header(278895051, 2, 0, 2), "version 2"),
        (header(278895051, 1, 0, 3), "3 bytes per token"),
        (header(20240520, 1, 5, 0) + b"\0" * 8, "5 tokens"),
        (header(278895051, 1, 5, 2)[:600], "inside its header"),
        (header(278895050, 1, 5, 2) + b"\0" * 10, "magic"),  # one bit of the magic was hit
        (b"abc", "whole number"),
    ],
)
def test_damage_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.bin").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        inspect_token_file(tmp_path / "bad.bin")
    assert "bad.bin" in caught.value.message


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.bin"):
        inspect_token_file(tmp_path / "nowhere.bin")


def test_raw_dtype_is_for_headerless_files_only(tmp_path: Path) -> None:
    np.array([1, 2, 3], dtype="<u4").tofile(tmp_path / "raw.bin")
    assert inspect_token_file(tmp_path / "raw.bin").num_tokens == 6
    assert inspect_token_file(tmp_path / "raw.bin", raw_dtype="uint32").num_tokens == 3
    write_token_file(tmp_path / "a.bin", np.arange(4), dtype="uint16")
    assert inspect_token_file(tmp_path / "a.bin", raw_dtype="uint32").num_tokens == 4
    with pytest.raises(DataError, match="float32"):
        inspect_token_file(tmp_path / "raw.bin", raw_dtype="float32")


def test_index_is_checked_before_it_is_trusted(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_token_file(path, np.array([9, 1, 9, 2, 2]), starts=np.array([0, 2]))
    reader = TokenReader(inspect_token_file(path))
    positions = read_bos_index(path, 5)
    assert positions is not None
    assert positions.dtype == np.int32 and positions.tolist() == [0, 2]
    assert bos_index_fits(reader, positions, 9) and not bos_index_fits(reader, positions + 1, 9)
    for wrong in ([1024, 1032], [0, 5], [2, 2], [2, 0], [-1, 3]):
        np.array(wrong, dtype="<i4").tofile(bos_index_path(path))
        with pytest.raises(DataError, match=r"a\.bos\.idx"):
            read_bos_index(path, 5)
    bos_index_path(path).write_bytes(b"\0\0\0")
    with pytest.raises(DataError, match="int32"):
        read_bos_index(path, 5)
    bos_index_path(path).unlink()
    assert read_bos_index(path, 5) is None


def test_writer_shows_nothing_until_closed_and_continues_from_a_sync(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    first = ShardWriter(path, dtype=np.dtype("uint16"))
    first.write(np.array([7, 1, 7], dtype=np.uint16), np.array([0, 2]))
    synced = first.sync()
    assert synced == (3, 2) and not path.exists()
    first.write(np.array([5, 5, 5], dtype=np.uint16), np.array([1]))  # after the sync: to be forgotten
    first.sync()
    del first  # as a killed process leaves it
    second = ShardWriter(path, dtype=np.dtype("uint16"), synced=synced)
    second.write(np.array([2, 7], dtype=np.uint16), np.array([1]))
    facts = second.close()
    assert (facts.num_tokens, facts.num_documents) == (5, 3)
    assert TokenReader(inspect_token_file(path)).read(0, 5).tolist() == [7, 1, 7, 2, 7]
    assert np.fromfile(bos_index_path(path), dtype="<i4").tolist() == [0, 2, 4]


def test_abandoned_writer_leaves_only_what_was_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    writer = ShardWriter(path, dtype=np.dtype("uint16"))
    writer.write(np.arange(10, dtype=np.uint16), np.array([0, 5]))
    writer.abandon(synced=(4, 1))
    assert (tmp_path / "a.bin.automodel.tmp").stat().st_size == 1024 + 8
    assert (tmp_path / "a.bos.idx.automodel.tmp").stat().st_size == 4
    ShardWriter(path, dtype=np.dtype("uint16")).abandon()
    assert list(tmp_path.iterdir()) == []
