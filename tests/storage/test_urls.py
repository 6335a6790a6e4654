"""Spelling of URLs: parts, joining, and what is refused without being repeated."""

import pytest

from automodel_cli.errors import ConfigError
from automodel_cli.storage.urls import (
    is_remote,
    is_url,
    join_url,
    local_path,
    name_of,
    parent_url,
    relative_to,
    split_url,
)


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("s3://bucket/a/b.jsonl", ("s3", "bucket", "a/b.jsonl")),
        ("S3://bucket/a/", ("s3", "bucket", "a")),
        ("gs://bucket", ("gs", "bucket", "")),
        ("az://container/x y", ("az", "container", "x y")),
        ("hf://datasets/owner/name@v1/data/x.parquet", ("hf", "datasets/owner/name@v1", "data/x.parquet")),
        ("hf://owner/name/x.txt", ("hf", "owner/name", "x.txt")),
        ("file:///tmp/x", ("file", "", "/tmp/x")),
        ("file://localhost/tmp/x", ("file", "", "/tmp/x")),
        ("s3://bucket/day=1/x*.jsonl", ("s3", "bucket", "day=1/x*.jsonl")),
    ],
)
def test_parts(url, parts):
    address = split_url(url)
    assert (address.scheme, address.place, address.key) == parts
    assert split_url(str(address)) == address


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ftp://host/x", "not a storage that automodel knows"),
        ("s3a://bucket/x", "write s3://"),
        ("s3:///x", "name of a bucket"),
        ("hf://datasets/owner", "owner and name"),
        ("s3://bucket/a//b", "empty part"),
        ("s3://bucket/a/../b", "empty part"),
        ("s3://bucket/a\x1b[2J", "control characters"),
        ("file://host/x", "absolute path"),
    ],
)
def test_what_is_refused(url, expected):
    with pytest.raises(ConfigError) as refused:
        split_url(url)
    assert expected in str(refused.value)
    assert "\x1b" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA123:sekret@bucket/x",
        "s3://bucket/x?X-Amz-Signature=sekret",
        "az://container/x?sv=2022&sig=sekret",
        "gs://bucket/x?X-Goog-Signature=sekret",
    ],
)
def test_secrets_are_refused_and_not_repeated(url):
    with pytest.raises(ConfigError) as refused:
        split_url(url)
    assert "refused" in str(refused.value)
    assert "sekret" not in str(refused.value) and "AKIA" not in str(refused.value)


def test_names():
    assert join_url("s3://b/x/", "y", "z.bin") == "s3://b/x/y/z.bin"
    assert parent_url("s3://b/x/y") == "s3://b/x" and parent_url("s3://b/x") == "s3://b"
    assert name_of("s3://b/x/y.bin") == "y.bin" and name_of("s3://b") == "b"
    assert relative_to("s3://b/x/y/z", "s3://b/x") == "y/z"


def test_local_paths():
    assert local_path("file:///tmp/x") == "/tmp/x" and local_path("x/y") == "x/y"
    assert is_url("file:///x") and not is_remote("file:///x") and is_remote("s3://b")
    assert not is_url("C:/x") and not is_url("x*.jsonl") and not is_url(None)
