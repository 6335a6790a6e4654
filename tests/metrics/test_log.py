"""The console line, the file's format, its repair after a kill, and the rewind of a resumed run."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from automodel_cli.errors import AutomodelError, DataError
from automodel_cli.metrics import log_file
from automodel_cli.metrics.lines import CLASSIC
from automodel_cli.metrics.log import MetricsLog
from automodel_cli.metrics.log_file import (
    METRICS_NAME,
    SUPERSEDED_NAME,
    AppendFile,
    LinesChecked,
    check_lines,
    decode_line,
    encode_record,
    metrics_path,
    repair_tail,
    rewind,
)

SEED_RECORD = {
    "step": 1,
    "epoch": 0,
    "loss": 10.9521,
    "grad_norm": 12.9375,
    "lr": 6.08e-05,
    "mem_gib": 38.39,
    "tps": 132005.57,
    "tps_per_gpu": 66002.79,
    "num_label_tokens": 524288,
}


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_steps(folder: Path, steps: range | list[int], *, start: datetime | None = None) -> None:
    times = iter((start or datetime(2025, 1, 1, tzinfo=UTC)) + timedelta(seconds=n) for n in range(10_000))
    log = MetricsLog(folder, now=lambda: next(times))
    for step in steps:
        log.train({"step": step, "loss": 10 / (step + 1)})
    log.close()


def test_eval_line_and_record(tmp_path):
    record = {"step": 8, "epoch": 0, "evaluated_tasks": 3, "core": 0.125, "core_tasks": 2, "seconds": 1.25}
    assert CLASSIC.eval(record) == "[eval] step 8 | epoch 0 | tasks 3 | core 0.1250 over 2 tasks | 1.2 s"
    assert "core" not in CLASSIC.eval({**record, "core": None})
    with_file = MetricsLog(tmp_path)
    with_file.evaluation({**record, "samples": [{"prompt": "a", "text": "b"}]})
    with_file.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    stored = json.loads(line)
    assert stored["kind"] == "eval" and stored["samples"] == [{"prompt": "a", "text": "b"}]


class TestRecord:
    def test_not_finite_numbers_survive_as_valid_json(self):
        record = {"step": 3, "loss": math.nan, "grad_norm": math.inf, "low": -math.inf, "lr": 0.1}
        line = encode_record(record)
        parsed = json.loads(line, parse_constant=lambda name: pytest.fail(f"not JSON: {name}"))
        assert parsed["loss"] is None and parsed["nonfinite"] == {
            "loss": "nan",
            "grad_norm": "inf",
            "low": "-inf",
        }
        back = decode_line(line)
        assert math.isnan(back.pop("loss"))
        assert back == {"step": 3, "grad_norm": math.inf, "low": -math.inf, "lr": 0.1}

    @pytest.mark.parametrize("line", [b"", b'{"step": 1, "lo', b"[1]", b'{"loss": 1}', b"\0\0\0", b"\xff"])
    def test_what_is_no_record_is_none(self, line):
        assert decode_line(line) is None


class TestMetricsLog:
    def test_writes_line_console_and_time(self, tmp_path):
        said: list[str] = []
        moment = datetime(2025, 1, 31, 12, 0, 0, 250_000, tzinfo=UTC)
        log = MetricsLog(tmp_path / "run", console=said.append, now=lambda: moment)
        log.train(SEED_RECORD)
        log.validation({"step": 1, "epoch": 0, "name": "default", "loss": 2.5, "tokens": 7})
        train, val = lines_of(tmp_path / "run" / METRICS_NAME)  # read before close: each line is flushed
        log.close()
        log.close()
        assert len(train.pop("xxh3")) == 16
        assert train == {"kind": "train", "time": "2025-01-31T12:00:00.250Z", **SEED_RECORD}
        assert (val["kind"], val["name"], val["loss"]) == ("val", "default", 2.5)
        assert said[0] == CLASSIC.train(SEED_RECORD) and said[1].startswith("[val] ")

    def test_other_ranks_write_nothing(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        log = MetricsLog(None)
        log.train(SEED_RECORD)
        log.close()
        assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""

    def test_without_a_run_folder_the_console_still_hears(self):
        said: list[str] = []
        MetricsLog(None, console=said.append).train(SEED_RECORD)
        assert said == [CLASSIC.train(SEED_RECORD)]

    def test_remote_gets_every_nth_step_and_each_validation(self, tmp_path):
        sent: list[tuple[str, int]] = []

        class Remote:
            closed = None

            def log(self, prefix, record):
                sent.append((prefix, record["step"]))

            def rewind(self, step):
                sent.append(step)

            def close(self, *, ok):
                self.closed = ok

        remote = Remote()
        log = MetricsLog(tmp_path, remote=remote, remote_every_steps=3)
        for step in range(1, 8):
            log.train({"step": step})
        log.validation({"step": 7})
        log.validation({"step": 7, "name": "code"})
        log.rewind(6)
        log.event("spike", {"step": 7})
        log.close(ok=False)
        assert sent == [("train", 1), ("train", 3), ("train", 6), ("val", 7), ("val_code", 7), 6]
        assert remote.closed is False

    def test_lines_survive_sigkill(self, tmp_path):
        code = (
            "import os, signal, sys\n"
            "from automodel_cli.metrics.log import MetricsLog\n"
            "log = MetricsLog(sys.argv[1])\n"
            "for step in range(1, 151): log.train({'step': step})\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
        assert done.returncode == -signal.SIGKILL
        assert [record["step"] for record in lines_of(tmp_path / METRICS_NAME)] == list(range(1, 151))


class TestFullDisk:
    def test_lines_wait_and_are_completed_when_there_is_room_again(self, tmp_path, monkeypatch):
        path = tmp_path / METRICS_NAME
        file = AppendFile(path)
        real_write = os.write
        room = [5]  # bytes

        def small_disk(descriptor: int, data: bytes) -> int:
            if room[0] <= 0:
                raise OSError(28, "No space left on device")
            written = real_write(descriptor, data[: room[0]])
            room[0] -= written
            return written

        monkeypatch.setattr(log_file.os, "write", small_disk)
        with pytest.warns(UserWarning, match="No space left"):
            file.append(encode_record({"step": 1}))
        file.append(encode_record({"step": 2}))  # warned once: silent now
        assert path.stat().st_size == 5
        room[0] = 10_000
        file.append(encode_record({"step": 3}))
        file.close()
        assert [record["step"] for record in lines_of(path)] == [1, 2, 3]

    def test_close_says_that_lines_are_missing(self, tmp_path, monkeypatch):
        file = AppendFile(tmp_path / METRICS_NAME)

        def full(descriptor: int, data: bytes) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(log_file.os, "write", full)
        with pytest.warns(UserWarning):
            file.append(b"{}\n")
        with pytest.raises(AutomodelError, match="no room left"):
            file.close()


class TestRepair:
    whole = encode_record({"step": 1}) + encode_record({"step": 2})

    @pytest.mark.parametrize("cut", range(1, len(encode_record({"step": 2}))))
    def test_every_torn_last_line(self, tmp_path, cut):
        path = tmp_path / METRICS_NAME
        path.write_bytes(self.whole[:-cut])
        write_steps(tmp_path, [5])
        steps = [record["step"] for record in lines_of(path)]
        # Only the newline missing: the record is whole and stays.
        assert steps == ([1, 2, 5] if cut == 1 else [1, 5])

    @pytest.mark.parametrize("content", [b"", b"{", b'{"step": 1}', whole])
    def test_short_files(self, tmp_path, content):
        path = tmp_path / METRICS_NAME
        path.write_bytes(content)
        repair_tail(path)
        assert path.read_bytes() in (b"", b'{"step": 1}\n', self.whole)

    def test_long_torn_line_behind_many(self, tmp_path):
        path = tmp_path / METRICS_NAME
        lines = encode_record({"step": 1, "note": "x" * 300}) * 1000
        path.write_bytes(lines + b'{"step": 2, "note": "' + b"y" * 200_000)
        repair_tail(path)
        assert path.read_bytes() == lines


class TestRewind:
    def test_moves_what_lies_past_the_step(self, tmp_path):
        write_steps(tmp_path, range(1, 11))
        before = lines_of(tmp_path / METRICS_NAME)
        assert rewind(tmp_path, 6) == 4
        assert lines_of(tmp_path / METRICS_NAME) == before[:6]
        assert lines_of(tmp_path / SUPERSEDED_NAME) == before[6:]
        write_steps(tmp_path, range(7, 11))
        assert [r["step"] for r in lines_of(tmp_path / METRICS_NAME)] == list(range(1, 11))

    def test_a_run_that_begins_keeps_nothing_of_the_one_before(self, tmp_path):
        """A validation before the first update has step 0; a resume keeps it."""
        write_steps(tmp_path, range(3))
        assert rewind(tmp_path, 1) == 1
        assert rewind(tmp_path, 0) == 2
        assert [r["step"] for r in lines_of(tmp_path / SUPERSEDED_NAME)] == [2, 0, 1]

    def test_nothing_to_move_touches_nothing(self, tmp_path):
        assert rewind(tmp_path, 5) == 0
        write_steps(tmp_path, range(1, 4))
        stamp = (tmp_path / METRICS_NAME).stat().st_ino
        assert rewind(tmp_path, 3) == 0
        assert (tmp_path / METRICS_NAME).stat().st_ino == stamp
        assert not (tmp_path / SUPERSEDED_NAME).exists()

    def test_twice_resumed_keeps_both_pasts(self, tmp_path):
        write_steps(tmp_path, range(1, 6))
        rewind(tmp_path, 3)
        write_steps(tmp_path, range(4, 6), start=datetime(2025, 1, 2, tzinfo=UTC))
        rewind(tmp_path, 2)
        assert [r["step"] for r in lines_of(tmp_path / METRICS_NAME)] == [1, 2]
        assert [r["step"] for r in lines_of(tmp_path / SUPERSEDED_NAME)] == [4, 5, 3, 4, 5]

    def test_torn_and_foreign_lines_move_too(self, tmp_path):
        path = tmp_path / METRICS_NAME
        path.write_bytes(encode_record({"step": 1}) + b"\0\0garbage\n" + b'{"step": 2, "l')
        assert rewind(tmp_path, 5) == 2
        assert path.read_bytes() == encode_record({"step": 1})
        assert (tmp_path / SUPERSEDED_NAME).read_bytes() == b'\0\0garbage\n{"step": 2, "l\n'

    @pytest.mark.parametrize("renames_before_the_kill", [0, 1])
    def test_killed_between_its_renames(self, tmp_path, monkeypatch, renames_before_the_kill):
        write_steps(tmp_path, range(1, 8))
        before = lines_of(tmp_path / METRICS_NAME)
        real_replace, left = os.replace, [renames_before_the_kill]

        def dying(source, target):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            real_replace(source, target)

        monkeypatch.setattr(os, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            rewind(tmp_path, 5)
        monkeypatch.setattr(os, "replace", real_replace)
        assert lines_of(tmp_path / METRICS_NAME) == before  # nothing lost
        rewind(tmp_path, 4)  # the resume that follows may even start earlier
        assert lines_of(tmp_path / METRICS_NAME) == before[:4]
        superseded = lines_of(tmp_path / SUPERSEDED_NAME)
        assert sorted(r["step"] for r in superseded) == [5, 6, 7]  # nothing doubled


def test_metrics_path(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        metrics_path(tmp_path)
    write_steps(tmp_path, [1])
    assert metrics_path(tmp_path) == metrics_path(tmp_path / METRICS_NAME) == tmp_path / METRICS_NAME


class TestLineHashes:
    def write(self, path, count=4):
        lines = [encode_record({"kind": "train", "step": step, "loss": 1.0 / step}) for step in range(1, count + 1)]
        path.write_bytes(b"".join(lines))
        return lines

    def test_every_flipped_bit_is_found_and_its_line_named(self, tmp_path):
        path = tmp_path / METRICS_NAME
        lines = self.write(path)
        good = path.read_bytes()
        assert check_lines(path) == LinesChecked(4, [], 0, torn=False)
        for index in range(len(good)):
            path.write_bytes(good[:index] + bytes([good[index] ^ 1 << index % 8]) + good[index + 1 :])
            found = check_lines(path)
            number = next(n for n in range(1, 5) if index < sum(map(len, lines[:n])))
            assert found.damaged and found.damaged[0] in (number, number + 1), index

    def test_lines_of_an_earlier_version_and_a_torn_last_one_are_no_damage(self, tmp_path):
        path = tmp_path / METRICS_NAME
        lines = self.write(path)
        old = [json.dumps({"kind": "train", "step": step, "loss": 9.0}).encode() + b"\n" for step in (1, 2)]
        for cut in (1, 10, len(lines[3]) - 2):
            path.write_bytes(b"".join([*old, *lines[:3], lines[3][:cut]]))
            assert check_lines(path) == LinesChecked(5, [], 2, torn=True)
        path.write_bytes(b"".join([*old, *lines])[:-1])  # the kill came before the newline
        assert check_lines(path) == LinesChecked(6, [], 2, torn=False)
        path.write_bytes(b"".join([*lines, *old]))
        assert check_lines(path).damaged == [5, 6]

    def test_readers_of_json_lines_see_one_more_key(self):
        line = encode_record({"kind": "train", "step": 3, "loss": math.nan})
        assert set(json.loads(line)) == {"kind", "step", "loss", "nonfinite", "xxh3"}
        assert "xxh3" not in decode_line(line)

    def test_a_line_without_an_end_is_not_read_whole(self, tmp_path, monkeypatch):
        monkeypatch.setattr("automodel_cli.metrics.log_file.MAX_LINE_BYTES", 100)
        path = tmp_path / METRICS_NAME
        path.write_bytes(b'{"step": 1}\n' + b"x" * 5_000 + b'\n{"step": 2}\n' + b"y" * 5_000)
        assert [len(line) for line, _ in log_file.lines_of(path, block_bytes=64)][::2] == [11, 11]
        assert check_lines(path).torn


@pytest.mark.parametrize(
    "line",
    [b'{"step": 9' + b"9" * 400 + b"}", b'{"step": -1}', b'{"step": true}', b'{"step": 1.0}', b"[" * 10**5],
)
def test_a_step_that_is_no_step_is_no_record(line):
    assert decode_line(line) is None
