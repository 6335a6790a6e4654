"""The full fault counts of preprocessing: ``make torture``.

SIGKILL at 50 instants spread over reading, writing, renaming and the manifest, in four variants of a run, each
followed by the same command; and one flipped byte at many places of every file of a corpus.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
from tests.promises.preprocess_runs import (
    VARIANTS,
    check_interrupted,
    check_not_sound,
    content,
    preprocess,
    write_input,
)

from automodel_cli.config.schema.preprocess import VerifyConfig
from automodel_cli.recipes.preprocess import verify

pytestmark = pytest.mark.torture

# Class of instants -> the points it is made of and how many instants each of them gets.
STRATA = {
    "read": {"read": 12},
    "write": {"write": 14},
    "rename": {"rename": 6, "fsync": 3, "journal": 3},
    "manifest": {"manifest": 6, "unlink": 6},
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
    names = list(VARIANTS)
    for stratum, points in STRATA.items():
        for point, wanted in points.items():
            for k in range(wanted):
                variant = names[(k + len(chosen)) % len(names)]
                calls = counts[variant][point]
                chosen.append((stratum, variant, point, 1 + round(k * (calls - 1) / max(1, wanted - 1))))
    return chosen


def test_sigkill_at_50_instants(undisturbed: tuple[Path, dict, dict], tmp_path: Path) -> None:
    data, whole, counts = undisturbed
    chosen = instants(counts)
    assert len(chosen) == 50
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
        identical[stratum] += 1
        shutil.rmtree(out)
    print(f"\nSIGKILL during preprocessing, then the same command: {sum(identical.values())} of 50 byte-identical")
    for stratum, count in identical.items():
        print(f"  {stratum:9s} {'#' * count} {count}")


def test_every_flipped_byte_of_a_corpus_is_found_and_its_file_named(
    undisturbed: tuple[Path, dict, dict], tmp_path: Path
) -> None:
    data, _, _ = undisturbed
    rng = random.Random(5)
    flips: Counter[str] = Counter()
    for name, options in (("bin", ()), ("raw", ("--format", "raw")), ("char", ("--tokenizer", "char"))):
        corpus = tmp_path / name
        done = preprocess(data, corpus, "--num-workers", "1", *options)
        assert done.returncode == 0, done.stderr
        for path in sorted(path for path in corpus.rglob("*") if path.is_file() and path.name != ".lock"):
            whole = path.read_bytes()
            for offset in sorted({0, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(12))}):
                damaged = bytearray(whole)
                damaged[offset] ^= 1 << rng.randrange(8)
                path.write_bytes(damaged)
                report = verify.run(VerifyConfig(path=str(corpus)), progress=lambda *_: None)
                named = [problem for problem in report.problems if str(path) in problem]
                assert named, (path, offset, report.problems)
                flips[path.suffix] += 1
            path.write_bytes(whole)
        sound = verify.run(VerifyConfig(path=str(corpus)), progress=lambda *_: None)
        assert not sound.problems
    print(f"\none flipped byte in a corpus: {flips.total()} of {flips.total()} found, the file named")
    for suffix, count in flips.items():
        print(f"  {suffix:6s} {count}")
