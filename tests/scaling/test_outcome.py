"""What a run came to, from its log: scores at the end, time without compilation and evaluation."""

from __future__ import annotations

import pytest

from automodel_cli.errors import DataError
from automodel_cli.metrics.log import METRICS_NAME, encode_record
from automodel_cli.scaling.outcome import last_update, outcome


def train(step: int, tps: float, **fields):
    return {"kind": "train", "step": step, "tokens_seen": 100 * step, "tps": tps, "loss": 4.0 - step / 10, **fields}


def val(step: int, loss: float, name: str = "default"):
    return {"kind": "val", "name": name, "step": step, "loss": loss, "bits_per_byte": loss / 2}


def log(folder, *records):
    (folder / METRICS_NAME).write_bytes(b"".join(map(encode_record, records)))
    return folder


def test_scores_are_those_of_the_end(tmp_path):
    scored = [{"kind": "eval", "step": 2, "core": 0.1}, {"kind": "eval", "step": 4, "core": 0.3}]
    records = [train(1, 1.0), train(2, 50.0, mfu=0.2), val(2, 9.0), scored[0], train(4, 50.0, mfu=0.4), val(4, 3.0)]
    found = outcome(log(tmp_path, *records, val(4, 8.0, "other"), scored[1]))
    assert (found["val_loss"], found["val_bpb"], found["core"]) == (3.0, 1.5, 0.3)
    assert (found["tokens"], found["steps"]) == (400, 4)
    assert found["step_s"] == 2.0  # 100 tokens at 50 a second
    assert found["compute_s"] == 8.0  # the first, which compiled, counts as the others; validations do not
    assert found["mfu"] == pytest.approx(0.3)
    assert last_update(tmp_path) == (4, 3.6)


def test_without_core_there_is_none(tmp_path):
    assert outcome(log(tmp_path, train(1, 50.0), val(1, 3.0)))["core"] is None


def test_a_run_that_is_not_scored_at_its_end_has_no_outcome(tmp_path):
    with pytest.raises(DataError, match="no validation at its last step, 2"):
        outcome(log(tmp_path, train(1, 50.0), val(1, 3.0), train(2, 50.0)))
    with pytest.raises(DataError):
        outcome(tmp_path / "nowhere")
    assert last_update(tmp_path / "nowhere") == (0, None)
