"""A user's data set whose own state torchdata brings out of a worker process, where torchdata is installed."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import pytest
from tests.data.test_loader import Stateful

from automodel_cli.data.loader import TorchLoader

pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")


def loader(dataset: Any, workers: int = 1) -> TorchLoader:
    return TorchLoader(dataset, global_batch_size=6, local_batch_size=2, num_epochs=3, num_workers=workers)


def firsts(updates: Any) -> list[int]:
    return [int(row[0]) for update in updates for batch in update for row in batch.input_ids]


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_state_in_a_worker_resumes_without_reading_again(stop: int, caplog: pytest.LogCaptureFixture) -> None:
    whole = firsts(loader(Stateful(20)))
    first = loader(Stateful(20))
    assert first.per_rank_state
    head = firsts(islice(first, stop))
    state = json.loads(json.dumps(first.state_dict()))
    assert state["stream"]["num_workers"] == 1
    second = loader(Stateful(20))
    second.load_state_dict(state)
    assert second.state_dict() == state
    assert head + firsts(second) == whole
    assert not caplog.records


def test_without_workers_it_is_read_again(caplog: pytest.LogCaptureFixture) -> None:
    first = loader(Stateful(20))
    head = firsts(islice(first, 2))
    second = loader(Stateful(20), workers=0)
    second.load_state_dict(first.state_dict())
    assert head + firsts(second) == firsts(loader(Stateful(20)))
    assert "reading 12 items again" in caplog.text
