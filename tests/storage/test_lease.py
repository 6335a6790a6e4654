"""One writer at a time, also among those who die."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from automodel_cli.errors import AutomodelError
from automodel_cli.storage import lease
from automodel_cli.storage.lease import Lease
from automodel_cli.storage.opening import open_store


@pytest.fixture
def url(object_server):
    return object_server.bucket("leases") + "/.lock"


def test_held_and_given_back(url):
    with Lease(url, "a", "busy") as held:
        held.check()
        with pytest.raises(AutomodelError, match="busy: process"), Lease(url, "b", "busy"):
            pass
        held.check()
    assert open_store(url).info(url) is None


def test_the_same_owner_need_not_wait_and_others_wait_for_the_end(url, monkeypatch):
    store = open_store(url)
    dead = Lease(url, "a", "busy", seconds=1000)
    assert dead._take() is not None
    with Lease(url, "a", "busy"):
        pass
    assert dead._take() is not None
    body = json.loads(store.read(url))
    store.put(url, json.dumps({**body, "expires": time.time() - lease.SKEW_SECONDS + 20}).encode())
    with pytest.raises(AutomodelError, match="busy"), Lease(url, "b", "busy"):
        pass
    store.put(url, json.dumps({**body, "expires": time.time() - lease.SKEW_SECONDS - 1}).encode())
    with Lease(url, "b", "busy") as taken:
        taken.check()


def test_of_many_one_has_it(url):
    """Taken from one who died, too."""
    for _ in range(2):
        got = []

        def take(number, got=got):
            try:
                if (held := Lease(url, str(number), "busy")._take()) is not None:
                    got.append(held)
            except AutomodelError:
                pass

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(take, range(16)))
        assert len(got) == 1
        body = json.loads(open_store(url).read(url))
        open_store(url).put(url, json.dumps({**body, "expires": 0.0}).encode())


def test_it_is_renewed_and_lost_when_somebody_has_it(url):
    store = open_store(url)
    with Lease(url, "a", "busy", seconds=0.4) as held:
        first = json.loads(store.read(url))["expires"]
        time.sleep(1.0)
        held.check()
        assert json.loads(store.read(url))["expires"] > first
        store.put(url, b"{}")
        time.sleep(0.5)
        with pytest.raises(AutomodelError, match="was lost"):
            held.check()
    assert store.read(url) == b"{}"


def test_what_is_no_lease_is_refused(url):
    for data in (b"{", b"[]", b'{"owner": 1}'):
        open_store(url).put(url, data)
        with pytest.raises(AutomodelError, match="is not a lease"), Lease(url, "a", "busy"):
            pass
