"""Megatron's files: bytes as megatron-core writes them, checks on what is read, writing that can be interrupted."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from tests.token_files import MegatronReader, write_megatron_file

from automodel_cli.corpus.formats.megatron_bin import bin_path, idx_path, inspect_prefix, token_dtype, tokens_before
from automodel_cli.corpus.formats.megatron_index import MegatronIndex
from automodel_cli.corpus.formats.megatron_writer import MegatronWriter, can_continue
from automodel_cli.errors import DataError

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "megatron"
SHARED = Path(__file__).resolve().parents[3] / "../shared/data/megatron_golden"
DOCUMENTS = [[[1, 2, 3]], [], [[4], [5, 6]], [[]]]


def _patched(tmp_path: Path, offset: int, value: bytes) -> Path:
    """A small good pair of files with some bytes of the index changed."""
    prefix = tmp_path / "x"
    write_megatron_file(prefix, DOCUMENTS, dtype="uint16")
    raw = bytearray(idx_path(prefix).read_bytes())
    raw[offset : offset + len(value)] = value
    idx_path(prefix).write_bytes(raw)
    return prefix


# ------------------------------------------------------------------------------------------- the bytes


def test_the_index_byte_by_byte(tmp_path: Path) -> None:
    file = write_megatron_file(tmp_path / "x.y", DOCUMENTS, dtype="uint16")
    expected = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 4, 5)
    expected += struct.pack("<4i", 3, 1, 2, 0)
    expected += struct.pack("<4q", 0, 6, 8, 12)
    expected += struct.pack("<5q", 0, 1, 1, 3, 4)
    assert idx_path(file.prefix).read_bytes() == expected
    assert bin_path(file.prefix).read_bytes() == struct.pack("<6H", 1, 2, 3, 4, 5, 6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.y.bin", "x.y.idx"]


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_what_megatron_core_wrote_is_read_and_written_again(name: str, tmp_path: Path) -> None:
    reader = MegatronReader(GOLDEN / name)
    reader.index.check()
    documents = [
        [sequence.tolist() for sequence in reader.document(number)] for number in range(reader.file.num_documents)
    ]
    write_megatron_file(tmp_path / name, documents, dtype=reader.file.dtype)
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"{name}{suffix}").read_bytes() == (GOLDEN / f"{name}{suffix}").read_bytes()


def test_documents_of_no_and_of_several_sequences_are_in_the_golden_files() -> None:
    reader = MegatronReader(GOLDEN / "a")
    sizes = np.diff(reader.index.document_bounds())
    assert {0, 1, 2} == set(sizes.tolist())
    assert (reader.index.lengths() == 0).any()


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is not there")
@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_reference_files(name: str, tmp_path: Path) -> None:
    reader = MegatronReader(SHARED / f"{name}_text_document")
    reader.index.check()
    tokens = reader.tokens.read(0, reader.file.num_tokens)
    writer = MegatronWriter(tmp_path / "again", dtype=reader.file.dtype)
    writer.write(tokens, reader.index.lengths())
    writer.close()
    for suffix in (".bin", ".idx"):
        written = (tmp_path / f"again{suffix}").read_bytes()
        assert written == (SHARED / f"{name}_text_document{suffix}").read_bytes()


def test_dtype_follows_megatron_not_the_largest_id() -> None:
    assert token_dtype(65_499) == np.uint16
    assert token_dtype(65_500) == np.int32
    assert token_dtype(None) == np.int32


def test_positions_of_sequences(tmp_path: Path) -> None:
    file = write_megatron_file(tmp_path / "x", DOCUMENTS, dtype="int32")
    index = MegatronIndex(file)
    assert index.locate(np.array([2, 0, 3])) == ([4, 0, 6], [2, 3, 0])
    many = np.array([2, 0, 3] * 10)  # another way through the same numbers
    assert index.locate(many) == ([4, 0, 6] * 10, [2, 3, 0] * 10)
    assert tokens_before(file, range(5)) == [0, 3, 4, 6, 6]
    assert (file.num_sequences, file.num_documents, file.num_tokens) == (4, 4, 6)


def test_a_large_index_is_mapped_and_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_megatron_file(tmp_path / "x", DOCUMENTS, dtype="int32")
    read = MegatronIndex(file)
    monkeypatch.setattr("automodel_cli.corpus.formats.megatron_index._SMALL_INDEX_BYTES", 0)
    mapped = MegatronIndex(file)
    mapped.check()
    np.testing.assert_array_equal(mapped.lengths(), read.lengths())
    np.testing.assert_array_equal(mapped.document_bounds(), read.document_bounds())


def test_an_empty_file_can_be_read(tmp_path: Path) -> None:
    file = MegatronWriter(tmp_path / "x", dtype=np.dtype("u2")).close()
    assert idx_path(file.prefix).stat().st_size == 42
    assert (file.num_sequences, file.num_documents, file.num_tokens) == (0, 0, 0)
    MegatronIndex(file).check()


def test_modes_of_multimodal_files_are_passed_over(tmp_path: Path) -> None:
    prefix = tmp_path / "x"
    write_megatron_file(prefix, DOCUMENTS, dtype="uint16")
    with idx_path(prefix).open("ab") as handle:
        handle.write(bytes(4))
    assert inspect_prefix(prefix).num_tokens == 6


# ------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"TNTIDX", "magic"),
        (9, b"\2", "version 2"),
        (17, b"\x63", "dtype code 99"),
        (17, b"\7", "not token ids"),
        (18, b"\5", "is 122 bytes long"),
        (26, b"\0", "empty document index"),
        (34 + 16, b"\2", "sequences lie in bytes 2 to"),
        (34 + 12, b"\1", "lists 7 tokens"),
        (34 + 48, b"\1", "documents run from sequence 1"),
        (34 + 48 + 32, b"\3", "to 3, sequences from 0 to 4"),
    ],
)
def test_what_the_sizes_show_is_seen_when_a_file_is_opened(
    tmp_path: Path, offset: int, value: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        inspect_prefix(_patched(tmp_path, offset, value))


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (34 + 4, b"\3", "sequence 2 .* begins at byte 8, expected 12"),
        (34 + 4, b"\xff\xff\xff\xff", "sequence 1 has length -1"),
        (34 + 16 + 16, b"\4", "sequence 2 .* begins at byte 4, expected 8"),
        (34 + 48 + 16, b"\0", "document 1 ends at sequence 0, before its beginning at 1"),
    ],
)
def test_check_finds_what_the_sizes_do_not_show(tmp_path: Path, offset: int, value: bytes, message: str) -> None:
    index = MegatronIndex(inspect_prefix(_patched(tmp_path, offset, value)))
    with pytest.raises(DataError, match=message):
        index.check()


def test_check_goes_on_over_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("index", "writer"):
        monkeypatch.setattr(f"automodel_cli.corpus.formats.megatron_{module}._AT_ONCE", 7)
    random = np.random.default_rng(0)
    lengths = random.integers(0, 9, 100)
    writer = MegatronWriter(tmp_path / "x", dtype=np.dtype("u2"))
    writer.write(np.zeros(lengths.sum(), "u2"), lengths)
    index = MegatronIndex(writer.close())
    index.check()
    np.testing.assert_array_equal(index.lengths(), lengths)
    raw = bytearray(idx_path(tmp_path / "x").read_bytes())
    raw[34 + 4 * 100 + 8 * 60] ^= 1
    idx_path(tmp_path / "x").write_bytes(raw)
    with pytest.raises(DataError, match="sequence 60"):
        MegatronIndex(inspect_prefix(tmp_path / "x")).check()


def test_cut_off_tokens_and_missing_files(tmp_path: Path) -> None:
    prefix = tmp_path / "x"
    write_megatron_file(prefix, DOCUMENTS, dtype="uint16")
    with bin_path(prefix).open("r+b") as handle:
        handle.truncate(10)
    with pytest.raises(DataError, match=r"lists 6 tokens \(12 bytes\), .* is 10 bytes long"):
        inspect_prefix(prefix)
    idx_path(prefix).unlink()
    with pytest.raises(DataError, match=r"cannot read .*x.idx: No such file") as caught:
        inspect_prefix(prefix)
    assert "its writer was stopped" in str(caught.value.hint)
    with pytest.raises(DataError, match=r"cannot read .*nothing\.bin"):
        inspect_prefix(tmp_path / "nothing")


# ------------------------------------------------------------------------------------------- writing


def test_a_document_in_pieces(tmp_path: Path) -> None:
    writer = MegatronWriter(tmp_path / "x", dtype=np.dtype("u2"))
    writer.write(np.arange(3, dtype="u2"), np.array([1, 2]))
    writer.extend(np.arange(3, 7, dtype="u2"))
    writer.extend(np.arange(7, 8, dtype="u2"))
    writer.write(np.array([9], "u2"), np.array([1]))
    writer.close()
    reader = MegatronReader(tmp_path / "x")
    assert [reader.sequence(n).tolist() for n in range(3)] == [[0], [1, 2, 3, 4, 5, 6, 7], [9]]


def test_a_writer_goes_on_where_another_was_killed(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    lengths = random.integers(0, 20, 60)
    tokens = random.integers(0, 65_000, lengths.sum()).astype("u2")
    ends = np.cumsum(lengths)

    def write(writer: MegatronWriter, first: int, stop: int) -> None:
        begin = ends[first - 1] if first else 0
        writer.write(tokens[begin : ends[stop - 1]], lengths[first:stop], np.ones(stop - first))

    whole = MegatronWriter(tmp_path / "whole", dtype=np.dtype("u2"))
    write(whole, 0, 60)
    whole.close()

    killed = MegatronWriter(tmp_path / "x", dtype=np.dtype("u2"))
    write(killed, 0, 20)
    synced = killed.sync()
    write(killed, 20, 33)
    killed.sync()  # on the disk, but not what is gone on from
    assert not idx_path(tmp_path / "x").exists()
    assert can_continue(tmp_path / "x", np.dtype("u2"), synced)

    again = MegatronWriter(tmp_path / "x", dtype=np.dtype("u2"), synced=synced)
    write(again, 20, 60)
    again.close()
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"x{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    assert not list(tmp_path.glob("*.tmp"))
    assert not can_continue(tmp_path / "x", np.dtype("u2"), synced)


def test_a_stale_index_never_stands_beside_new_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two renames: tokens without an index, which is no data set, instead of a wrong one."""
    prefix = tmp_path / "x"
    write_megatron_file(prefix, DOCUMENTS, dtype="uint16")
    writer = MegatronWriter(prefix, dtype=np.dtype("u2"))
    writer.write(np.arange(50, dtype="u2"), np.array([50]))

    def stop_at_index(temporary: Path, target: Path) -> None:
        if target == idx_path(prefix):
            raise KeyboardInterrupt
        temporary.rename(target)

    monkeypatch.setattr("automodel_cli.corpus.formats.growing_file.publish", stop_at_index)
    with pytest.raises(KeyboardInterrupt):
        writer.close()
    assert bin_path(prefix).stat().st_size == 100
    assert not idx_path(prefix).exists()


def test_giving_up_leaves_nothing_or_what_was_synced(tmp_path: Path) -> None:
    writer = MegatronWriter(tmp_path / "x", dtype=np.dtype("u2"))
    writer.write(np.arange(5, dtype="u2"), np.array([5]))
    synced = writer.sync()
    writer.write(np.arange(5, dtype="u2"), np.array([5]))
    writer.abandon(synced)
    assert can_continue(tmp_path / "x", np.dtype("u2"), synced)
    assert (tmp_path / "x.bin.automodel.tmp").stat().st_size == 10
    MegatronWriter(tmp_path / "x", dtype=np.dtype("u2"), synced=synced).abandon()
    assert not list(tmp_path.iterdir())


def test_a_sequence_too_long_for_the_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("automodel_cli.corpus.formats.megatron_writer.MAX_SEQUENCE_TOKENS", 9)
    writer = MegatronWriter(tmp_path / "x", dtype=np.dtype("u2"))
    with pytest.raises(DataError, match="a sequence of 10 tokens"):
        writer.write(np.zeros(10, "u2"), np.array([10]))
    writer.write(np.zeros(9, "u2"), np.array([9]))
    with pytest.raises(DataError, match="a sequence of 11 tokens"):
        writer.extend(np.zeros(2, "u2"))


@pytest.mark.parametrize("pointer", [3, 2**63, 10**6, 4])
def test_a_pointer_inside_that_lies(tmp_path: Path, pointer: int) -> None:
    """Of sequence 5, where a split begins: not whole, beyond the file, or before the sequence before it."""
    write_megatron_file(tmp_path / "a", [[[n] * 10] for n in range(10)], dtype="uint16")
    file = inspect_prefix(tmp_path / "a")
    with (tmp_path / "a.idx").open("r+b") as handle:
        handle.seek(file.pointers_offset + 8 * 5)
        handle.write(pointer.to_bytes(8, "little"))
    with pytest.raises(DataError, match=r"a\.idx: (sequence 5 begins at|the sequences 3, 5)"):
        tokens_before(file, (3, 5))


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    write_megatron_file(tmp_path / "a", [[[1, 2]]], dtype="uint16")
    (tmp_path / "a.idx").unlink()
    os.mkfifo(tmp_path / "a.idx")
    with pytest.raises(DataError, match="pipe"):
        inspect_prefix(tmp_path / "a")
