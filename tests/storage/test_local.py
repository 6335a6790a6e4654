"""The local disk as a store does what a bucket does."""

import pytest

from automodel_cli.errors import AutomodelError, DataError
from automodel_cli.storage.opening import open_store
from automodel_cli.storage.store import ObjectChanged, ObjectExists, ObjectMissing


def test_as_a_bucket(tmp_path):
    base = f"file://{tmp_path}"
    store = open_store(base)
    info = store.put(f"{base}/a/x", b"hello", if_absent=True)
    assert store.info(f"{base}/a/x") == info and info.size == 5
    with pytest.raises(ObjectExists):
        store.put(f"{base}/a/x", b"two", if_absent=True)
    assert store.read_ranges(f"{base}/a/x", [(0, 2), (4, 9)]) == [b"he", b"o"]
    store.upload(f"{base}/b", tmp_path / "a" / "x", xxh3="")
    store.download(f"{base}/b", tmp_path / "c")
    assert [found.url for found in store.list_all(base)] == [f"{base}/a/x", f"{base}/b", f"{base}/c"]
    with pytest.raises(DataError, match="hash has changed"):
        store.upload(f"{base}/d", tmp_path / "c", xxh3="xxh3:0000000000000000")
    store.put(f"{base}/a/x", b"other!", replaces=info)
    with pytest.raises(ObjectChanged):
        store.read(f"{base}/a/x", etag=info.etag)
    store.delete([f"{base}/a/x", f"{base}/a/x"])
    assert store.info(f"{base}/a/x") is None
    with pytest.raises(ObjectMissing):
        store.read(f"{base}/a/x")
    with pytest.raises(AutomodelError):
        store.put(f"{base}/b/below-a-file", b"")
    assert not list(tmp_path.rglob("*.tmp"))
