"""Where machines are to meet: known to be good, or refused with the reason, before torch waits in silence."""

import socket
import threading
import time

import pytest
from torch.distributed import TCPStore

from automodel_cli.launch import meeting_point
from automodel_cli.launch.meeting_point import CannotMeet, find
from automodel_cli.launch.plan import plan_launch

BY_PLACE = {"nnodes": "2", "master-addr": "localhost"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    for name in ("_NAME_S", "_POLL_S"):
        monkeypatch.setattr(meeting_point, name, 0.05)
    monkeypatch.setattr(meeting_point, "_STORE_S", 0.4)
    monkeypatch.setattr(meeting_point, "READ_TIMEOUT_S", 0.2)


@pytest.fixture
def silent():
    """The port of a program that listens and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def free():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def look(flags: dict[str, str], said: list[str] | None = None) -> str:
    return find(plan_launch(flags, processes=1), say=(said if said is not None else []).append)


def test_a_name_that_leads_nowhere(monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(CannotMeet, match=r"no machine 'nod1' .Name or service not known"):
        look({"nnodes": "2", "rdzv-endpoint": "nod1:29400"})


def test_a_port_that_another_program_has(silent, monkeypatch):
    never = threading.Event()  # torch's client waits for ever for an answer; a thread of it would outlive the test
    monkeypatch.setattr(meeting_point, "TCPStore", lambda *_, **__: never.wait())
    with pytest.raises(CannotMeet, match=f"port {silent} of 127.0.0.1 is taken.*\nname another port"):
        look({"nnodes": "2", "rdzv-endpoint": f"127.0.0.1:{silent}"})
    with pytest.raises(CannotMeet, match=f"port {silent} of this machine is taken"):
        look({**BY_PLACE, "node-rank": "0", "master-port": str(silent)})


def test_a_run_that_waits_there_is_joined():
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    assert look({"nnodes": "2", "rdzv-endpoint": f"127.0.0.1:{store.port}"}) == f"localhost:{store.port}"
    joining = {**BY_PLACE, "node-rank": "1", "master-port": str(store.port)}
    assert look(joining) == f"localhost:{store.port}"


def test_a_name_with_several_addresses_is_tried_at_each(silent, monkeypatch):
    def both(*_, **__):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, silent)) for host in ("127.0.0.9", "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    monkeypatch.setattr(meeting_point, "_is_store", lambda *_: True)
    flags = {**BY_PLACE, "master-addr": "node1", "node-rank": "1", "master-port": str(silent)}
    assert look(flags) == f"node1:{silent}"


def test_the_machine_that_is_named_keeps_the_store(free):
    """By any of its addresses: torch takes the one of its name alone for its own."""
    for host in ("127.0.0.1", "127.0.0.9", "localhost", "[::1]" if socket.has_ipv6 else "127.0.0.1"):
        assert look({"nnodes": "2", "rdzv-endpoint": f"{host}:{free}"}) == f"localhost:{free}"
    assert look({"nproc-per-node": "2"}) == "localhost:0"


def test_nobody_there_is_said_at_once_and_an_error_after_the_limit(free):
    said, started = [], time.monotonic()
    with pytest.raises(CannotMeet, match=r"nobody answered at localhost:.* .Connection refused.\nstart the same"):
        look({**BY_PLACE, "node-rank": "1", "master-port": str(free)}, said)
    assert len(said) == 1 and said[0].startswith(f"waiting for localhost:{free} (Connection refused)")
    assert time.monotonic() - started < 30
