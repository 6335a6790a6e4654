"""Fetching the archive of task data from a server of our own: whole, checked, safe, or not at all."""

from __future__ import annotations

import hashlib
import io
import stat
import threading
import warnings
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from tests.evaluation.small_bundle import write_bundle

from automodel_cli.errors import AutomodelError, ConfigError, DataError
from automodel_cli.evaluation.icl import bundle_archive
from automodel_cli.evaluation.icl.bundle_archive import fetch
from automodel_cli.evaluation.icl.data import Bundle
from automodel_cli.evaluation.icl.tasks import TASKS


def archive_of(folder: Path, *, top: str = "eval_bundle/") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as files:
        for path in sorted(folder.rglob("*.jsonl")):
            files.write(path, f"{top}{path.relative_to(folder)}")
    return stream.getvalue()


class Server:
    """Serves ``content``; the first ``breaks`` answers end in the middle."""

    def __init__(self, content: bytes, *, breaks: int = 0) -> None:
        self.ranges: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers.get("Range")
                server.ranges.append(asked)
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
                if self.path != "/bundle.zip":
                    self.send_error(404)
                    return
                part = content[start:]
                self.send_response(206 if asked else 200)
                self.send_header("Content-Length", str(len(part)))
                self.end_headers()
                cut = len(server.ranges) <= breaks
                self.wfile.write(part[: len(part) // 2] if cut else part)

            def log_message(self, *_):
                pass

        self._http = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/bundle.zip"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def serve(monkeypatch):
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    started = []

    def serve(content: bytes, **options) -> Server:
        started.append(Server(content, **options))
        return started[-1]

    yield serve
    for server in started:
        server.close()


@pytest.fixture
def content(tmp_path):
    return archive_of(write_bundle(tmp_path / "source"))


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_fetched_checked_and_usable(tmp_path, serve, content):
    progress = []
    target = tmp_path / "deep" / "tasks"
    found = fetch(target, url=serve(content).url, sha256=digest(content), progress=lambda *step: progress.append(step))
    assert found == target and progress[-1] == (len(content), len(content))
    data = Bundle(target).load(TASKS["arc_easy"])
    assert data is not None and len(data.items) == 17
    assert [path.name for path in target.parent.iterdir()] == ["tasks"]  # nothing temporary is left


def test_a_broken_connection_is_taken_up_again(tmp_path, serve, content):
    server = serve(content, breaks=2)
    fetch(tmp_path / "tasks", url=server.url, sha256=digest(content))
    assert server.ranges[0] is None and all(server.ranges[1:]) and len(server.ranges) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sha256": "0" * 64}, "SHA-256"),
        ({"path": "/other.zip"}, "404"),
        ({"breaks": 9}, "cannot be fetched"),
    ],
)
def test_nothing_is_left_of_a_failure(tmp_path, serve, content, change, said):
    server = serve(content, breaks=change.get("breaks", 0))
    url = server.url.replace("/bundle.zip", change.get("path", "/bundle.zip"))
    with pytest.raises(DataError) as error:
        fetch(tmp_path / "tasks", url=url, sha256=change.get("sha256", digest(content)))
    assert said in error.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def one_member(name: str, mode: int = 0) -> bytes:
    return members(name, mode=mode)


def members(*names: str, mode: int = 0) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as files:
        warnings.simplefilter("ignore")  # of one name twice
        for name in names:
            member = zipfile.ZipInfo(name)
            member.external_attr = mode << 16
            files.writestr(member, "{}")
    return stream.getvalue()


def broken_member() -> bytes:
    """Compressed data that is none, with a directory that is sound."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as files:
        files.writestr("a.jsonl", "text " * 1000)
    data = bytearray(stream.getvalue())
    data[40:50] = b"\xff" * 10
    return bytes(data)


@pytest.mark.parametrize("url", ["http://[::", "http://127.0.0.1:99999/x.zip", "http://a b/x.zip", "http:///x"])
def test_addresses_that_are_none(tmp_path, url):
    with pytest.raises(DataError, match="cannot be fetched"):
        fetch(tmp_path / "tasks", url=url)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "archive",
    [
        one_member("../outside.jsonl"),
        one_member("/etc/outside.jsonl"),
        one_member("a/../../outside.jsonl"),
        one_member("C:\\outside.jsonl"),
        one_member("link", stat.S_IFLNK | 0o777),
        one_member("pipe", stat.S_IFIFO | 0o777),
        one_member("eval_data/readme.txt"),
        b"no zip at all",
        members("a.jsonl", "a.jsonl"),
        members("a.jsonl", "a.jsonl/b.jsonl"),
        one_member("x" * 300 + ".jsonl"),
        broken_member(),
    ],
)
def test_what_no_archive_of_task_data_holds(tmp_path, serve, archive):
    with pytest.raises(DataError):
        fetch(tmp_path / "tasks", url=serve(archive).url, sha256=digest(archive))
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_grows_too_large(tmp_path, serve, content, monkeypatch):
    monkeypatch.setattr(bundle_archive, "MAX_BYTES", len(content) + 100)
    with pytest.raises(DataError, match="unpacks to more"):
        fetch(tmp_path / "tasks", url=serve(content).url, sha256=None)
    monkeypatch.setattr(bundle_archive, "MAX_BYTES", 100)
    with pytest.raises(DataError, match="larger than"):
        fetch(tmp_path / "tasks", url=serve(content).url, sha256=None)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://somewhere/bundle.zip", "bundle.zip"])
def test_only_http(tmp_path, url):
    with pytest.raises(ConfigError, match="http"):
        fetch(tmp_path / "tasks", url=url)


def test_a_folder_that_is_there_stays(tmp_path):
    folder = write_bundle(tmp_path / "tasks")
    with pytest.raises(AutomodelError, match="exists already"):
        fetch(folder, url="http://127.0.0.1:1/bundle.zip")
    assert Bundle(folder).find(TASKS["copa"])


def test_what_lies_beside_the_folder_is_not_touched(tmp_path, serve, content):
    (tmp_path / "b.tmp").mkdir()
    for name in ("b.tmp/canary", "b.zip.tmp"):
        (tmp_path / name).write_text("precious")
    server = serve(content)
    fetch(tmp_path / "b", url=server.url, sha256=digest(content))
    assert all((tmp_path / name).read_text() == "precious" for name in ("b.tmp/canary", "b.zip.tmp"))
    assert {path.name for path in tmp_path.glob("b*")} >= {"b", "b.tmp", "b.zip.tmp"}
    assert not list(tmp_path.glob("*.automodel.tmp"))
