"""Headerless token files are scored as they were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from automodel_cli.assembly.scoring.data import open_named, trained_raw_dtype, validation_sets


@pytest.mark.parametrize(
    ("trained_as", "wanted", "expected"),
    [
        ({"dataset": {"raw_dtype": "uint32"}}, None, "uint32"),
        ({"dataset": {"raw_dtype": "uint32"}}, "uint16", "uint16"),
        ({"dataset": {"raw_dtype": 7}}, None, None),
        ({}, None, None),
    ],
)
def test_the_type_that_training_was_told(trained_as: Any, wanted: Any, expected: Any) -> None:
    assert trained_raw_dtype(trained_as, wanted) == expected


def test_what_the_run_validated_on_is_read_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "val.bin"
    np.arange(3000, dtype="<u4").tofile(path)
    section = {"file_pattern": str(path), "raw_dtype": "uint32"}
    for trained_as, told in (
        ({"validation_dataset": section}, None),
        ({"validation_dataset": {"file_pattern": str(path)}}, "uint32"),
    ):
        (found,) = validation_sets(tmp_path, trained_as, 8, raw_dtype=told).values()
        assert found.num_tokens == 3000
    assert open_named(str(path), 8, raw_dtype="uint32").num_tokens == 3000
