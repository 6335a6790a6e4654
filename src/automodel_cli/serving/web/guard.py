"""What a request must pass before anything looks at it: host, origin, key, size and time; and headers of responses.

A page of another site may send requests to a server on this machine, and by a name that it lets point here (DNS
rebinding) also read what is answered: hence the checks of Host and Origin, and no headers that would allow others.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from automodel_cli.serving.web.errors import ApiError

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_OPEN = frozenset({"/", "/chat.css", "/chat.js", "/health"})
_DRAINED = 16  # times the allowed size: so much of a body is read and thrown away, for its sender to hear the answer
_HEADERS = [
    (b"content-security-policy",
     b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
     b"form-action 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]  # fmt: skip


@dataclass(frozen=True)
class Rules:
    """What is allowed.

    Attributes:
        hosts: names that a request may call this server, without port, lower case; None: any.
        key: what requests need; None: nothing.
        open_paths: what needs no key all the same: there is nothing in it.
    """

    hosts: frozenset[str] | None = LOOPBACK_NAMES
    key: str | None = None
    max_body_bytes: int = 1 << 20
    body_timeout_s: float = 20.0
    open_paths: frozenset[str] = _OPEN


class Guard:
    """ASGI middleware that answers what is not allowed itself, and hands on whole bodies."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app, self._rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        try:
            self._check({name: value.decode("latin-1") for name, value in scope["headers"]}, scope["path"])
            body = await self._body(receive)
        except ApiError as error:
            await error.response(close=True)(scope, receive, send_with_headers)
            return
        if body is not None:
            await self._app(scope, _again(body, receive), send_with_headers)

    def _check(self, headers: Mapping[bytes, str], path: str) -> None:
        """Raise an ApiError for what may not be."""
        rules, host = self._rules, headers.get(b"host", "").lower()
        if rules.hosts is not None and _name(host) not in rules.hosts:
            raise ApiError(403, f"this server is not called {host[:100]!r}", code="host_not_allowed")
        origin = headers.get(b"origin")
        if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
            raise ApiError(403, "pages of other sites may not use this server", code="origin_not_allowed")
        if rules.key is not None and path not in rules.open_paths:
            given = headers.get(b"authorization", "").partition(" ")
            is_right = hmac.compare_digest(given[2].strip().encode("latin-1"), rules.key.encode())
            if given[0].lower() != "bearer" or not is_right:
                raise ApiError(401, "this server needs an API key: Authorization: Bearer KEY", code="invalid_api_key")
        length = headers.get(b"content-length", "0")
        if not length.isdigit() or int(length) > _DRAINED * rules.max_body_bytes:
            raise self._too_large()

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self._rules.max_body_bytes:,} bytes", code="body_too_large")

    async def _body(self, receive: Receive) -> bytes | None:
        """All of it; None where the client left."""
        pieces: list[bytes] = []
        size, limit = 0, self._rules.max_body_bytes
        try:
            async with asyncio.timeout(self._rules.body_timeout_s):
                while size <= _DRAINED * limit:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    piece = message.get("body", b"")
                    size += len(piece)
                    if size <= limit:
                        pieces.append(piece)
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            raise ApiError(408, "the body did not arrive in time", code="timeout") from None
        if size > limit:
            raise self._too_large()
        return b"".join(pieces)


def _name(host: str) -> str:
    """``localhost:8003`` -> ``localhost``; ``[::1]:8003`` -> ``[::1]``."""
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]


def _again(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the whole body first."""
    unread = [body]

    async def receive_again() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        return await receive()

    return receive_again
