"""Google's and Azure's clients against stand-ins that answer as these do; what is true of S3 is true of them.

The same against a server that somebody started: ``AUTOMODEL_TEST_OBJECTS=az://CONTAINER`` with its variables in the
environment (docs/guides/object_storage.md names the servers that were tried).
"""

import os
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.object_server import Faults

from automodel_cli.errors import AutomodelError, ConfigError
from automodel_cli.files import hash_bytes
from automodel_cli.storage import objects
from automodel_cli.storage.lease import Lease
from automodel_cli.storage.opening import open_store
from automodel_cli.storage.problems import failure_of
from automodel_cli.storage.store import ObjectChanged, ObjectExists, ObjectMissing

DATA = bytes(range(256)) * 4096  # 1 MiB
REAL = os.environ.get("AUTOMODEL_TEST_OBJECTS", "")


if REAL:

    @pytest.fixture
    def bucket():
        return f"{REAL}/automodel-{uuid.uuid4().hex}"

else:

    @pytest.fixture
    def bucket(other_object_server):
        return other_object_server.bucket("lake") + "/folder"


def test_what_is_put_is_there_and_read_by_range(bucket):
    store, url = open_store(bucket), f"{bucket}/a b/ü%20+&=.txt"
    info = store.put(url, DATA)
    assert store.info(url) == info and info.size == len(DATA) and info.etag
    assert store.list_all(bucket) == [info]  # spelled alike, whoever says it
    for start, stop in [
        (0, None),
        (100, 101),
        (5, 5),
        (len(DATA) - 3, len(DATA) + 9),
        (len(DATA), None),
        (2**30, 2**31),
    ]:
        assert store.read(url, start, stop, etag=store.list_all(bucket)[0].etag) == DATA[start:stop], (start, stop)


def test_listings_of_several_pages(bucket):
    store = open_store(bucket)
    names = [f"{folder}/{number}" for folder in ("b", "bb", "c") for number in range(4)]
    for name in names:
        store.put(f"{bucket}/{name}", name.encode())
    assert [info.url.removeprefix(f"{bucket}/") for info in store.list_all(bucket)] == sorted(names)
    assert [info.size for info in store.list_all(f"{bucket}/b")] == [3] * 4
    assert store.list_all(f"{bucket}/none") == []


def test_upload_in_parts_and_download(bucket, tmp_path):
    store, path = open_store(bucket), tmp_path / "file"
    path.write_bytes(DATA * 19 + b"end")
    info = store.upload(f"{bucket}/big", path, xxh3=hash_bytes(path.read_bytes()))
    store.download(f"{bucket}/big", tmp_path / "back", etag=info.etag)
    assert info.size == path.stat().st_size and (tmp_path / "back").read_bytes() == path.read_bytes()
    (tmp_path / "empty").write_bytes(b"")
    assert store.upload(f"{bucket}/empty", tmp_path / "empty").size == 0


def test_conditions(bucket):
    store, url = open_store(bucket), f"{bucket}/x"
    first = store.put(url, b"one", if_absent=True)
    with pytest.raises(ObjectExists):
        store.put(url, b"two", if_absent=True)
    assert store.info(url) == first
    second = store.put(url, b"two!", replaces=store.info(url))
    with pytest.raises(ObjectChanged):
        store.put(url, b"three", replaces=first)
    assert store.read(url, 0, 3, etag=second.etag) == b"two"
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda number: _created(store, f"{bucket}/lock", b"%d" % number), range(16)))
    assert sum(done) == 1 and store.read(f"{bucket}/lock") == b"%d" % done.index(True)


def _created(store, url, data):
    try:
        return bool(store.put(url, data, if_absent=True))
    except ObjectExists:
        return False


@pytest.mark.skipif(REAL.startswith("gs://"), reason="Google's emulators read whatever is there")
def test_a_replaced_object_is_not_read(bucket):
    store, url = open_store(bucket), f"{bucket}/x"
    first = store.put(url, b"one")
    store.put(url, b"two")
    with pytest.raises(ObjectChanged):
        store.read(url, etag=first.etag)


def test_a_lease(bucket):
    url = f"{bucket}/tokens/.lock"
    with Lease(url, "a", "busy") as held:
        with pytest.raises(AutomodelError, match="busy: process"), Lease(url, "b", "busy"):
            pass
        held._held = held._store.put(url, held._body(), replaces=held._held)  # as it is renewed
        held.check()
    assert open_store(url).info(url) is None


def test_what_is_not_there(bucket):
    """Names with the word token in them, too: clients that lack credentials speak of tokens."""
    store = open_store(bucket)
    assert store.info(f"{bucket}/tokens/none") is None
    store.delete([f"{bucket}/tokens/none"])
    with pytest.raises(ObjectMissing, match=f"there is no {bucket}/tokens/none"):
        store.read(f"{bucket}/tokens/none")
    scheme = bucket.partition("://")[0]
    absent = f"{scheme}://no-such-bucket"
    kind = "container" if scheme == "az" else "bucket"
    for act in (
        lambda store: store.put(f"{absent}/x", b"1", if_absent=True),
        *([] if REAL.startswith("gs://") else _LOOKS),  # fake-gcs-server says 500
    ):
        with pytest.raises(ConfigError, match=f"there is no {kind} {absent}"):
            act(open_store(absent))


_LOOKS = (
    lambda store: store.list_all(f"{store._scheme}://no-such-bucket/x"),
    lambda store: store.info(f"{store._scheme}://no-such-bucket/x"),
)


@pytest.mark.parametrize("fault", ["errors", "cuts", "lost"])
def test_passing_faults_are_outlived(other_object_server, tmp_path, fault):
    bucket, path = other_object_server.bucket("lake"), tmp_path / "file"
    store = open_store(bucket)
    path.write_bytes(DATA * 20)
    other_object_server.faults = faults = Faults(**{fault: 0.25}, most=12, seed=3)
    for number in range(5):
        store.put(f"{bucket}/{number}", DATA, if_absent=True)
        assert store.read(f"{bucket}/{number}", 1000) == DATA[1000:]
    store.upload(f"{bucket}/big", path)
    store.delete([f"{bucket}/0"])
    assert faults.count > 2
    other_object_server.faults = Faults()
    assert other_object_server.objects("lake") == {"big": path.read_bytes()} | {str(n): DATA for n in range(1, 5)}


@pytest.mark.parametrize(
    ("scheme", "environment", "said"),
    [
        ("gs", {"STORAGE_EMULATOR_HOST": "127.0.0.1:9"}, "127.0.0.1:9 is not reached"),
        ("gs", {"STORAGE_EMULATOR_HOST": "http://"}, "STORAGE_EMULATOR_HOST in the environment is not the address"),
        ("gs", {"GOOGLE_BASE_URL": "127.0.0.1"}, "GOOGLE_BASE_URL in the environment is not the address"),
        ("az", {"AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:9/lab"}, "127.0.0.1:9 is not reached"),
        ("az", {"AZURE_STORAGE_ENDPOINT": "lab"}, "AZURE_STORAGE_ENDPOINT in the environment is not the address"),
    ],
)
def test_endpoints(monkeypatch, scheme, environment, said):
    monkeypatch.setattr(objects, "_FIRST_PATIENCE_SECONDS", 0.2)
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    for name, value in {
        "AZURE_STORAGE_ACCOUNT_NAME": "lab",
        "AZURE_STORAGE_ACCOUNT_KEY": "a2V5",
        **environment,
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(AutomodelError, match=said) as refused:
        objects.open_bucket(scheme, "lake").info(f"{scheme}://lake/tokens/x")
    assert "a2V5" not in f"{refused.value} {refused.value.hint}"


def test_wrong_credentials(other_object_server, monkeypatch):
    other_object_server.faults = Faults(errors=1.0, status=403)
    bucket = other_object_server.bucket("lake")
    other_object_server.faults = Faults(errors=1.0, status=403)
    with pytest.raises(ConfigError, match="these credentials may not do that"):
        open_store(bucket).put(f"{bucket}/x", b"1")


_TOKEN = "Generic GCS error: Error performing token request: Error performing GET {} in 1ms - {}\n\nDebug source: ..."
_MACHINE = "http://169.254.169.254/computeMetadata/v1/instance/token?audience=x"
_LOGIN = "https://oauth2.googleapis.com/token"


@pytest.mark.parametrize(
    ("where", "answer", "no_credentials", "passing"),
    [
        (_MACHINE, "Server returned non-2xx status code: 404 Not Found: ", True, False),  # of another cloud's machine
        (_MACHINE, "HTTP error: error sending request", True, False),
        (_MACHINE, "Server returned non-2xx status code: 503 Service Unavailable: ", False, True),
        (_LOGIN, "Server returned non-2xx status code: 400 Bad Request: invalid_grant", True, False),
        (_LOGIN, "Server returned non-2xx status code: 500 Internal Server Error: ", False, True),
        (_LOGIN, "HTTP error: error sending request", False, True),  # after an hour, when a token ends
    ],
)
def test_tokens_that_are_not_given(where, answer, no_credentials, passing):
    failure = failure_of(OSError(_TOKEN.format(where, answer)))
    assert (failure.no_credentials, failure.passing) == (no_credentials, passing)


def test_an_empty_answer_past_the_end():
    """As Azurite's to a range that begins where the object ends."""
    error = OSError("Generic MicrosoftAzure error: Wanted range starting at 10, but object was only 10 bytes long")
    assert failure_of(error).status == 416
