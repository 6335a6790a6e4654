"""Compressed streams: what other programs' libraries wrote, in bounded steps, damage found, windows bounded."""

import bz2
import gzip
import lzma
import random
import tracemalloc
from pathlib import Path

import pytest
import zstandard

from automodel_cli.corpus.documents.compressed import likely_expansion, open_stream, stream_errors
from automodel_cli.errors import DataError

DATA = bytes(random.Random(1).choices(b"abcdefgh \n", k=300_000)) + b"run " * 100_000


def zst_frames(data: bytes) -> bytes:
    """A frame with checksum and size, one of unknown size, one that is to be skipped, an empty one, small ones."""
    whole = zstandard.ZstdCompressor(write_checksum=True).compress(data[:1000])
    streamed = zstandard.ZstdCompressor(level=19).compressobj()
    unknown = streamed.compress(data[1000:400_000]) + streamed.flush()
    skipped = b"\x53\x2a\x4d\x18\x03\0\0\0xyz"
    small = b"".join(zstandard.compress(data[k : k + 50_000]) for k in range(400_000, len(data), 50_000))
    return whole + skipped + unknown + zstandard.compress(b"") + small


def halves(compress):
    return lambda data: compress(data[:100_000]) + compress(data[100_000:])


PACKERS = {
    "gz": halves(gzip.compress),
    "bz2": halves(bz2.compress),
    "xz": lambda data: lzma.compress(data[:1000]) + bytes(8) + lzma.compress(data[1000:]),
    "zst": zst_frames,
}


@pytest.mark.parametrize("compression", PACKERS)
def test_all_of_it_and_lines(tmp_path: Path, compression: str) -> None:
    (tmp_path / "f").write_bytes(PACKERS[compression](DATA))
    with open_stream(str(tmp_path / "f"), compression) as stream:
        assert stream.read() == DATA
    with open_stream(str(tmp_path / "f"), compression) as stream:
        assert b"".join(iter(lambda: stream.readline(4000), b"")) == DATA
    assert likely_expansion(str(tmp_path / "f"), "f", compression) == pytest.approx(
        len(DATA) / (tmp_path / "f").stat().st_size, rel=0.05
    )


@pytest.mark.parametrize("compression", PACKERS)
def test_damage(tmp_path: Path, compression: str) -> None:
    whole = PACKERS[compression](DATA)
    path = tmp_path / "f"
    damaged = [whole[:-1], whole[: len(whole) // 2], whole[:7], whole + b"rubbish", b"rubbish"]
    for data in damaged:
        path.write_bytes(data)
        with (
            pytest.raises(DataError, match="f is damaged or cut off"),
            stream_errors("f"),
            open_stream(str(path), compression) as stream,
        ):
            while stream.read(1 << 20):
                pass


@pytest.mark.parametrize("compression", ["zst", "xz", "bz2", "gz"])
def test_little_that_stands_for_much_takes_little_memory(tmp_path: Path, compression: str) -> None:
    packer = {"zst": zstandard.compress, "xz": lzma.compress, "bz2": bz2.compress, "gz": gzip.compress}[compression]
    (tmp_path / "f").write_bytes(packer(bytes(24 << 20)))
    tracemalloc.start()
    with open_stream(str(tmp_path / "f"), compression, window_bytes=32 << 20) as stream:
        size = 0
        while piece := stream.read(100_000):
            size += len(piece)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size == 24 << 20 and peak < 16 << 20
    assert likely_expansion(str(tmp_path / "f"), "f", compression) > 100


def test_windows_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "f"
    wide = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    packed = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    path.write_bytes(packed.compress(DATA) + packed.flush())
    with open_stream(str(path), "zst", window_bytes=128 << 20) as stream:
        assert stream.read() == DATA
    for compression in ("zst", "xz"):
        if compression == "xz":
            path.write_bytes(lzma.compress(DATA, preset=9))
        with (
            pytest.raises(DataError, match=r"needs a window of .*64 MiB|more, 16 MiB are allowed"),
            stream_errors("f"),
            open_stream(str(path), compression, window_bytes=(64 if compression == "zst" else 16) << 20) as stream,
        ):
            stream.read()
