"""Training and validation that read the same tokens are said to."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.token_files import write_megatron_file, write_token_file

from automodel_cli.data.files.overlap import notes_on_overlap
from automodel_cli.data.megatron_dataset import MegatronPretraining
from automodel_cli.data.nanogpt_dataset import NanogptDataset


def _split(folder: Path, split: str, which: str) -> MegatronPretraining:
    return MegatronPretraining(str(folder / "a"), 16, split=split, splits_to_build=which, order="stateless")


@pytest.mark.parametrize(
    ("training", "validation", "tokens"),
    [("99,1", "90,10", 900), ("90,10", "90,10", 0), ("9,1", "1,1", 4000)],
)
def test_splits_of_one_file_by_range(tmp_path: Path, training: str, validation: str, tokens: int) -> None:
    write_megatron_file(tmp_path / "a", [[[n % 50] * 100] for n in range(100)], dtype="uint16")
    notes = notes_on_overlap(
        _split(tmp_path, training, "train"), {"validation": _split(tmp_path, validation, "validation")}
    )
    assert len(notes) == bool(tokens)
    assert all(note.startswith(f"validation reads {tokens:,} tokens that training reads too") for note in notes)


@pytest.mark.parametrize("other", ["same", "link", "hard link", "copy", "another"])
def test_token_files(tmp_path: Path, other: str) -> None:
    ours, theirs = tmp_path / "a.bin", tmp_path / "b.bin"
    write_token_file(ours, np.arange(900))
    if other == "same":
        theirs = ours
    elif other == "link":
        theirs.symlink_to(ours)
    elif other == "hard link":
        theirs.hardlink_to(ours)
    elif other == "copy":
        shutil.copy(ours, theirs)
    else:
        write_token_file(theirs, np.arange(1, 901))
    notes = notes_on_overlap(NanogptDataset(ours, 8), {"validation": NanogptDataset(theirs, 8)})
    assert len(notes) == (other != "another")


def test_other_data_sets_have_nothing_to_say(tmp_path: Path) -> None:
    assert notes_on_overlap([1, 2], {"validation": [1, 2]}) == []
