"""uvicorn around the application: how many connections there may be, and how long one may dawdle."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import threading
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from automodel_cli.serving.service import Service
from automodel_cli.serving.web.app import make_app
from automodel_cli.serving.web.errors import ApiError
from automodel_cli.serving.web.guard import Guard, Rules

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


def make_server(
    service: Service,
    rules: Rules,
    *,
    host: str = "127.0.0.1",
    port: int = 8003,
    max_tokens: int = 4096,
    max_connections: int = 1000,
    header_timeout_s: float = HEADER_TIMEOUT_S,
) -> uvicorn.Server:
    """A server that has not begun; ``run()`` lasts until a signal comes."""
    limits = {"max_connections": max_connections, "header_timeout_s": header_timeout_s}
    protocol = type("Protocol", (PatientProtocol,), limits)
    _allow_files(max_connections + _SPARE_FILES)
    server: list[uvicorn.Server] = []
    app = make_app(
        service, max_tokens=max_tokens, connections=lambda: len(server[0].server_state.connections) if server else 0
    )
    config = uvicorn.Config(
        Guard(app, rules),
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
