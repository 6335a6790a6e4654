"""A look at the machine and port where machines are to meet, before torch waits a minute for them in silence.

Known at once: a name that leads nowhere, a port that another program has. The machine that is to keep the store may
come later than this one, so nobody there is an error only after ``read_timeout`` (of ``--rdzv-conf``).
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import TCPStore

from automodel_cli.errors import AutomodelError
from automodel_cli.launch.plan import LaunchPlan

READ_TIMEOUT_S = 60.0  # torch's
_NAME_S = 5.0  # for a name that is only just being given out
_CONNECT_S = 5.0
_STORE_S = 5.0
_POLL_S = 0.5
_ANOTHER_PORT = "name another port, the same on every machine, or end that program"


class CannotMeet(AutomodelError):
    """The machines cannot meet where the flags say."""


def find(plan: LaunchPlan, *, say: Callable[[str], None]) -> str:
    """The endpoint for torch, once it is known to be good: free on the machine that keeps the store, else answering.

    On the machine that it names it becomes ``localhost``: torch knows a machine by its name alone, not by the address
    of each of its networks.

    Raises:
        CannotMeet: the name is unknown, the port is taken, or nobody answers within ``read_timeout``.
    """
    host, _, port = plan.endpoint.rpartition(":")
    host, number = host.strip("[]"), int(port)
    if number == 0 or plan.options.get("store_type") == "file":
        return plan.endpoint
    is_host = plan.is_host if plan.is_host is not None else _said(plan.options.get("is_host"))
    addresses = _resolved(host, number)
    if is_host:
        _check_free(number)
        return plan.endpoint
    here = is_host is None and any(map(_is_here, addresses))
    if not _answers(host, number, plan, patient=not here, say=say):
        return f"localhost:{number}"
    if not _is_store(host, number):
        raise CannotMeet(f"port {number} of {host} is taken by another program", _ANOTHER_PORT)
    return f"localhost:{number}" if here else plan.endpoint


def _said(option: str | None) -> bool | None:
    return None if option is None else option.strip().lower() in ("1", "t", "true", "y", "yes")


def _check_free(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            reason = "taken by another program" if taken else f"not to be had: {error.strerror}"
            raise CannotMeet(f"port {port} of this machine is {reason}", _ANOTHER_PORT) from None


def _resolved(host: str, port: int) -> set[str]:
    """The addresses of a machine; a name that is not known yet gets a few seconds."""
    deadline = time.monotonic() + _NAME_S
    while True:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return {str(address[0]) for *_, address in found}
        except (OSError, UnicodeError) as error:
            if time.monotonic() > deadline:
                reason = getattr(error, "strerror", None) or error
                raise CannotMeet(
                    f"there is no machine {host!r} ({reason})",
                    "name one of the machines as the others know it, or give its IP address",
                ) from None
        time.sleep(_POLL_S)


def _is_here(address: str) -> bool:
    """Whether an address is this machine's: the system then reaches it from itself."""
    if ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        return True
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect((address, 9))  # UDP: nothing is sent
        return bool(probe.getsockname()[0] == address)
    return False


def _answers(host: str, port: int, plan: LaunchPlan, *, patient: bool, say: Callable[[str], None]) -> bool:
    """Whether somebody listens there; who is ``patient`` waits for it, and gives up with an error."""
    limit_s = float(plan.options.get("read_timeout", READ_TIMEOUT_S))
    deadline = time.monotonic() + limit_s
    asked = False
    while True:
        try:
            socket.create_connection((host, port), timeout=_CONNECT_S).close()
            return True
        except OSError as error:
            if not patient:
                return False
            reason = error.strerror or "no answer"
        if time.monotonic() > deadline:
            raise CannotMeet(
                f"nobody answered at {plan.endpoint} in {limit_s:.0f} s ({reason})",
                "start the same command on that machine, and let its port through the firewall; "
                "--rdzv-conf read_timeout=SECONDS waits longer",
            )
        if not asked:
            say(f"waiting for {plan.endpoint} ({reason}): run the same command on that machine")
        asked = True
        time.sleep(_POLL_S)


def _is_store(host: str, port: int) -> bool:
    """Whether what listens there is a store of torch's. In a thread: torch waits for ever for a silent program."""
    found = threading.Event()
    beyond = timedelta(seconds=10 * _STORE_S)  # torch's own error would come with a trace of its C++

    def ask() -> None:
        with contextlib.suppress(Exception):
            TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=beyond)
            found.set()

    threading.Thread(target=ask, daemon=True).start()
    return found.wait(_STORE_S)
