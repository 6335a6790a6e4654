"""A stand-in for Azure Blob Storage on loopback: what object storage is asked for here, and no more.

Requests and answers are those of the documentation of Azure's REST API; what it does not say (quotes around an etag,
names of errors, parts of a batch) is as Azurite 3.35 answers. Signatures are not checked; listings have three names.
"""

from __future__ import annotations

import base64
import itertools
import re
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

from tests.object_server import Faults, ObjectServer, refusal

ACCOUNT = "devstoreaccount1"
KEY = base64.b64encode(b"key of tests").decode()
_PAGE = 3


class AzureServer(ObjectServer):
    """See :class:`ObjectServer`."""

    def _made_app(self) -> Any:
        self._containers: dict[str, dict[str, tuple[bytes, str]]] = {}  # content and etag by name
        self._blocks: dict[tuple[str, str], dict[str, bytes]] = {}
        self._etags = (f"0x{number:X}" for number in itertools.count(0x1DD3D8C275216F0))
        self._one_at_a_time = threading.Lock()
        return self._as_azure

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": f"{self.url}/{ACCOUNT}",
        }

    def bucket(self, name: str) -> str:
        self.faults, self.watch = Faults(), lambda request: None
        self._containers[name] = {}
        self.requests.clear()
        return f"az://{name}"

    def objects(self, name: str) -> dict[str, bytes]:
        return {key: data for key, (data, _) in self._containers[name].items()}

    def _as_azure(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        path = environ["PATH_INFO"].encode("latin-1").decode()  # as WSGI has it
        _, account, name, *rest = path.split("/", 3)
        query = {key: values[0] for key, values in parse_qs(environ.get("QUERY_STRING", "")).items()}
        if account != ACCOUNT or not environ.get("HTTP_AUTHORIZATION", "").startswith(f"SharedKey {ACCOUNT}:"):
            return refusal(start_response, 403, "AuthenticationFailed")
        with self._one_at_a_time:
            if (blobs := self._containers.get(name)) is None:
                return refusal(start_response, 404, "ContainerNotFound")
            if query.get("comp") == "list":
                return _answer(start_response, "200 OK", _listing(blobs, query), [("Content-Type", "application/xml")])
            if query.get("comp") == "batch":
                return self._batch(blobs, body, environ["CONTENT_TYPE"], start_response)
            key = rest[0]
            if environ["REQUEST_METHOD"] == "PUT":
                return self._put(blobs, (name, key), query, body, environ, start_response)
            return _get(blobs, key, environ, start_response)

    def _put(
        self,
        blobs: dict[str, tuple[bytes, str]],
        place: tuple[str, str],
        query: dict[str, str],
        body: bytes,
        environ: dict[str, Any],
        start_response: Any,
    ) -> Iterable[bytes]:
        key = place[1]
        if query.get("comp") == "block":
            self._blocks.setdefault(place, {})[query["blockid"]] = body
            return _answer(start_response, "201 Created", b"", [])
        if query.get("comp") == "blocklist":
            there = self._blocks.pop(place, {})
            body = b"".join(there[entry.text or ""] for entry in ET.fromstring(body))
        if environ.get("HTTP_IF_NONE_MATCH") == "*" and key in blobs:
            return refusal(start_response, 409, "BlobAlreadyExists")
        if (wanted := environ.get("HTTP_IF_MATCH")) and (key not in blobs or blobs[key][1] != wanted.strip('"')):
            return refusal(start_response, 412, "ConditionNotMet")
        blobs[key] = (body, next(self._etags))
        return _answer(start_response, "201 Created", b"", _facts(blobs[key][1]))

    def _batch(
        self, blobs: dict[str, tuple[bytes, str]], body: bytes, kind: str, start_response: Any
    ) -> Iterable[bytes]:
        """Deletions, each with its own answer in the answer."""
        mark = kind.partition("boundary=")[2]
        answers = []
        for number, target in enumerate(re.findall(rb"\r\nDELETE (\S+) HTTP", body)):
            gone = blobs.pop(unquote(target.decode()).split("/", 3)[3], None)
            status = "202 Accepted" if gone else "404 The specified blob does not exist."
            answers.append(f"Content-Type: application/http\r\nContent-ID: {number}\r\n\r\nHTTP/1.1 {status}\r\n\r\n")
        text = "".join(f"--{mark}\r\n{answer}\r\n" for answer in answers) + f"--{mark}--"
        return _answer(start_response, "202 Accepted", text.encode(), [("Content-Type", kind)])


def _get(
    blobs: dict[str, tuple[bytes, str]], key: str, environ: dict[str, Any], start_response: Any
) -> Iterable[bytes]:
    if key not in blobs:
        return refusal(start_response, 404, "BlobNotFound", is_head=environ["REQUEST_METHOD"] == "HEAD")
    data, etag = blobs[key]
    if (wanted := environ.get("HTTP_IF_MATCH")) and wanted.strip('"') != etag:
        return refusal(start_response, 412, "ConditionNotMet")
    if environ["REQUEST_METHOD"] == "HEAD":
        return _answer(start_response, "200 OK", b"", [*_facts(etag), ("Content-Length", str(len(data)))])
    if (asked := re.fullmatch(r"bytes=(\d+)-(\d*)", environ.get("HTTP_RANGE", ""))) is None:
        return _answer(start_response, "200 OK", data, _facts(etag))
    start, stop = int(asked[1]), min(len(data), int(asked[2]) + 1 if asked[2] else len(data))
    if start >= len(data):
        return refusal(start_response, 416, "InvalidRange")
    place = ("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
    return _answer(start_response, "206 Partial Content", data[start:stop], [*_facts(etag), place])


def _listing(blobs: dict[str, tuple[bytes, str]], query: dict[str, str]) -> bytes:
    names = sorted(name for name in blobs if name.startswith(query.get("prefix", "")))
    names = [name for name in names if name >= query.get("marker", "")]
    entries = [
        f"<Blob><Name>{escape(name)}</Name><Properties><Last-Modified>{formatdate(usegmt=True)}</Last-Modified>"
        f"<Etag>{blobs[name][1]}</Etag><Content-Length>{len(blobs[name][0])}</Content-Length>"
        "<Content-Type>application/octet-stream</Content-Type><BlobType>BlockBlob</BlobType></Properties></Blob>"
        for name in names[:_PAGE]
    ]
    following = escape(names[_PAGE]) if len(names) > _PAGE else ""
    body = f"<Blobs>{''.join(entries)}</Blobs><NextMarker>{following}</NextMarker>"
    return f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults>{body}</EnumerationResults>'.encode()


def _facts(etag: str) -> list[tuple[str, str]]:
    return [("ETag", f'"{etag}"'), ("Last-Modified", formatdate(usegmt=True))]


def _answer(start_response: Any, status: str, body: bytes, headers: list[tuple[str, str]]) -> Iterable[bytes]:
    length = [] if any(name == "Content-Length" for name, _ in headers) else [("Content-Length", str(len(body)))]
    start_response(status, [*headers, *length])
    return [body]
