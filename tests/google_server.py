"""A stand-in for Google Cloud Storage: its XML API is S3's with conditions of its own, so moto does the rest.

Every object has a generation, a number that each write makes larger; a write on condition names the one it replaces,
0 for none. Written down in Google's documentation of ``x-goog-if-generation-match`` and ``x-goog-generation``.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable
from typing import Any

from tests.object_server import ObjectServer, refusal

_SIGNED = "AWS4-HMAC-SHA256 Credential=k/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"


class GoogleServer(ObjectServer):
    """See :class:`ObjectServer`."""

    def _made_app(self) -> Any:
        self._moto = super()._made_app()
        self._generations: dict[str, int] = {}
        self._next = itertools.count(1_700_000_000_000_000)
        self._one_at_a_time = threading.Lock()
        return self._as_google

    @property
    def environment(self) -> dict[str, str]:
        return {"STORAGE_EMULATOR_HOST": self.url}

    def bucket(self, name: str) -> str:
        return super().bucket(name).replace("s3://", "gs://")

    def _as_google(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if not environ.get("HTTP_AUTHORIZATION", "").startswith("AWS4"):  # boto3 prepares the tests
            environ["HTTP_AUTHORIZATION"] = _SIGNED
        wanted = environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", None)
        method, path, query = environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("QUERY_STRING", "")
        with self._one_at_a_time:
            if wanted is not None and int(wanted) != self._generations.get(path, 0):
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                return refusal(start_response, 412, "PreconditionFailed")
            told: list[Any] = []
            body = b"".join(self._moto(environ, lambda *args: told.extend(args)))
            is_done = told[0].startswith("2")
            if is_done and (("uploadId" in query) if method == "POST" else method == "PUT" and "uploadId" not in query):
                self._generations[path] = next(self._next)
            elif is_done and method == "DELETE" and "uploadId" not in query:
                self._generations.pop(path, None)
            generation = self._generations.get(path)
        start_response(told[0], [*told[1], *([("x-goog-generation", str(generation))] if generation else [])])
        return [body]
