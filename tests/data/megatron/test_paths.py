"""What ``paths`` may be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from automodel_cli.data.megatron.paths import read_paths, split_name
from automodel_cli.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Fifteen pairs of (empty) files, numbered as the guide's, and things that are none of them."""
    for number in range(12):
        for suffix in ("bin", "idx"):
            (tmp_path / f"data_{number}_text_document.{suffix}").touch()
    (tmp_path / "data_0_text_document.manifest.json").touch()
    (tmp_path / "data_0_text_document").mkdir()  # where megatron-core leaves its cache
    return tmp_path


@pytest.mark.parametrize("tail", ["*_text_document*", "*_text_document", "*.bin", "*"])
def test_a_glob_is_every_prefix_sorted_as_text(folder: Path, tail: str) -> None:
    blend = read_paths(f"{folder}/data_{tail}", "train")
    order = [0, 10, 11, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert blend.prefixes == tuple(f"{folder}/data_{number}_text_document" for number in order)
    assert blend.weights is None
    assert not blend.own_files


def test_a_folder_is_every_prefix_in_it(folder: Path) -> None:
    assert read_paths(str(folder), "train") == read_paths(f"{folder}/*", "train")


@pytest.mark.parametrize("suffix", ["", ".bin", ".idx"])
def test_one_prefix(suffix: str) -> None:
    assert read_paths(f"a/b{suffix}", "valid").prefixes == ("a/b",)
    assert read_paths([f"a/b{suffix}"], "valid").prefixes == ("a/b",)


def test_lists() -> None:
    assert read_paths(["b", " a "], "train").prefixes == ("b", "a")
    assert read_paths(["b", "a"], "train").weights is None
    odd = read_paths(["30", "a", "70"], "train")  # no pairs, so all are prefixes, as in megatron-core
    assert (odd.prefixes, odd.weights) == (("30", "a", "70"), None)


@pytest.mark.parametrize("paths", [["30", "a", "70", "b"], [30, "a", 70.0, "b"], ("3e1", "a", "70", "b")])
def test_weights_and_prefixes_in_turn(paths: Any) -> None:
    blend = read_paths(paths, "train")
    assert blend.prefixes == ("a", "b")
    assert blend.weights == (30.0, 70.0)


def test_a_list_for_each_split(tmp_path: Path) -> None:
    paths = {"train": ["1", "a", "2", "b"], "dev": "c", "test": None}
    assert read_paths(paths, "train").weights == (1.0, 2.0)
    valid = read_paths(paths, "valid")
    assert valid.prefixes == ("c",)
    assert valid.own_files
    with pytest.raises(ConfigError, match="nothing for the test split"):
        read_paths(paths, "test")
    file = tmp_path / "blend.json"
    file.write_text(json.dumps(paths))
    assert read_paths(str(file), "valid") == valid
    file.write_text(json.dumps(["x", "y"]))
    assert read_paths(file, "train").prefixes == ("x", "y")


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["30", "a", "b", "c"], "mixes weighted and unweighted prefixes: 'b'"),
        ([], r"is \[\]"),
        (None, "is None"),
        ({"tran": "a"}, "'tran' is not a split"),
        ([1, 2], "where a prefix is expected"),
    ],
)
def test_what_is_refused(paths: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_paths(paths, "train")


def test_nothing_matches(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match=r"no \.bin and \.idx files match") as caught:
        read_paths(f"{folder}/processed_*", "train")
    assert "data_0_text_document.idx" in str(caught.value.hint)
    with pytest.raises(DataError, match="is not valid JSON"):
        bad = tmp_path / "bad.json"
        bad.write_text("[")
        read_paths(bad, "train")
    with pytest.raises(DataError, match="does not exist"):
        read_paths(tmp_path / "absent.json", "train")
    with pytest.raises(ConfigError, match="matches 12 prefixes"):
        read_paths(["1", f"{folder}/data_*", "2", "b"], "train")


def test_names_of_splits() -> None:
    assert [split_name(name) for name in ("train", "validation", "val", "valid", "test")] == [
        *("train", "valid", "valid", "valid", "test")
    ]
