"""A real S3 server (moto's) on loopback, with faults that a test asks for. Started once, when a test first needs it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

KEYS = {"AWS_ACCESS_KEY_ID": "key-of-tests", "AWS_SECRET_ACCESS_KEY": "secret-of-tests", "AWS_REGION": "us-east-1"}


@dataclass
class Faults:
    """What goes wrong, drawn from a seed, for requests whose method and path ``matches``; at most ``most`` times.

    Attributes:
        errors: share of requests that get a 500 (or ``status``) and are not carried out.
        cuts: share of answers that are cut in the middle of their body.
        lost: share of requests that are carried out, and whose answer is a 500.
        slow: seconds before every answer.
        hidden: keys that listings leave out.
    """

    errors: float = 0.0
    cuts: float = 0.0
    lost: float = 0.0
    slow: float = 0.0
    status: int = 500
    hidden: frozenset[str] = frozenset()
    matches: Callable[[str, str], bool] = lambda method, path: True
    most: int = 1_000
    seed: int = 0
    count: int = 0
    draw: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)


class ObjectServer:
    """The server, its address and what was asked of it: ``requests`` holds ``METHOD /path?query``."""

    def __init__(self) -> None:
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log_request(self, *_: Any) -> None:
                pass

            def log(self, *_: Any) -> None:
                pass

        self._app = self._made_app()
        self._lock = threading.Lock()
        self.faults = Faults()
        self.requests: list[str] = []
        self.watch: Callable[[str], None] = lambda request: None
        """Called with every request before it is carried out."""
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=Quiet)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _made_app(self) -> Any:
        from moto.server import DomainDispatcherApplication, create_backend_app

        return DomainDispatcherApplication(create_backend_app)

    def stop(self) -> None:
        self._server.shutdown()

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to know."""
        return {**KEYS, "AWS_ENDPOINT_URL": self.url}

    def client(self) -> Any:
        """boto3's, which is not what we are testing."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
        )

    def bucket(self, name: str) -> str:
        """The URL of a new, empty bucket."""
        self.faults, self.watch = Faults(), lambda request: None
        client = self.client()
        if name in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
                for entry in page.get("Contents", ()):
                    client.delete_object(Bucket=name, Key=entry["Key"])
            for upload in client.list_multipart_uploads(Bucket=name).get("Uploads", ()):
                client.abort_multipart_upload(Bucket=name, Key=upload["Key"], UploadId=upload["UploadId"])
        else:
            client.create_bucket(Bucket=name)
        self.requests.clear()
        return f"s3://{name}"

    def objects(self, name: str) -> dict[str, bytes]:
        """Everything in a bucket, by key."""
        client = self.client()
        found = {}
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
            for entry in page.get("Contents", ()):
                found[entry["Key"]] = client.get_object(Bucket=name, Key=entry["Key"])["Body"].read()
        return found

    def unfinished_uploads(self, name: str) -> list[str]:
        """Keys of multipart uploads that were neither completed nor aborted."""
        return [upload["Key"] for upload in self.client().list_multipart_uploads(Bucket=name).get("Uploads", ())]

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        faults = self.faults
        self.requests.append(f"{method} {path}?{environ.get('QUERY_STRING', '')}")
        self.watch(self.requests[-1])
        if faults.slow:
            time.sleep(faults.slow)
        with self._lock:
            hit = {name: self._due(faults, getattr(faults, name), method, path) for name in ("errors", "lost", "cuts")}
        if hit["errors"]:
            _drain(environ)
            return refusal(start_response, faults.status)
        if hit["lost"]:
            b"".join(self._app(environ, lambda *_: None))
            return refusal(start_response, faults.status)
        if faults.hidden and "list-type" in environ.get("QUERY_STRING", ""):
            return self._without(environ, faults.hidden, start_response)
        body = self._app(environ, start_response)
        return _cut(body) if hit["cuts"] else body

    def _due(self, faults: Faults, share: float, method: str, path: str) -> bool:
        due = share > 0 and faults.matches(method, path) and faults.draw.random() < share and faults.count < faults.most
        faults.count += due
        return due

    def _without(self, environ: dict[str, Any], hidden: frozenset[str], start_response: Any) -> Iterable[bytes]:
        """A listing that lags: new objects are not in it yet."""
        import re

        told: list[Any] = []
        body = b"".join(self._app(environ, lambda *args: told.extend(args)))
        for key in hidden:
            body = re.sub(rb"<Contents>(?:(?!</Contents>).)*<Key>" + re.escape(key.encode()) + rb"</Key>.*?</Contents>",
                          b"", body, flags=re.DOTALL)  # fmt: skip
        headers = [(name, value) for name, value in told[1] if name.lower() != "content-length"]
        start_response(told[0], [*headers, ("Content-Length", str(len(body)))])
        return [body]


def _drain(environ: dict[str, Any]) -> None:
    """Read the body of a request, as servers do before they refuse it."""
    left = int(environ.get("CONTENT_LENGTH") or 0)
    while left > 0 and (block := environ["wsgi.input"].read(min(left, 1 << 20))):
        left -= len(block)


_CODES = {500: "InternalError", 503: "SlowDown", 403: "AccessDenied", 429: "TooManyRequests"}


def refusal(start_response: Any, status: int, code: str = "", *, is_head: bool = False) -> Iterable[bytes]:
    """An answer that says no, with the provider's name of the error."""
    code = code or _CODES[status]
    body = b"" if is_head else f"<Error><Code>{code}</Code><Message>made up</Message></Error>".encode()
    start_response(f"{status} {code}", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


def _cut(body: Iterable[bytes]) -> Iterable[bytes]:
    """Half of an answer, then nothing."""
    whole = b"".join(body)
    yield whole[: len(whole) // 2]
    raise ConnectionAbortedError
