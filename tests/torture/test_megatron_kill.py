"""The full fault counts of preprocess megatron: ``make torture``.

SIGKILL at 30 instants spread over reading, writing, publishing, dividing and the manifest, in four variants of a run,
each followed by the same command.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
from tests.promises.megatron_runs import VARIANTS, check_interrupted, content, preprocess, write_input
from tests.promises.preprocess_runs import check_not_sound

from automodel_cli.config.schema.preprocess import VerifyConfig
from automodel_cli.recipes.preprocess import verify

pytestmark = pytest.mark.torture

# Class of instants -> the points it is made of and how many instants each of them gets.
STRATA = {
    "read": {"read": 5},
    "write": {"write": 7},
    "publish": {"rename": 5, "fsync": 3, "journal": 2, "unlink": 2},
    "divide": {"divide": 2},
    "manifest": {"manifest": 4},
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, dict]:
    """The input, what each variant makes of it, and how often each passes each point."""
    folder = tmp_path_factory.mktemp("undisturbed")
    data = write_input(folder)
    whole, counts = {}, {}
    for name, options in VARIANTS.items():
        done = preprocess(data, folder / name, *options, point="count")
        assert done.returncode == 0, done.stderr
        whole[name] = content(folder / name)
        counts[name] = json.loads(done.stderr.split("COUNTS ")[1].splitlines()[0])
    return data, whole, counts


def instants(counts: dict) -> list[tuple[str, str, str, int]]:
    """(class, variant, point, n-th call): variants in turn, calls evenly from the first to the last."""
    chosen = []
    for stratum, points in STRATA.items():
        for point, wanted in points.items():
            names = [name for name in VARIANTS if counts[name][point]]
            for k in range(wanted):
                variant = names[(k + len(chosen)) % len(names)]
                calls = counts[variant][point]
                chosen.append((stratum, variant, point, 1 + round(k * (calls - 1) / max(1, wanted - 1))))
    return chosen


def test_sigkill_at_30_instants(undisturbed: tuple[Path, dict, dict], tmp_path: Path) -> None:
    data, whole, counts = undisturbed
    chosen = instants(counts)
    assert len(chosen) == 30
    identical: Counter[str] = Counter()
    for k, (stratum, variant, point, number) in enumerate(chosen):
        out = tmp_path / str(k)
        options = VARIANTS[variant]
        killed = preprocess(data, out, *options, point=point, number=number)
        assert killed.returncode == -signal.SIGKILL, (variant, point, number, killed.stderr)
        check_interrupted(out, whole[variant])
        check_not_sound(out)
        again = preprocess(data, out, *options)
        assert again.returncode == 0, (variant, point, number, again.stderr)
        assert content(out) == whole[variant], (variant, point, number)
        report = verify.run(VerifyConfig(path=str(out), documents=0), progress=lambda *_: None)
        assert report.problems == []
        identical[stratum] += 1
        shutil.rmtree(out)
    print(f"\nSIGKILL during preprocess megatron, then the same command: {identical.total()} of 30 byte-identical")
    for stratum, count in identical.items():
        print(f"  {stratum:9s} {'#' * count} {count}")
