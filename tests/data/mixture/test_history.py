"""A mixture that goes on from another one: cursors, the plan that remembers, and what is refused."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.data.mixture.test_dataset import RUN, T, rows_of, sizes
from tests.token_files import write_token_file

from automodel_cli.data.mixture.dataset import Mixture
from automodel_cli.data.mixture.history import shares_read, windows_read
from automodel_cli.data.nanogpt_dataset import NanogptDataset
from automodel_cli.data.token_loader import TokenLoader
from automodel_cli.errors import DataError


@pytest.fixture
def files(tmp_path: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for number, name in enumerate(("a", "b", "c"), start=1):
        path = tmp_path / f"{name}.bin"
        write_token_file(path, np.arange(50 * T + 1) + 1000 * number, dtype="uint16")
        found[name] = {"file_pattern": str(path), "weight": 1.0}
    return found


def mixture(files: dict[str, Any], **weights: float) -> Mixture:
    return Mixture({name: {**files[name], "weight": weight} for name, weight in weights.items()}, T, **RUN)


def state_at(loader: TokenLoader, sample: int) -> dict[str, Any]:
    """As a checkpoint has it."""
    return json.loads(json.dumps({**loader.state_dict(), "samples_consumed": sample}, sort_keys=True))


def resumed(dataset: Mixture, state: dict[str, Any]) -> tuple[TokenLoader, Any]:
    loader = TokenLoader(dataset, **sizes(4, 4))
    change = loader.continue_from(state)
    loader.load_state_dict(state)
    return loader, change


def windows_of(rows: np.ndarray, kind: int) -> list[int]:
    return (rows[rows[:, 0] // 1000 == kind][:, 0] % 1000 // T).tolist()


def test_each_source_goes_on_at_its_window_through_three_changes(files):
    first = mixture(files, a=3, b=1)
    _, none = resumed(mixture(files, a=3, b=1), state_at(TokenLoader(first, **sizes(4, 4)), 40))
    assert none is None
    second = mixture(files, a=1, c=1)
    loader, change = resumed(second, state_at(TokenLoader(first, **sizes(4, 4)), 40))
    assert [row[0] for row in change.rows] == ["a", "b", "c"]
    assert [row[1:] for row in change.rows] == [
        ("30", "0.75", "0.5", "goes on"),
        ("10", "0.25", "-", "is left out"),
        ("0", "-", "0.5", "is new"),
    ]
    third = mixture(files, b=1, a=1)
    loader, change = resumed(third, state_at(loader, 80))
    assert [row[0] + " " + row[-1] for row in change.rows] == ["a goes on", "c is left out", "b comes back"]
    loader, change = resumed(mixture(files, b=1, a=1), state_at(loader, 100))  # the same again: no change
    assert change is None and loader.dataset.plan() == third.plan()
    seen = [rows_of(first, 0, 40), rows_of(second, 40, 80), rows_of(loader.dataset, 80, 160)]
    for kind, name in ((1, "a"), (2, "b"), (3, "c")):
        read = [window for rows in seen for window in windows_of(rows, kind)]
        alone = rows_of(mixture(files, **{name: 1}), 0, len(read))
        assert read == windows_of(alone, kind), name
    assert third.plan()["given"] == {"a": 50, "b": 10, "c": 20} and len(third.plan()["history"]) == 2


def test_passes_are_those_that_are_read_before_and_after_a_change(files):
    state = state_at(TokenLoader(mixture(files, a=1), **sizes(4, 4)), 40)
    changed = {"max_passes": 1.0, **RUN, "max_steps": 15}
    for a, b, says in ((3, 1, "a would be read 1.1 times"), (0, 1, None), (1, 1, None)):
        now = Mixture({"a": {**files["a"], "weight": a}, "b": {**files["b"], "weight": b}}, T, **changed)
        resumed(now, state)
        with contextlib.nullcontext() if says is None else pytest.raises(DataError, match=says):
            now.check_run(60)
        assert sum(stats.windows for stats in now.source_stats()) == 60


def test_a_change_of_stages_is_one_too(files):
    whole = {name: files[name] for name in ("a", "b")}
    plain = Mixture(whole, T, **RUN)
    staged = Mixture(whole, T, stages=[{"until_step": 20}, {"weights": {"b": 1}}], **RUN)
    loader, change = resumed(staged, state_at(TokenLoader(plain, **sizes(4, 4)), 40))
    assert change is not None and (rows_of(loader.dataset, 80, 90) // 1000 == 2).all()
    assert rows_of(loader.dataset, 40, 80).tolist() == rows_of(plain, 40, 80).tolist()


def test_a_run_on_one_data_set_can_go_on_with_a_mixture_of_it(files):
    alone = NanogptDataset(files["a"]["file_pattern"], T, shuffle_files=True)
    loader, change = resumed(mixture(files, b=1, a=1), state_at(TokenLoader(alone, **sizes(4, 4)), 20))
    assert [row[0] + " " + row[-1] for row in change.rows] == ["a goes on", "b is new"]
    read = np.empty((30, T + 1), dtype=np.int64)
    alone.read_samples(np.arange(30), read)
    assert windows_of(rows_of(loader.dataset, 20, 40), 1) == windows_of(read, 1)[20:]


def test_a_name_that_means_other_data_is_refused(files):
    state = state_at(TokenLoader(mixture(files, a=1, b=1), **sizes(4, 4)), 8)
    swapped = {"a": files["b"], "b": files["a"]}
    with pytest.raises(DataError, match="source a is not what it was in the checkpoint: data differ"):
        mixture(swapped, a=1, b=1).continue_from(state["plan"], 8)


ONE = {"sources": {"a": {}}, "stages": [{"from_sample": 0, "weights": {"a": 1}}]}


@pytest.mark.parametrize(
    "damage",
    [
        {"kind": "nanogpt"},
        {"order": "other/1"},
        {"seq_len": T + 1},
        {"sources": {}},
        {"stages": []},
        {"stages": [{"from_sample": 3, "weights": {"a": 1, "b": 1}}]},
        {"stages": [{"from_sample": 0, "weights": {"a": 0, "b": 0}}]},
        {"stages": [{"from_sample": 0, "weights": {"a": float("nan"), "b": 0}}]},
        {"stages": [{"from_sample": 0, "weights": {"a": 1}}]},
        {"stages": [{"from_sample": 0, "weights": {"a": 1, "b": 1}, "ramp_from": {"a": 1, "b": 0}}]},
        {"stages": [{"from_sample": 0, "weights": {"a": 1e308, "b": 1e308}}]},
        {"stages": [{"from_sample": at, "weights": {"a": 1, "b": 1}} for at in range(1001)]},
        {"given": {"a": -1}},
        {"given": {"a": 2**63 - 1}},
        {"from_sample": 9},
        {"history": 5},
        {"from_sample": 4, "history": [{"from_sample": 5, **ONE}]},
    ],
)
def test_a_plan_that_no_mixture_can_go_on_from_differs(files, damage):
    state = state_at(TokenLoader(mixture(files, a=1, b=1), **sizes(4, 4)), 8)
    state = {**state, "plan": {**state["plan"], **damage}, "plan_hash": "xxh3:0"}
    loader = TokenLoader(mixture(files, a=1, b=2), **sizes(4, 4))
    assert loader.continue_from(state) is None
    with pytest.raises(DataError, match="other data or in another order"):
        loader.load_state_dict(state)
    if state["plan"]["kind"] == "mixture" and state["plan"]["seq_len"] == T:
        with pytest.raises(DataError, match="plan of the mixture is damaged"):
            windows_read(state["plan"], 8)


def test_without_asking_a_position_of_another_mixture_is_refused(files):
    loader = TokenLoader(mixture(files, a=1, b=2), **sizes(4, 4))
    with pytest.raises(DataError, match="other data or in another order"):
        loader.load_state_dict(state_at(TokenLoader(mixture(files, a=1, b=1), **sizes(4, 4)), 8))


def test_what_was_read_is_known_through_changes(files):
    first = mixture(files, a=3, b=1)
    loader, _ = resumed(mixture(files, a=1, c=1), state_at(TokenLoader(first, **sizes(4, 4)), 40))
    state = state_at(loader, 60)
    rows = [tuple(vars(row).values()) for row in windows_read(state["plan"], 60)]
    assert rows == [
        (0, 40, "a", 0, 30, 50),
        (0, 40, "b", 0, 10, 50),
        (40, 60, "a", 30, 40, 50),
        (40, 60, "c", 0, 10, 50),
    ]
    alone = NanogptDataset(files["a"]["file_pattern"], T)
    assert [tuple(vars(row).values()) for row in windows_read(alone.plan(), 7)] == [(0, 7, "data", 0, 7, 50)]
    assert windows_read(None, 3)[0].available is None
    odd = {**alone.plan(), "windows": "many"}
    assert windows_read(odd, 3)[0].available is None


def test_the_stages_that_were_read(files):
    first = mixture(files, a=3, b=1)
    loader, _ = resumed(mixture(files, a=1, c=1), state_at(TokenLoader(first, **sizes(4, 4)), 40))
    plan = state_at(loader, 60)["plan"]
    shares = [(one.first, one.of, one.moving) for one in shares_read(plan, 60)]
    assert shares == [(0, {"a": 0.75, "b": 0.25}, False), (40, {"a": 0.5, "c": 0.5}, False)]
    assert len(shares_read(plan, 40)) == 1  # nothing of the second yet
    assert shares_read(plan, 39) == shares_read(None, 5) == shares_read({"kind": "mixture"}, 5) == []
    stages = [{"from_sample": 0, "weights": {"a": 1.0}}, {"from_sample": 20, "weights": {"a": 2.0}}]
    staged = {**plan, "history": [], "sources": {"a": {}}, "from_sample": 10, "stages": stages, "given": {}}
    assert [one.first for one in shares_read(staged, 60)] == [10, 20] and len(shares_read(staged, 20)) == 1
