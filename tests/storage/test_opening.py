"""Which store a URL has, and what is said where its package is missing."""

import sys

import pytest

from automodel_cli.errors import ConfigError
from automodel_cli.storage import opening
from automodel_cli.storage.opening import open_store


@pytest.fixture(autouse=True)
def fresh():
    opening._open.cache_clear()
    yield
    opening._open.cache_clear()


def test_one_store_for_a_place():
    assert open_store("file:///tmp/x") is open_store("file:///tmp/y")


@pytest.mark.parametrize(("scheme", "extra"), [("s3", "s3"), ("gs", "gcs"), ("az", "azure")])
def test_a_missing_package_is_named(monkeypatch, scheme, extra):
    monkeypatch.delitem(sys.modules, "automodel_cli.storage.objects", raising=False)
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ConfigError) as refused:
        open_store(f"{scheme}://bucket/x")
    assert f"{scheme}:// needs the package obstore" in refused.value.message
    assert refused.value.hint == f"pip install 'automodel-cli[{extra}]'"


def test_the_hub_is_only_read():
    hub = open_store("hf://datasets/owner/name/x")
    for refused in (
        lambda: hub.put("hf://datasets/owner/name/x", b""),
        lambda: hub.upload("hf://datasets/owner/name/x", "x"),
        lambda: hub.delete(["hf://datasets/owner/name/x"]),
    ):
        with pytest.raises(ConfigError, match="only read"):
            refused()
