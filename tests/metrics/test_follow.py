"""A log followed while it is written, killed, rewound and replaced holds what the file holds, nothing else."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.effort import examples

from automodel_cli.metrics.follow import Follower, News
from automodel_cli.metrics.log_file import MAX_LINE_BYTES, METRICS_NAME, AppendFile, encode_record, rewind


def line(step: int, note: str = "") -> bytes:
    return encode_record({"kind": "train", "step": step, "loss": 1 / (step + 1), "note": note})


def in_file(path: Path) -> list[dict]:
    """What a reader of the whole file finds in its finished lines."""
    content = path.read_bytes() if path.exists() else b""
    records = [json.loads(one) for one in content[: content.rfind(b"\n") + 1].splitlines() if one]
    return [{key: value for key, value in record.items() if key != "xxh3"} for record in records]


class Reader:
    """Somebody who keeps what a follower gives."""

    def __init__(self, path: Path, block_bytes: int) -> None:
        self.follower = Follower(path, block_bytes=block_bytes)
        self.records: list[dict] = []

    def read(self) -> None:
        more = True
        while more:
            news = self.follower.read()
            if news.restarted:
                self.records.clear()
            self.records += news.records
            more = news.more


class Writer:
    """A run that logs, is killed inside a line, resumes from an earlier step, and is begun anew."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / METRICS_NAME
        self.step = self.written = 0

    def log(self) -> None:
        self.step, self.written = self.step + 1, self.written + 1
        file = AppendFile(self.path)  # which mends what a kill has left
        file.append(line(self.step, f"write {self.written}"))
        file.close()

    def tear(self) -> None:
        self.written += 1
        whole = line(self.step + 1, f"torn {self.written}")
        with self.path.open("ab") as handle:
            handle.write(whole[: 1 + self.written % (len(whole) - 1)])

    def resume(self) -> None:
        self.step = self.step // 2
        rewind(self.folder, self.step)

    def fresh(self) -> None:
        self.step = 0
        if self.path.exists():
            self.path.rename(self.folder / f"old-{self.written}")


actions = st.sampled_from(["log", "log", "log", "tear", "resume", "fresh", "read"])


@examples(60)
@given(st.lists(actions, max_size=40), st.integers(1, 600))
def test_whatever_a_run_does_to_its_file(done, block_bytes):
    with tempfile.TemporaryDirectory() as folder:
        writer, reader = Writer(Path(folder)), Reader(Path(folder, METRICS_NAME), block_bytes)
        for action in done:
            if action == "read":
                reader.read()
                assert reader.records == in_file(writer.path)
            else:
                getattr(writer, action)()
        reader.read()
        assert reader.records == in_file(writer.path)


def test_a_torn_line_is_waited_for(tmp_path):
    path, reader = tmp_path / METRICS_NAME, Reader(tmp_path / METRICS_NAME, 1 << 20)
    whole = line(1)
    path.write_bytes(whole[:-1])
    reader.read()
    assert reader.records == []
    with path.open("ab") as handle:
        handle.write(b"\n" + line(2)[:9])
    reader.read()
    assert [record["step"] for record in reader.records] == [1]


def test_a_file_that_is_not_there_yet_or_no_longer(tmp_path):
    path = tmp_path / METRICS_NAME
    follower = Follower(path)
    assert follower.read().records == [] and not follower.read().restarted
    path.write_bytes(line(1))
    assert len(follower.read().records) == 1 and follower.read().records == []
    path.unlink()
    assert follower.read().restarted
    assert not follower.read().restarted


def test_another_file_of_the_same_length_in_the_same_place(tmp_path):
    path = tmp_path / METRICS_NAME
    path.write_bytes(line(1) + line(2))
    follower = Follower(path)
    assert [record["step"] for record in follower.read().records] == [1, 2]
    with path.open("r+b") as handle:  # the same inode
        handle.write(line(3) + line(4))
    news = follower.read()
    assert news.restarted and [record["step"] for record in news.records] == [3, 4]


def test_what_is_no_record_is_counted(tmp_path):
    path = tmp_path / METRICS_NAME
    changed = line(2).replace(b'"loss": 0', b'"loss": 7')
    path.write_bytes(line(1) + changed + b"nonsense\n\n[1, 2]\n" + line(3))
    follower = Follower(path)
    assert [record["step"] for record in follower.read().records] == [1, 3]
    assert follower.skipped_lines == 3


@pytest.mark.parametrize("block_bytes", [1 << 16, MAX_LINE_BYTES])
def test_a_line_without_end_is_passed_over(tmp_path, block_bytes):
    path = tmp_path / METRICS_NAME
    path.write_bytes(line(1) + b"x" * (2 * MAX_LINE_BYTES + 5) + b"\n" + line(2))
    reader = Reader(path, block_bytes)
    reader.read()
    assert [record["step"] for record in reader.records] == [1, 2]
    assert reader.follower.skipped_lines == 1


def test_a_pipe_is_nobody_s_log(tmp_path):
    os.mkfifo(tmp_path / METRICS_NAME)
    assert Follower(tmp_path / METRICS_NAME).read().records == []


def test_a_link_out_of_the_folder_is_no_file(tmp_path):
    folder, outside = tmp_path / "run", tmp_path / "elsewhere.jsonl"
    folder.mkdir()
    outside.write_text('{"step": 1}\n')
    path = folder / "metrics.jsonl"
    path.symlink_to(outside)
    follower = Follower(path, inside=folder)
    assert follower.read() == News()
    outside.rename(folder / "kept.jsonl")
    path.unlink()
    path.symlink_to("kept.jsonl")
    assert [record["step"] for record in follower.read().records] == [1]
