"""The store of a bucket against a real S3 server on loopback, with faults of networks; boto3 is the witness."""

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.object_server import KEYS, Faults

from automodel_cli.errors import AutomodelError, ConfigError, DataError
from automodel_cli.files import hash_bytes
from automodel_cli.storage import objects
from automodel_cli.storage.opening import open_store
from automodel_cli.storage.store import ObjectChanged, ObjectExists, ObjectInfo, ObjectMissing

DATA = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def bucket(object_server, request):
    name = "b" + hashlib.md5(request.node.name.encode()).hexdigest()[:12]
    return object_server.bucket(name)


def name(bucket):
    return bucket.removeprefix("s3://")


def test_what_is_put_is_there_and_read_by_range(bucket, object_server):
    store = open_store(bucket)
    info = store.put(f"{bucket}/a/x", DATA)
    assert object_server.objects(name(bucket)) == {"a/x": DATA}
    assert store.info(f"{bucket}/a/x") == info and info.size == len(DATA) and info.etag
    assert store.read(f"{bucket}/a/x") == DATA
    for start, stop in [
        (0, 10),
        (100, 101),
        (5, 5),
        (len(DATA) - 3, len(DATA) + 100),
        (len(DATA), None),
        (2**30, None),
    ]:
        assert store.read(f"{bucket}/a/x", start, stop) == DATA[start:stop], (start, stop)
    ranges = [(k * 1000, k * 1000 + 999) for k in range(40)]
    assert store.read_ranges(f"{bucket}/a/x", ranges, etag=info.etag) == [DATA[a:b] for a, b in ranges]


def test_listing_is_sorted_and_of_folders(bucket):
    store = open_store(bucket)
    for key in ["b/2", "b/10", "bb/1", "a"]:
        store.put(f"{bucket}/{key}", key.encode())
    assert [info.url.removeprefix(bucket + "/") for info in store.list_all(bucket)] == ["a", "b/10", "b/2", "bb/1"]
    assert [info.size for info in store.list_all(f"{bucket}/b")] == [4, 3]
    assert store.list_all(f"{bucket}/none") == []


def test_upload_and_download(bucket, object_server, tmp_path):
    store, path = open_store(bucket), tmp_path / "file"
    path.write_bytes(DATA * 19 + b"end")
    info = store.upload(f"{bucket}/big", path, xxh3=hash_bytes(path.read_bytes()))
    assert info.size == path.stat().st_size
    assert any("partNumber=3" in request for request in object_server.requests)
    assert object_server.objects(name(bucket))["big"] == path.read_bytes()
    store.download(f"{bucket}/big", tmp_path / "back", etag=info.etag)
    assert (tmp_path / "back").read_bytes() == path.read_bytes()
    (tmp_path / "empty").write_bytes(b"")
    assert store.upload(f"{bucket}/empty", tmp_path / "empty").size == 0


def test_a_file_that_changed_is_not_published(bucket, object_server, tmp_path):
    path = tmp_path / "file"
    for content in (DATA * 20, b"small"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="hash has changed"):
            open_store(bucket).upload(f"{bucket}/big", path, xxh3="xxh3:0000000000000000")
    assert object_server.objects(name(bucket)) == {}
    assert object_server.unfinished_uploads(name(bucket)) == []


def test_conditions(bucket):
    store, url = open_store(bucket), f"{bucket}/x"
    first = store.put(url, b"one", if_absent=True)
    with pytest.raises(ObjectExists):
        store.put(url, b"two", if_absent=True)
    second = store.put(url, b"two!", replaces=first)
    with pytest.raises(ObjectChanged):
        store.put(url, b"three", replaces=first)
    with pytest.raises(ObjectChanged):
        store.read(url, etag=first.etag)
    assert store.read(url, 0, 3, etag=second.etag) == b"two"


def test_of_many_who_create_one_succeeds(bucket):
    store, done = open_store(bucket), []

    def create(number):
        try:
            store.put(f"{bucket}/lock", b"%d" % number, if_absent=True)
            done.append(number)
        except ObjectExists:
            pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(create, range(16)))
    assert len(done) == 1 and store.read(f"{bucket}/lock") == b"%d" % done[0]


def test_what_is_not_there(bucket):
    store = open_store(bucket)
    assert store.info(f"{bucket}/none") is None
    with pytest.raises(ObjectMissing, match="there is no s3://"):
        store.read(f"{bucket}/none")
    with pytest.raises(ConfigError, match="there is no bucket s3://no-such"):
        open_store("s3://no-such").info("s3://no-such/x")
    for act in ("list_all", "info", "read"):
        with pytest.raises(ConfigError, match="there is no bucket s3://no-such"):
            getattr(open_store("s3://no-such"), act)("s3://no-such/x")
    store.delete([f"{bucket}/none"])


@pytest.mark.parametrize("fault", ["errors", "cuts", "lost"])
def test_passing_faults_are_outlived(bucket, object_server, tmp_path, fault):
    store, path = open_store(bucket), tmp_path / "file"
    path.write_bytes(DATA * 20)
    object_server.faults = faults = Faults(**{fault: 0.25}, most=25, seed=3)
    for number in range(10):
        store.put(f"{bucket}/{number}", DATA, if_absent=True)
        assert store.read(f"{bucket}/{number}", 1000) == DATA[1000:]
    store.upload(f"{bucket}/big", path)
    assert len(store.list_all(bucket)) == 11
    assert faults.count > 3
    object_server.faults = Faults()
    there = object_server.objects(name(bucket))
    assert there == {"big": path.read_bytes()} | {str(number): DATA for number in range(10)}


def test_a_completed_upload_whose_answer_is_lost(bucket, object_server, tmp_path):
    """The client asks again, of an upload that is no more."""
    path = tmp_path / "file"
    path.write_bytes(DATA * 17)
    object_server.faults = faults = Faults(lost=1.0, most=1)
    faults.matches = lambda method, path: "uploadId=" in object_server.requests[-1] and method == "POST"
    open_store(bucket).upload(f"{bucket}/big", path)
    assert faults.count == 1
    assert object_server.objects(name(bucket)) == {"big": path.read_bytes()}
    assert object_server.unfinished_uploads(name(bucket)) == []


def test_faults_that_do_not_pass_are_an_error_in_time(bucket, object_server, monkeypatch):
    monkeypatch.setattr(objects, "_FIRST_PATIENCE_SECONDS", 0.5)
    store = objects.open_bucket("s3", name(bucket))
    store._patience = 0.5
    object_server.faults = Faults(errors=1.0, status=503)
    with pytest.raises(AutomodelError, match=r"HTTP 503 SlowDown") as failed:
        store.read(f"{bucket}/x")
    assert "again later" in failed.value.hint


def test_forbidden_and_wrong_keys(bucket, object_server):
    object_server.faults = Faults(errors=1.0, status=403)
    with pytest.raises(ConfigError, match="these credentials may not") as refused:
        open_store(bucket).put(f"{bucket}/x", b"1")
    assert all(secret not in str(refused.value) for secret in KEYS.values() if secret != "us-east-1")


def test_no_credentials(monkeypatch, tmp_path):
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(variable, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ConfigError, match="no credentials for s3://"):
        objects.open_bucket("s3", "bucket")


def test_credentials_of_a_profile(bucket, object_server, monkeypatch, tmp_path):
    open_store(bucket).put(f"{bucket}/x", b"1")
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = k\naws_secret_access_key = s\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert objects.open_bucket("s3", name(bucket)).read(f"{bucket}/x") == b"1"


def test_nobody_at_the_endpoint(monkeypatch):
    for variable, value in (KEYS | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(objects, "_FIRST_PATIENCE_SECONDS", 0.2)
    with pytest.raises(AutomodelError, match=r"127.0.0.1:9 is not reached"):
        objects.open_bucket("s3", "bucket").info("s3://bucket/tokens/credentials")  # words that errors have too


@pytest.mark.parametrize(
    ("scheme", "environment"),
    [
        ("s3", {"AWS_ACCESS_KEY_ID": "only-half"}),
        ("az", {}),
        ("az", {"AZURE_STORAGE_ACCOUNT_NAME": "lab", "AZURE_STORAGE_ACCOUNT_KEY": "not-base-64!"}),
        ("gs", {"GOOGLE_APPLICATION_CREDENTIALS": "/nonexistent/key.json"}),
    ],
)
def test_credentials_that_are_not_whole_are_an_error_without_them(monkeypatch, scheme, environment):
    for variable in [name for name in os.environ if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(variable)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=f"no credentials for {scheme}://bucket") as refused:
        objects.open_bucket(scheme, "bucket")
    assert not any(value in f"{refused.value} {refused.value.hint}" for value in environment.values())


@pytest.mark.parametrize("address", ["127.0.0.1:9000", "localhost", "ftp://host", "http://", "http://a b"])
def test_an_endpoint_that_is_no_address(monkeypatch, address):
    for variable, value in (KEYS | {"AWS_ENDPOINT_URL": address}).items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL in the environment is not the address of a server"):
        objects.open_bucket("s3", "bucket")


def test_names_that_cannot_be_read_are_an_error_at_once(bucket, object_server):
    object_server.client().put_object(Bucket=name(bucket), Key="odd/./x", Body=b"1")
    open_store(bucket).put(f"{bucket}/plain", b"1")
    with pytest.raises(ConfigError, match="the name of an object there has an empty part"):
        open_store(bucket).list_all(f"{bucket}/odd")
    store = objects.open_bucket("s3", name(bucket))  # one that has not seen the bucket yet
    assert store.info(f"{bucket}/elsewhere/x") is None
    assert [info.url for info in store.list_all(f"{bucket}/plain")] == []


def test_threads_share_a_store(bucket):
    store = open_store(bucket)
    store.put(f"{bucket}/x", DATA)
    wrong = []

    def read(number):
        if store.read(f"{bucket}/x", number, number + 1000) != DATA[number : number + 1000]:
            wrong.append(number)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_identity_is_what_a_listing_says(bucket):
    store = open_store(bucket)
    assert store.list_all(bucket) == []
    written = store.put(f"{bucket}/x", b"1")
    assert store.list_all(bucket) == [written] == [ObjectInfo(f"{bucket}/x", 1, written.etag)]


def test_a_fork_of_a_process_that_used_it_is_an_error_and_no_hang(bucket):
    open_store(bucket).put(f"{bucket}/x", b"1")
    child = os.fork()
    if child == 0:
        try:
            open_store(bucket).read(f"{bucket}/x")
        except RuntimeError:
            os._exit(3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_objects_that_mark_folders_are_none(bucket, object_server):
    """Consoles and mounts make ``books/``, which the client calls ``books``."""
    client = object_server.client()
    for key, data in {"books/": b"", "books/part/": b"", "books/part/a": b"1", "books/empty": b""}.items():
        client.put_object(Bucket=name(bucket), Key=key, Body=data)
    expected = [f"{bucket}/books/empty", f"{bucket}/books/part/a"]
    for folder in (bucket, f"{bucket}/books"):
        assert [info.url for info in open_store(bucket).list_all(folder)] == expected
    assert [info.url for info in open_store(bucket).list_all(f"{bucket}/books/part")] == expected[1:]
