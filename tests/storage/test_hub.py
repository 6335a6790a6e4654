"""Datasets of the Hub as a store, against a stand-in of its API: listings, ranges, one commit, what is not there."""

import json

import pytest
from tests.storage import hub_files
from tests.storage.hub_files import NAME, TOKEN

from automodel_cli.config.schema.preprocess import PreprocessNanogptConfig
from automodel_cli.corpus.documents.objects import find_objects
from automodel_cli.errors import AutomodelError, ConfigError
from automodel_cli.recipes.preprocess import nanogpt
from automodel_cli.storage import opening
from automodel_cli.storage.opening import open_store
from automodel_cli.storage.store import ObjectChanged, ObjectMissing

URL = f"hf://datasets/{NAME}"
ROWS = "".join(json.dumps({"text": f"page {number}"}) + "\n" for number in range(500)).encode()
FILES = {f"data/{name}.jsonl": ROWS for name in "abc"} | {"data/more/d.jsonl": ROWS[:-1], "README.md": b"# Books"}


@pytest.fixture
def hub(monkeypatch):
    with hub_files.instead_of_the_hub(monkeypatch) as server:
        opening._open.cache_clear()
        yield server
        opening._open.cache_clear()


def test_listings_and_ranges(hub):
    hub.commit(FILES)
    store = open_store(URL)
    assert [info.url for info in store.list_all(URL)] == sorted(f"{URL}/{name}" for name in FILES)
    assert [info.url for info in store.list_all(f"{URL}/data/more")] == [f"{URL}/data/more/d.jsonl"]
    info = store.info(f"{URL}/data/a.jsonl")
    assert info in store.list_all(f"{URL}/data") and (info.size, bool(info.etag)) == (len(ROWS), True)
    for start, stop in [(0, None), (3, 50), (len(ROWS) - 5, len(ROWS) + 5), (len(ROWS), None), (9, 9)]:
        assert store.read(info.url, start, stop, etag=info.etag) == ROWS[start:stop], (start, stop)
    assert store.read_ranges(info.url, [(0, 9), (100, 300)]) == [ROWS[:9], ROWS[100:300]]


def test_download(hub, tmp_path):
    hub.commit(FILES)
    open_store(URL).download(f"{URL}/data/a.jsonl", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == ROWS


def test_a_folder_is_no_object(hub):
    hub.commit(FILES)
    assert open_store(URL).info(f"{URL}/data") is None
    found = find_objects(f"{URL}/data")
    assert (found.kind, [name for name, _ in found.found]) == (
        "folder",
        ["a.jsonl", "b.jsonl", "c.jsonl", "more/d.jsonl"],
    )
    assert [name for name, _ in find_objects(f"{URL}/data/[ab].jsonl").found] == ["a.jsonl", "b.jsonl"]


@pytest.mark.parametrize("spelled", ["v1", "refs%2Fconvert%2Fparquet", "refs/convert/parquet"])
def test_revisions(hub, spelled):
    hub.commit({"x": b"main"})
    hub.commit({"x": b"other"}, "v1")
    hub.commit({"x": b"other"}, "refs/convert/parquet")
    url = f"{URL}@{spelled}"
    assert [info.url for info in open_store(url).list_all(url)] == [f"{url}/x"]
    assert open_store(url).read(f"{url}/x") == b"other" and open_store(URL).read(f"{URL}/x") == b"main"


def test_all_is_of_one_commit_and_another_process_sees_the_change(hub):
    """The branch moves while a run reads: this process goes on with what it has listed, a new one has an error."""
    hub.commit({"x": b"first", "y": b"1"})
    store = open_store(URL)
    listed = {info.url: info for info in store.list_all(URL)}
    hub.commit({"x": b"second", "y": b"1"})
    assert store.read(f"{URL}/x", etag=listed[f"{URL}/x"].etag) == b"first"
    assert not any(request.endswith("/resolve/main/x") for request in hub.requests)
    opening._open.cache_clear()
    hub_files.HfFileSystem.clear_instance_cache()
    other = open_store(URL)
    with pytest.raises(ObjectChanged, match="has changed since it was listed"):
        other.read(f"{URL}/x", etag=listed[f"{URL}/x"].etag)
    assert other.read(f"{URL}/y", etag=listed[f"{URL}/y"].etag) == b"1"


def test_tokens_from_a_dataset(hub, tmp_path):
    hub.commit(FILES)

    def make(dataset, folder):
        cfg = PreprocessNanogptConfig(
            dataset=dataset, output_dir=str(tmp_path / folder), tokenizer="byte", num_workers=1
        )
        return nanogpt.run(cfg, progress=lambda event: None, say=lambda line: None).manifest

    for name, data in FILES.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    there, here = make(f"{URL}/data/*.jsonl", "there"), make(f"{tmp_path}/in/data/*.jsonl", "here")
    assert there.body()["files"] == here.body()["files"] and there.tokens > 10_000


@pytest.mark.parametrize("url", [f"{URL}/none", f"{URL}@v9/x", "hf://datasets/me/nothing/x"])
def test_what_is_not_there(hub, url):
    hub.commit(FILES)
    assert open_store(url).info(url) is None
    with pytest.raises(ObjectMissing, match=f"there is no {url}"):
        open_store(url).read(url)


def test_a_private_dataset(hub, monkeypatch):
    hub.commit(FILES)
    hub.private = True
    assert open_store(URL).read(f"{URL}/README.md") == b"# Books"
    monkeypatch.setenv("HF_TOKEN", "hf_SomebodyElses")
    opening._open.cache_clear()
    hub_files.HfFileSystem.clear_instance_cache()
    with pytest.raises(ObjectMissing) as refused:
        open_store(URL).list_all(f"{URL}/data")
    assert "hf auth login" in refused.value.hint
    assert not {TOKEN, "hf_SomebodyElses"} & set(f"{refused.value} {refused.value.hint}".split())


def test_what_fails_once_is_asked_again_and_other_errors_are_told(hub):
    hub.commit(FILES)
    store = open_store(URL)
    info = store.info(f"{URL}/data/a.jsonl")
    hub.failing["/resolve/"] = 503
    assert store.read(info.url, 0, 10) == ROWS[:10]
    hub.failing["/resolve/"] = 403
    with pytest.raises(ConfigError, match=r"cannot read hf://datasets/me/books/data/a.jsonl"):
        store.read(info.url, 0, 10)


def test_nobody_at_the_endpoint(hub, monkeypatch):
    monkeypatch.setattr(hub_files.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(AutomodelError, match=r"cannot list hf://datasets/me/books") as failed:
        open_store(URL).list_all(URL)
    assert "network" in failed.value.hint
