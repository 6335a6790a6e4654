"""JSON from a disk: whatever a file holds, the answer is a value of the model or one error of two lines."""

from __future__ import annotations

import os
import tracemalloc
from typing import Any

import pytest

from automodel_cli import json_files
from automodel_cli.errors import CheckpointError, DataError
from automodel_cli.json_files import (
    Count,
    FileModel,
    FiniteFloat,
    Items,
    PlainName,
    Xxh3,
    read_bytes,
    read_yaml,
)


class _Entry(FileModel):
    name: PlainName
    bytes: Count
    xxh3: Xxh3
    share: FiniteFloat = 0.0


class _Listing(FileModel):
    files: Items[_Entry]


def _listing(**changed: Any) -> dict[str, Any]:
    return {"files": [{"name": "a/b.bin", "bytes": 3, "xxh3": "xxh3:0123456789abcdef", **changed}]}


def test_a_good_file_is_read(tmp_path):
    path = tmp_path / "m.json"
    path.write_text('{"files": [{"name": "a/b.bin", "bytes": 3, "xxh3": "xxh3:0123456789abcdef"}], "more": 1}')
    assert json_files.read_model(path, _Listing).files[0].name == "a/b.bin"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"files": NaN}', "not valid JSON"),
        (b"[" * 100_000, "nested deeper than 200"),
        (b'{"files": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[]", "the whole file"),
        (b"{}", "'files' is missing"),
        (b'{"files": {}}', "files: "),
        (b'{"files": [1]}', "files[0]: "),
    ],
)
def test_a_bad_file_is_one_error_that_names_it(tmp_path, content, words):
    path = tmp_path / "m.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m\.json") as caught:
        json_files.read_model(path, _Listing, CheckpointError)
    assert words in caught.value.message and "\n" not in caught.value.message and caught.value.hint


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("bytes", value) for value in (-1, "3", 1.5, True, None, 2**63, 10**400)),
        *(("name", value) for value in ("", "/etc/passwd", "../x", "a/../../x", "a//b", ".", "a\\b", "a\x1b[2J", 3)),
        *(("share", value) for value in (float("nan"), float("inf"), "x", True)),
        ("xxh3", "xxh3:0"),
    ],
)
def test_a_bad_value_is_found_by_place(key, value):
    with pytest.raises(DataError) as caught:
        json_files.validated(_listing(**{key: value}), _Listing, "m.json")
    assert f"files[0].{key}" in caught.value.message and "\x1b" not in caught.value.message
    assert len(caught.value.message) < 300


def test_pipes_folders_and_large_files_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"1" * 100)
    with pytest.raises(DataError, match="a pipe or device"):
        json_files.read_bytes(tmp_path / "pipe")
    with pytest.raises(DataError, match="a folder"):
        json_files.read_bytes(tmp_path)
    with pytest.raises(DataError, match="100 bytes, expected at most 99"):
        json_files.read_bytes(tmp_path / "large", max_bytes=99)
    with pytest.raises(DataError, match="does not exist"):
        json_files.read_bytes(tmp_path / "none")


class TestYaml:
    def test_plain_values(self, tmp_path):
        (tmp_path / "a.yaml").write_text("a: [1, two]\nb: {c: null}\n")
        assert read_yaml(tmp_path / "a.yaml") == {"a": [1, "two"], "b": {"c": None}}

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"a: [", "not valid YAML"),
            (b"a: \xff", "not valid YAML"),
            (b"[" * 5000, "nested deeper than 200 levels"),
            (b"".join(b" " * n + b"a:\n" for n in range(300)), "nested deeper than 200 levels"),
            (b"a: &x [1]\nb: *x\n", "the alias \\*x"),
            (b"a: 2001-99-99", "not valid YAML"),
            (b"a: " + b"9" * 5000, "not valid YAML"),
            (b"!!python/object/apply:os.system [echo]", "not valid YAML"),
        ],
    )
    def test_what_is_refused(self, tmp_path, content, said):
        (tmp_path / "a.yaml").write_bytes(content)
        with pytest.raises(DataError, match=said) as error:
            read_yaml(tmp_path / "a.yaml")
        assert "\n" not in error.value.message and "a.yaml" in error.value.message


def test_a_small_file_takes_little_memory(tmp_path):
    (tmp_path / "x").write_bytes(b"{}")
    tracemalloc.start()
    try:
        assert read_bytes(tmp_path / "x") == b"{}"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
