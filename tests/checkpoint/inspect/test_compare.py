"""compare: what differs between two checkpoints, measured against torch."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from automodel_cli.checkpoint.inspect import compare


def test_what_differs_between_two_checkpoints(run, tiny):
    found = compare.diff(run / "step_00000010", run / "step_00000020")
    a, b = tiny().state_dict(), tiny(seed=1).state_dict()
    expected = {name: ((a[name] - b[name]).norm() / (a[name] - 0.1).norm()).item() for name in a}
    changed = {row["name"]: row["relative"] for row in found["changed"]}
    assert changed == pytest.approx({name: value for name, value in expected.items() if value}, rel=1e-4)
    assert list(changed.values()) == sorted(changed.values(), reverse=True)
    assert found["equal"] == len(a) - len(changed) and not (found["added"] or found["removed"])
    assert {"key": "step_scheduler.max_steps", "a": 10, "b": 20} in found["config"]
    assert {"key": "metrics.loss", "a": 0.5, "b": 0.25} in found["facts"]


def test_a_checkpoint_is_equal_to_itself(run):
    found = compare.diff(run / "step_00000010", run / "step_00000010")
    assert found["equal"] > 0
    assert not any(found[key] for key in ("added", "removed", "reshaped", "changed", "config", "facts", "unread"))


def test_tensors_that_came_went_and_changed_shape_or_type(tmp_path):
    save_file({"w": torch.ones(2), "gone": torch.ones(1), "s": torch.ones(3)}, tmp_path / "a.safetensors")
    save_file({"w": torch.ones(2).bfloat16(), "new": torch.ones(1), "s": torch.ones(4)}, tmp_path / "b.safetensors")
    found = compare.diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert [row["name"] for row in found["removed"]] == ["gone"]
    assert [row["name"] for row in found["added"]] == ["new"]
    assert found["reshaped"] == [{"name": "s", "shape": [[3], [4]]}]
    assert found["changed"] == [{"name": "w", "max_abs": 0.0, "relative": 0.0, "dtype": ["F32", "BF16"]}]


def test_values_of_torch_save_checkpoints_are_not_compared(tmp_path, tiny, save):
    plain = save(tmp_path / "a", 1, tiny())
    other = save(tmp_path / "b", 1, tiny(seed=1), save_format="torch_save")
    found = compare.diff(plain, other)
    assert found["unread"] == len(tiny().state_dict()) and not found["changed"]
