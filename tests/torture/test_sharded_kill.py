"""The full counts of saves by two ranks that are killed: ``make torture``.

SIGKILL of one rank or of both, at calls spread over writing, making durable and publishing, saving in place and in the
background; after each, LATEST is a checkpoint that loads, and the next save works.
"""

from __future__ import annotations

from collections import Counter

import pytest
from tests.distributed.ranks import run_ranks
from tests.promises import checkpoint_faults

pytestmark = pytest.mark.torture

WHO = {"one": [1], "main": [0], "all": [0, 1]}
# Rank 1 writes two files; rank 0 writes those, the documents, the manifest, and publishes.
INSTANTS = [
    *[("one", "write", number) for number in (1, 7, 30, 60)],
    *[("one", "fsync", number) for number in (1, 2)],
    *[("main", "write", number) for number in (2, 40, 65)],
    *[("main", "fsync", number) for number in (1, 3, 6, 9, 11, 13)],
    *[("main", "rename", number) for number in (1, 2, 3)],
    *[("main", "fsync_folder", number) for number in (1, 2, 3, 4, 5)],
    *[("all", "write", number) for number in (1, 20, 50)],
    *[("all", "fsync", number) for number in (1, 2)],
]


@pytest.mark.parametrize("is_async", [False, True], ids=["in-place", "in-the-background"])
def test_sigkill_in_a_save_by_two_ranks(tmp_path, is_async):
    found, missed = Counter(), []
    for number_of_run, (who, point, number) in enumerate(INSTANTS):
        run = tmp_path / str(number_of_run)
        try:
            run_ranks(2, checkpoint_faults.save_and_die, str(run), WHO[who], point, number, is_async, timeout_s=300)
            missed.append((who, point, number))
        except AssertionError as error:
            assert "ended with -9" in str(error), (who, point, number, str(error)[-2000:])
        step = checkpoint_faults.sound(run, {1, 2})
        told = [path.read_text() for path in run.glob("told_*")]
        assert all("step_00000002 was given up" in text or text == "saved" for text in told), told
        found[f"{who} killed, step {step} is the newest"] += 1
    print(f"\nSIGKILL in a save by two ranks: {sum(found.values())} of {len(INSTANTS)} left a sound run folder")
    for name, count in sorted(found.items()):
        print(f"  {name:40s} {'#' * count} {count}")
    assert not missed, f"the save ended before these instants: {missed}"
