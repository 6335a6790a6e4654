"""uvicorn around an application: how many connections there may be, how long one may dawdle, who may come at all."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import resource
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from automodel_cli.errors import ConfigError
from automodel_cli.serving.web.errors import ApiError
from automodel_cli.serving.web.guard import LOOPBACK_NAMES, Guard, Rules

API_KEY_VARIABLE = "AUTOMODEL_API_KEY"
HEADER_TIMEOUT_S = 10.0
_TOLD = 32  # connections beyond the limit that are answered; more are closed at once
_SPARE_FILES = 64 + _TOLD


class PatientProtocol(H11Protocol):
    """HTTP/1.1 of uvicorn, which waits for ever for a request to begin and for its headers to end: this does not."""

    max_connections = 1000
    header_timeout_s = HEADER_TIMEOUT_S
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._is_one_too_many = len(self.connections) > self.max_connections
        if len(self.connections) > self.max_connections + _TOLD:
            transport.close()
        else:  # an answer before the question would be lost: closing with something unread resets the connection
            self._wait()

    def data_received(self, data: bytes) -> None:
        if self._is_one_too_many:
            self._say(503, ApiError(503, "too many connections", code="too_many_connections"))
            return
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._wait()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.header_timeout_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._say(408, ApiError(408, "no request arrived in time", code="timeout"))

    def _say(self, status: int, error: ApiError) -> None:
        """Answer without the application, and hang up."""
        if not self.transport.is_closing():
            body = bytes(error.response().body)
            head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write(head.encode() + body)
            self.transport.close()


def serve_app(
    make_app: Callable[[Callable[[], uvicorn.Server]], ASGIApp],
    rules: Rules,
    *,
    host: str,
    port: int,
    max_connections: int = 1000,
    header_timeout_s: float = HEADER_TIMEOUT_S,
) -> uvicorn.Server:
    """A server that has not begun; ``run()`` lasts until a signal comes.

    Args:
        make_app: makes the application, given a way to its server.
    """
    limits = {"max_connections": max_connections, "header_timeout_s": header_timeout_s}
    protocol = type("Protocol", (PatientProtocol,), limits)
    _allow_files(max_connections + _SPARE_FILES)
    server: list[uvicorn.Server] = []
    config = uvicorn.Config(
        Guard(make_app(lambda: server[0]), rules),
        host=host,
        port=port,
        http=protocol,
        ws="none",
        lifespan="off",
        loop="asyncio",
        interface="asgi3",
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=1024,
        timeout_graceful_shutdown=5,
    )
    server.append(uvicorn.Server(config))
    return server[0]


def _allow_files(count: int) -> None:
    """A connection is an open file; many systems allow 1,024 unless asked."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(count, hard)), hard))


@contextlib.contextmanager
def running(server: uvicorn.Server) -> Iterator[str]:
    """The server on a thread of its own while the block runs; its address."""
    listener = socket.create_server((server.config.host, server.config.port), backlog=1024)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="server", daemon=True)
    thread.start()
    try:
        yield f"http://{server.config.host}:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def rules_for(host: str, api_key: str | None, allowed_hosts: Sequence[str], **limits: Any) -> Rules:
    """Who may come to a server on ``host``: anybody on this machine, and from elsewhere who has the key.

    Raises:
        ConfigError: other machines can reach it, and there is no key.
    """
    is_local = _is_loopback(host)
    if api_key is None and not is_local:
        raise ConfigError(
            f"host {host} can be reached from other machines, and there is no API key",
            f"set {API_KEY_VARIABLE} or --api-key, or listen on 127.0.0.1",
        )
    hosts = frozenset(name.lower() for name in allowed_hosts)
    hosts |= LOOPBACK_NAMES if is_local or hosts else frozenset()
    return Rules(hosts=hosts or None, key=api_key, **limits)


def open_listener(host: str, port: int) -> socket.socket:
    """A socket that listens already: clients wait until the server is ready.

    Raises:
        ConfigError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror or error}", "choose another --port or --host"
        ) from error


def address_of(host: str, listener: socket.socket) -> str:
    """``http://127.0.0.1:8003``."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
