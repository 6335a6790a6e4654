"""Building an index killed at any instant: the next start builds the same bytes, and nothing half-made is believed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from automodel_cli.corpus.formats.megatron_writer import MegatronWriter
from automodel_cli.data.megatron_dataset import MegatronPretraining

FORK = multiprocessing.get_context("fork")
INSTANTS = [
    *[("replace", number) for number in range(1, 16)],
    *[("fsync", number) for number in range(1, 31)],
    *[("save", number) for number in range(1, 12)],
]


@pytest.fixture(scope="module")
def prefixes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three files of a few thousand tokens."""
    folder, random = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    for name in "abc":
        lengths = random.integers(0, 60, 200)
        writer = MegatronWriter(folder / name, dtype=np.dtype("<u2"))
        writer.write(random.integers(0, 900, lengths.sum()).astype("<u2"), lengths)
        writer.close()
    return [str(folder / name) for name in "abc"]


def build(prefixes: list[str], cache: Path) -> MegatronPretraining:
    weighted = [item for prefix in prefixes for item in ("1", prefix)]
    return MegatronPretraining(weighted, 16, num_train_samples=900, index_mapping_dir=cache)


def content(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.iterdir() if path.suffix != ".lock"}


def die_at(point: str, number: int, prefixes: list[str], cache: Path) -> None:
    """Build, and get SIGKILL at the ``number``-th call of ``point``."""
    owner: Any = np if point == "save" else os
    original, calls = getattr(owner, point), [0]

    def counted(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            if point == "save":
                arguments[0].write(b"half of an array")
                arguments[0].flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(owner, point, counted)
    build(prefixes, cache)


def test_killed_at_56_instants_and_built_again(prefixes: list[str], tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    expected = build(prefixes, whole).sample_offsets(np.arange(900))
    for point, number in INSTANTS:
        cache = tmp_path / f"{point}_{number}"
        child = FORK.Process(target=die_at, args=(point, number, prefixes, cache))
        child.start()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL, (point, number)
        again = build(prefixes, cache)
        np.testing.assert_array_equal(again.sample_offsets(np.arange(900)), expected)
        assert content(cache) == content(whole), (point, number)


def _rank(prefixes: list[str], cache: Path, result: Path) -> None:
    np.save(result, build(prefixes, cache).sample_offsets(np.arange(900)))


def test_ranks_that_start_together_while_one_is_killed(prefixes: list[str], tmp_path: Path) -> None:
    """The kernel drops a dead process' lock, so the others go on."""
    cache = tmp_path / "cache"
    killed = FORK.Process(target=die_at, args=("save", 5, prefixes, cache))
    results = [tmp_path / f"{rank}.npy" for rank in range(4)]
    ranks = [FORK.Process(target=_rank, args=(prefixes, cache, result)) for result in results]
    killed.start()
    time.sleep(0.05)
    for rank in ranks:
        rank.start()
    for process in (killed, *ranks):
        process.join(60)
    assert [rank.exitcode for rank in ranks] == [0] * 4
    expected = build(prefixes, tmp_path / "whole").sample_offsets(np.arange(900))
    for result in results:
        np.testing.assert_array_equal(np.load(result), expected)
    assert content(cache) == content(tmp_path / "whole")
