"""What a race says and how it ends, with rows in the place of trainings: verdicts, exit codes, time, going on."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import yaml
from tests.assembly.sweeps.test_plan import BASE

from automodel_cli.cli.app import run
from automodel_cli.files import exclusive_lock
from automodel_cli.recipes import race
from automodel_cli.scaling.results import FORMAT, ResultRow, append_row


@pytest.fixture
def files(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(BASE))
    return tmp_path


@pytest.fixture
def trained(monkeypatch):
    """Sets what runs end with: ``results(name, seed)`` gives the fields of a row. Counts the pairs that were made."""
    made = SimpleNamespace(results=lambda name, seed: {"val_bpb": 1.0}, pairs=0, interrupted=False, seconds=1.0)

    class Made:
        def __init__(self, folder, cfg, launch, reporter):
            self.folder, self.interrupted = folder, False

        def make(self, pair):
            done = race.rows_so_far(self.folder)
            if all(one.id in done for one in pair):
                yield from (done[one.id] for one in pair)
                return
            made.pairs += 1
            self.interrupted = made.interrupted
            for one in pair if not made.interrupted else ():
                fields = {"status": "finished", "wall_s": made.seconds, **made.results(one.id[0], one.seed)}
                append_row(self.folder, row := ResultRow(format=FORMAT, id=one.id, **fields))
                yield row

    monkeypatch.setattr(race, "Runner", Made)
    return made


def noisy(gain: float):
    """B's gain over A, with noise of a tenth of it."""
    return lambda name, seed: {"val_bpb": 2 * (1 - (name == "b") * gain * (1 + 0.1 * (-1) ** seed))}


def raced(folder, *words) -> int:
    return run(["race", str(folder / "a.yaml"), str(folder / "b.yaml"), "--output-dir", str(folder / "race"), *words])


@pytest.mark.parametrize(("gain", "code", "verdict"), [(0.01, 0, "better"), (-0.01, 1, "worse")])
def test_a_verdict_ends_it_and_is_the_exit_code(files, trained, capsys, gain, code, verdict):
    trained.results = noisy(gain)
    assert raced(files, "--json") == code
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["pairs"]) == (verdict, trained.pairs) and 2 < trained.pairs < 8
    low, high = found["interval"]
    assert low < found["gain"] < high and (low > 0 if gain > 0 else high < 0)
    assert found["gain"] == pytest.approx(gain, rel=0.1)


def test_no_difference_is_3_once_it_cannot_matter_or_with_the_last_pair(files, trained, capsys):
    assert raced(files, "--json") == 3  # differences of nothing at all are within any margin
    assert json.loads(capsys.readouterr().out)["pairs"] == 3
    trained.results, trained.pairs = noisy(0.01), 0
    assert raced(files, "--seeds", "2", "--output-dir", str(files / "short")) == 3
    assert trained.pairs == 2
    trained.results = lambda name, seed: {"val_bpb": 2.0 + 0.1 * (name == "b") * (-1) ** seed}
    trained.pairs = 0
    assert raced(files, "--output-dir", str(files / "long")) == 3
    assert trained.pairs == race.MOST_PAIRS


def test_of_scores_more_is_better(files, trained):
    trained.results = lambda name, seed: {"core": 0.2 + 0.01 * (name == "b") + 0.001 * seed}
    assert raced(files, "--metric", "core") == 0


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"status": "failed", "error": "out of memory"}, "failed: out of memory"),
        ({"val_loss": 2.0}, "has no val_bpb"),
    ],
)
def test_a_run_without_a_result_is_no_verdict(files, trained, capsys, fields, says):
    trained.results = lambda name, seed: fields if name == "b" else {"val_bpb": 1.0}
    assert raced(files) == 4
    assert says in capsys.readouterr().err


def test_shares_of_nothing_are_no_verdict(files, trained, capsys):
    trained.results = lambda name, seed: {"core": 0.0 if name == "a" else 0.1}
    assert raced(files, "--metric", "core") == 4
    assert "is 0, and gains are shares of it" in capsys.readouterr().err


def test_no_error_looks_like_a_verdict(files, trained, capsys, monkeypatch):
    (files / "race").mkdir()
    with exclusive_lock(files / "race/.lock", busy="never"):
        assert raced(files) == 4
    assert "another process works on the race" in capsys.readouterr().err

    def full(*_):
        raise OSError(28, "No space left on device")

    trained.results = full
    assert raced(files) == 4
    trained.results = lambda name, seed: 1 // 0
    assert raced(files) == 4
    assert "this is a bug" in capsys.readouterr().err
    assert raced(files, "--set", "nonsense.key=1") == 2
    assert raced(files, "--set", "rng.seed=1") == 2
    assert "rng.seed is changed in all runs (set), and varied" in capsys.readouterr().err
    trained.results, trained.interrupted = noisy(0.01), True
    assert raced(files, "--json") == 75
    said = json.loads(capsys.readouterr().out)
    assert (said["verdict"], said["gain"], said["pairs"]) == (None, None, 0)


def test_it_goes_on_with_the_pairs_that_are_there(files, trained):
    trained.results = noisy(0.01)
    assert raced(files, "--seeds", "2") == 3
    assert raced(files) == 0
    assert 2 < trained.pairs < 8  # seeds 0 and 1 were not made again
    before = trained.pairs
    assert raced(files) == 0 and trained.pairs == before


def test_no_pair_begins_that_would_not_end_in_time(files, trained, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(race.time, "monotonic", lambda: now[0])

    def results(name, seed):
        now[0] += 60.0
        return {"val_bpb": 2.0 + 0.1 * (name == "b") * (-1) ** seed}

    trained.results, trained.seconds = results, 60.0
    assert raced(files, "--minutes", "7") == 3
    assert trained.pairs == 3  # of two minutes each; the fourth would end after eight
    assert raced(files, "--minutes", "1") == 3
    assert trained.pairs == 3  # an earlier call knows how long one takes
    assert raced(files, "--minutes", "2") == 3 and trained.pairs == 4
    assert raced(files, "--minutes", "1", "--output-dir", str(files / "new")) == 3
    assert trained.pairs == 5  # one at least
