"""Files that lie are answered with a value or with an error of a few lines: no traceback, no hang, bounded memory.

Some 170 crafted files, drawn from every change of every key of every file; ``make torture`` runs them all.
"""

import pytest
from tests.effort import in_a_push
from tests.promises.crafted_files import READERS, drawn, make_place, verdicts

DRAWN = in_a_push(6, of=30)
"""Cases of each file."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("crafted") / "place")


@pytest.mark.parametrize("pattern", READERS)
def test_crafted_files_are_answered(place, pattern):
    chosen = drawn(place, pattern, DRAWN)
    faults = [str(verdict) for verdict in verdicts(place, chosen) if verdict.fault]
    assert chosen and not faults, "\n".join(faults)


@pytest.mark.torture
@pytest.mark.parametrize("pattern", READERS)
def test_every_crafted_file_is_answered(place, pattern):
    ran = list(verdicts(place, drawn(place, pattern, 10**9)))
    faults = [str(verdict) for verdict in ran if verdict.fault]
    print(f"{pattern}: {len(ran)} crafted files, {len(faults)} faults")
    assert not faults, "\n".join(faults)
