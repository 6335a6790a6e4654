"""Headerless token files are scored as they were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from automodel_cli.assembly.scoring.data import open_named, trained_arguments, validation_sets


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
    assert trained_arguments(trained_as, raw_dtype=wanted) == ({"raw_dtype": expected} if expected else {})


def test_what_the_run_validated_on_is_read_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "val.bin"
    np.arange(3000, dtype="<u4").tofile(path)
    section = {"file_pattern": str(path), "raw_dtype": "uint32"}
    for trained_as, told in (
        ({"validation_dataset": section}, None),
        ({"validation_dataset": {"file_pattern": str(path)}}, "uint32"),
    ):
        (found,) = validation_sets(tmp_path, trained_as, 8, like={"raw_dtype": told} if told else {}).values()
        assert found.num_tokens == 3000
    assert open_named(str(path), 8, trained_as={"raw_dtype": "uint32"}).num_tokens == 3000
