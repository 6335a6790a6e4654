"""A stand-in for the Hugging Face Hub on this machine: the requests of an upload, as huggingface_hub sends them.

Repositories are made, files arrive in a commit (small ones) or over the LFS protocol (weights), and branches are kept
apart. A test can let any request fail.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http

TOKEN = "hf_TheTokenOfTheTests0123456789"
ACCOUNT = "me"


@dataclass
class Repository:
    """What was uploaded: by branch, name and content of each file; and the commits."""

    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {".gitattributes": b""}})
    messages: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """The state of the stand-in, and what a test wants to go wrong."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    failing: dict[str, int] = field(default_factory=dict)  # a part of "METHOD path" -> status; 0: hang up
    before: Callable[[str], None] = lambda request: None  # called with each request
    token: str = TOKEN

    def answer(self, request: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON."""
        for pattern, act in _ROUTES.items():
            if found := re.fullmatch(pattern, request):
                return act(self, body, *map(unquote, found.groups()))
        return 404, {"error": f"no such thing: {request}"}


def _create(hub: Hub, body: bytes) -> tuple[int, Any]:
    asked = json.loads(body)
    owner = asked.get("organization") or ACCOUNT
    name = f"{owner}/{asked['name']}"
    made = {"url": f"{hub.address}/{name}", "name": name}
    if owner != ACCOUNT:
        return 403, {"error": f"You don't have the rights to create a model under the namespace {owner!r}"}
    if name in hub.repositories:
        return 409, {"error": "You already created this model repo", **made}
    hub.repositories[name] = Repository(private=asked.get("visibility") == "private")
    return 200, made


def _info(hub: Hub, body: bytes, name: str) -> tuple[int, Any]:
    if name not in hub.repositories:
        return 404, {"error": "Repository not found"}
    return 200, {"id": name, "private": hub.repositories[name].private, "sha": "0" * 40, "siblings": [], "tags": []}


def _branch(hub: Hub, body: bytes, name: str, branch: str) -> tuple[int, Any]:
    branches = hub.repositories[name].branches
    if branch in branches:
        return 409, {"error": "Reference already exists"}
    branches[branch] = dict(branches["main"])
    return 200, {}


def _tree(hub: Hub, body: bytes, name: str, branch: str) -> tuple[int, Any]:
    files = hub.repositories[name].branches[branch]
    return 200, [{"type": "file", "path": path, "size": len(files[path]), "oid": "0" * 40} for path in sorted(files)]


def _preupload(hub: Hub, body: bytes, name: str, branch: str) -> tuple[int, Any]:
    paths = [one["path"] for one in json.loads(body)["files"]]
    modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in paths}
    return 200, {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]}


def _lfs_batch(hub: Hub, body: bytes, name: str) -> tuple[int, Any]:
    objects = json.loads(body)["objects"]
    actions = {one["oid"]: {"upload": {"href": f"{hub.address}/objects/{one['oid']}"}} for one in objects}
    return 200, {"objects": [{**one, "actions": actions[one["oid"]]} for one in objects], "transfer": "basic"}


def _put(hub: Hub, body: bytes, oid: str) -> tuple[int, Any]:
    if sha256(body).hexdigest() != oid:
        return 422, {"error": "the content is not what was announced"}
    hub.objects[oid] = body
    return 200, {}


def _commit(hub: Hub, body: bytes, name: str, branch: str) -> tuple[int, Any]:
    files = hub.repositories[name].branches[branch]
    for line in map(json.loads, body.splitlines()):
        value = line["value"]
        if line["key"] == "header":
            hub.repositories[name].messages.append(value["summary"])
        elif line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            files[value["path"]] = hub.objects[value["oid"]]
        else:
            del files[value["path"]]
    return 200, {"success": True, "commitUrl": f"{hub.address}/{name}/commit/{'1' * 40}", "commitOid": "1" * 40}


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES: dict[str, Callable[..., tuple[int, Any]]] = {
    r"POST /api/repos/create": _create,
    rf"GET /api/models/{_NAME}": _info,
    rf"POST /api/models/{_NAME}/branch/([^/]+)": _branch,
    rf"GET /api/models/{_NAME}/tree/([^/]+)": _tree,
    rf"POST /api/models/{_NAME}/preupload/([^/]+)": _preupload,
    rf"POST /{_NAME}\.git/info/lfs/objects/batch": _lfs_batch,
    r"PUT /objects/(\w+)": _put,
    rf"POST /api/models/{_NAME}/commit/([^/]+)": _commit,
    r"POST /api/validate-yaml": lambda hub, body: (200, {"warnings": [], "errors": []}),
}


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    """The stand-in, until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = f"{self.command} {urlsplit(self.path).path}"
            hub.requests.append(request)
            hub.before(request)
            failed = self._failed(request)
            status, content = (failed, {}) if failed is not None else hub.answer(request, body)
            if status == 0:
                self.close_connection = True
                self.connection.close()
                return
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def _failed(self, request: str) -> int | None:
            """The status of a request that fails; None for one that does not."""
            for part, status in hub.failing.items():
                if part in request:
                    return status
            known = self.headers.get("Authorization") == f"Bearer {hub.token}"
            return None if known or request.startswith("PUT ") else 401

        do_GET = do_POST = do_PUT = do_HEAD = handle_any

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def instead_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in with its token in the environment; files go over LFS, and nobody waits before a retry."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    impatient = {**vars(_http.time), "sleep": lambda seconds: None}  # the module itself is everybody's
    monkeypatch.setattr(_http, "time", SimpleNamespace(**impatient))
    with running() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        yield server
