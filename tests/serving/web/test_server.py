"""What a server on a network meets: strangers, slow and broken clients, and those who leave."""

from __future__ import annotations

import contextlib
import json
import socket
import time

import httpx
import pytest
from tests.serving.web.conftest import serving

from automodel_cli.serving.web.guard import Rules

CHAT = {"messages": [{"role": "user", "content": "hello"}]}


def raw(port: int, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(data)
    return connection


def request(body: bytes, *headers: str, path: str = "/v1/chat/completions", host: str = "localhost") -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def everything(connection: socket.socket) -> bytes:
    data = b""
    while piece := connection.recv(65536):
        data += piece
    return data


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"host": "evil.example"}, "host_not_allowed"),
        ({"host": "localhost.evil.example:8003"}, "host_not_allowed"),
        ({"origin": "http://evil.example"}, "origin_not_allowed"),
        ({"origin": "null"}, "origin_not_allowed"),
        ({"origin": "http://127.0.0.1:1"}, "origin_not_allowed"),
    ],
)
def test_pages_of_others_are_kept_out(echo, headers, code):
    for path in ("/health", "/", "/v1/models", "/v1/chat/completions"):
        answer = httpx.get(echo.url + path, headers=headers)
        assert answer.status_code == 403 and answer.json()["error"]["code"] == code
        assert not any(name.startswith("access-control") for name in answer.headers)


def test_the_own_page_is_let_in(echo):
    answer = httpx.post(f"{echo.url}/v1/chat/completions", json=CHAT, headers={"origin": echo.url})
    assert answer.status_code == 200
    preflight = httpx.options(f"{echo.url}/v1/models", headers={"access-control-request-method": "POST"})
    assert preflight.status_code == 405
    for path in ("/", "/v1/models", "/nothing"):
        headers = httpx.get(echo.url + path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert not any(name.startswith("access-control") for name in headers)


def test_a_key_is_needed_where_there_is_one():
    with serving(rules=Rules(hosts=None, key="sesame")) as server:
        for header in (
            {},
            {"authorization": "Bearer sesam"},
            {"authorization": "Basic sesame"},
            {"x-api-key": "sesame"},
        ):
            for path in ("/v1/models", "/metrics", "/nothing"):
                answer = httpx.get(server.url + path, headers=header)
                assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        right = {"authorization": "Bearer sesame", "host": "any.example"}
        assert httpx.get(f"{server.url}/v1/models", headers=right).status_code == 200
        for path in ("/", "/chat.js", "/chat.css", "/health"):
            assert httpx.get(server.url + path).status_code == 200


def test_bodies_have_a_size_and_a_time():
    with serving(rules=Rules(max_body_bytes=2000, body_timeout_s=0.3)) as server:
        for size in (2001, 30_000):
            answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x" * size})
            assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"
        chunked = httpx.post(f"{server.url}/v1/completions", content=(b"x" * 1000 for _ in range(5)))
        assert chunked.status_code == 413
        with raw(server.port, request(b"", "X: y").replace(b"Length: 0", b"Length: 99999999999")) as connection:
            assert everything(connection).startswith(b"HTTP/1.1 413")
        with raw(server.port, request(b"{}").replace(b"Length: 2", b"Length: 9")) as connection:
            assert everything(connection).startswith(b"HTTP/1.1 408")


def test_who_does_not_ask_is_hung_up_on():
    with serving(header_timeout_s=0.2) as server:
        with raw(server.port) as silent, raw(server.port, b"GET /health HTT") as slow:
            assert everything(silent).startswith(b"HTTP/1.1 408") and everything(slow).startswith(b"HTTP/1.1 408")
        with raw(server.port, b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n") as malformed:
            assert everything(malformed).startswith(b"HTTP/1.1 400")
        with (
            contextlib.suppress(ConnectionError),
            raw(server.port, b"GET / HTTP/1.1\r\nX: " + b"y" * 200_000) as endless,
        ):
            assert everything(endless).startswith(b"HTTP/1.1 400")
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_connections_have_an_end(eventually):
    with serving(max_connections=5) as server:
        idle = [raw(server.port) for _ in range(5)]
        with raw(server.port, request(b"{}")) as one_more:
            answer = everything(one_more)
            assert answer.startswith(b"HTTP/1.1 503") and b"too many connections" in answer
        for connection in idle:
            connection.close()

        def is_well() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{server.url}/health").status_code == 200
            return False

        eventually(is_well)


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_is_forgotten(stream, eventually):
    with serving() as server:
        server.model.delay_s = 0.01
        body = json.dumps({**CHAT, "messages": [{"role": "user", "content": "?"}], "stream": stream, "n": 2}).encode()
        connection = raw(server.port, request(body))
        eventually(lambda: server.engine.active == 2)
        connection.close()
        eventually(lambda: server.engine.active == 0)
        forwards = server.model.forwards
        time.sleep(0.05)
        assert server.model.forwards == forwards  # nothing goes on behind the scenes
        assert 'finish="cancelled"} 2' in httpx.get(f"{server.url}/metrics").text


def test_a_full_line_says_so(eventually):
    with serving(max_rows=1, max_waiting=1) as server:
        server.model.delay_s = 0.01
        body = json.dumps({"messages": [{"role": "user", "content": "?"}]}).encode()
        first = raw(server.port, request(body))
        eventually(lambda: server.engine.active == 1)
        second = raw(server.port, request(body))
        eventually(lambda: server.engine.waiting == 1)
        refused = httpx.post(f"{server.url}/v1/chat/completions", json=CHAT)
        assert refused.status_code == 429 and refused.json()["error"]["code"] == "queue_full"
        assert "retry-after" in refused.headers
        first.close(), second.close()
        eventually(lambda: server.engine.active + server.engine.waiting == 0)


def test_requests_have_a_time():
    with serving(timeout_s=0.2) as server:
        server.model.delay_s = 0.02
        endless = {"messages": [{"role": "user", "content": "?"}]}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=endless)
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"
        streamed = httpx.post(f"{server.url}/v1/chat/completions", json={**endless, "stream": True})
        *_, last = streamed.text.strip().split("\n\n")
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
