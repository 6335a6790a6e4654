"""preprocess megatron killed or out of disk: whole pairs or none, and the same command ends with the same bytes.

Some points; ``make torture`` has the full counts.
"""

from __future__ import annotations

import resource
import signal
import sys
from pathlib import Path

import pytest
from tests import nursery
from tests.promises.megatron_runs import (
    FAULTS,
    OPTIONS,
    VARIANTS,
    check_interrupted,
    content,
    preprocess,
    write_input,
)
from tests.promises.preprocess_runs import check_not_sound


@pytest.mark.parametrize(
    ("point", "number", "variant"),
    [
        ("write", 25, "two workers, two keys"),
        ("rename", 11, "shard tokens"),
        ("divide", 5, "shards, exact"),
        ("journal", 5, "shuffled"),
    ],
)
def test_sigkill_then_the_same_command(tmp_path: Path, point: str, number: int, variant: str) -> None:
    data = write_input(tmp_path)
    options = VARIANTS[variant]
    whole = preprocess(data, tmp_path / "whole", *options)
    assert whole.returncode == 0, whole.stderr
    killed = preprocess(data, tmp_path / "out", *options, point=point, number=number)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "out/processed_data.manifest.json").exists()
    check_interrupted(tmp_path / "out", content(tmp_path / "whole"))
    check_not_sound(tmp_path / "out")
    again = preprocess(data, tmp_path / "out", "--workers", "1", "--chunk-size", "3", *options[2:])
    assert again.returncode == 0, again.stderr
    assert "continuing the interrupted processed_data" in again.stdout
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_finished_inputs_are_not_read_again(tmp_path: Path) -> None:
    data = write_input(tmp_path)
    assert preprocess(data, tmp_path / "whole", *VARIANTS["one process"]).returncode == 0
    killed = preprocess(data, tmp_path / "out", *VARIANTS["one process"], point="read", number=100)
    assert killed.returncode == -signal.SIGKILL
    first = (tmp_path / "out/processed_data_0_text_document.bin").stat().st_mtime_ns
    again = preprocess(data, tmp_path / "out", *VARIANTS["one process"])
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "out/processed_data_0_text_document.bin").stat().st_mtime_ns == first
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_changed_input_is_not_mixed_with_what_was_read_before(tmp_path: Path) -> None:
    data = write_input(tmp_path)
    killed = preprocess(data, tmp_path / "out", *VARIANTS["one process"], point="manifest", number=3)
    assert killed.returncode == -signal.SIGKILL
    (data / "0.jsonl").touch()
    changed = preprocess(data, tmp_path / "out", *VARIANTS["one process"])
    assert changed.returncode == 2 and "identity" in changed.stderr and "--overwrite" in changed.stderr


def test_a_full_disk_is_a_clear_error_and_the_run_goes_on_later(tmp_path: Path) -> None:
    """A limit on file sizes stands for the disk."""
    data, out = write_input(tmp_path), tmp_path / "out"
    words = ["preprocess", "megatron", "--input", str(data), "-o", str(out), *OPTIONS, "--workers", "1"]
    done = nursery.run(
        [sys.executable, str(FAULTS), "none", "0", *words],
        capture_output=True,
        limits={resource.RLIMIT_FSIZE: 5000},
    )
    assert done.returncode == 1, done.stdout
    assert "no room left while writing" in done.stderr and "Traceback" not in done.stderr
    assert not (out / "processed_data.manifest.json").exists()
    assert preprocess(data, out, *VARIANTS["one process"]).returncode == 0
    assert preprocess(data, tmp_path / "whole", *VARIANTS["one process"]).returncode == 0
    assert content(out) == content(tmp_path / "whole")
