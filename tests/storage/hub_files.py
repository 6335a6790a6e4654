"""A stand-in for the Hugging Face Hub: the requests of reading a dataset, as huggingface_hub sends them.

A branch is a commit, a commit is files; listings come two names at a time. Uploads: ``tests.checkpoint.hf.hub_server``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import HfFileSystem, constants
from huggingface_hub.utils import _http

NAME = "me/books"
TOKEN = "hf_TheTokenOfTheTests0123456789"
Answer = tuple[int, Any, dict[str, str]]
_PAGE = 2


@dataclass
class HubFiles:
    """The dataset ``me/books``: which commit a branch is, and the files of each commit."""

    address: str = ""
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: bool = False
    requests: list[str] = field(default_factory=list)
    failing: dict[str, int] = field(default_factory=dict)  # a part of a path -> status, once

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Make ``files`` all that a branch has; the commit's hash."""
        made = hashlib.sha1(repr((sorted(files.items()), len(self.commits))).encode()).hexdigest()
        self.commits[made], self.branches[branch] = dict(files), made
        return made

    def answer(self, path: str, query: dict[str, list[str]], wanted: str) -> Answer:
        """Status, JSON or bytes, and headers; ``wanted`` is the range."""
        for part in [part for part in self.failing if part in path]:
            return self.failing.pop(part), {}, {}
        if found := re.fullmatch(rf"/api/datasets/{NAME}(?:/revision/([^/]+))?", path):
            sha = self._sha(found[1] or "main")
            return _missing("RevisionNotFound") if sha is None else (200, {"id": NAME, "sha": sha, "siblings": []}, {})
        if found := re.fullmatch(rf"/api/datasets/{NAME}/tree/([^/]+)(?:/(.+))?", path):
            return self._tree(found[1], unquote(found[2] or ""), query)
        if found := re.fullmatch(rf"/datasets/{NAME}/resolve/([^/]+)/(.+)", path):
            return self._content(found[1], unquote(found[2]), wanted)
        return _missing("RepoNotFound")

    def _sha(self, revision: str) -> str | None:
        revision = unquote(revision)
        return revision if revision in self.commits else self.branches.get(revision)

    def _tree(self, revision: str, folder: str, query: dict[str, list[str]]) -> Answer:
        files = self.commits[self._sha(revision) or ""]
        prefix = f"{folder}/" if folder else ""
        entries = {}
        for name in sorted(name for name in files if name.startswith(prefix)):
            parts = name[len(prefix) :].split("/")
            for depth in range(1, len(parts)):
                above = prefix + "/".join(parts[:depth])
                entries[above] = {"type": "directory", "path": above, "oid": "0" * 40, "size": 0}
            entries[name] = {"type": "file", "path": name, "oid": _blob(files[name]), "size": len(files[name])}
        if query.get("recursive", ["False"])[0].lower() != "true":
            entries = {name: entry for name, entry in entries.items() if "/" not in name[len(prefix) :]}
        if not entries and folder:
            return _missing("EntryNotFound")
        start = int(query.get("cursor", ["0"])[0])
        rest = f"?recursive={query.get('recursive', ['False'])[0]}&cursor={start + _PAGE}"
        following = f'<{self.address}/api/datasets/{NAME}/tree/{revision}/{folder}{rest}>; rel="next"'
        headers = {"Link": following.replace("/?", "?")} if start + _PAGE < len(entries) else {}
        return 200, list(entries.values())[start : start + _PAGE], headers

    def _content(self, revision: str, name: str, wanted: str) -> Answer:
        files = self.commits[self._sha(revision) or ""]
        if name not in files:
            return _missing("EntryNotFound")
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        return (206, files[name][int(found[1]) : int(found[2]) + 1], {}) if found else (200, files[name], {})


def _missing(code: str) -> Answer:
    return 404, {"error": "made up"}, {"X-Error-Code": code}


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextlib.contextmanager
def instead_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubFiles]:
    """The stand-in with its token in the environment, and nobody waits before a retry."""
    hub = HubFiles()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            hub.requests.append(asked.path)
            if hub.private and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                status, content, headers = (
                    401,
                    {"error": "Invalid username or password."},
                    {"X-Error-Code": "RepoNotFound"},
                )
            else:
                status, content, headers = hub.answer(asked.path, parse_qs(asked.query), self.headers.get("Range", ""))
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    impatient = {**vars(_http.time), "sleep": lambda seconds: None}  # the module itself is everybody's
    monkeypatch.setattr(_http, "time", SimpleNamespace(**impatient))
    HfFileSystem.clear_instance_cache()
    try:
        yield hub
    finally:
        HfFileSystem.clear_instance_cache()
        server.shutdown()
        server.server_close()
